"""Cold transfers of Twilio's calls, by the Twilio stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from core.models import new_id
from core.tokens import TokenIssuer
from dev.standins.twilio import Answer, Busy, Call, RingOut, Unreachable
from gateway.calls import transfers
from gateway.keys import call_services
from gateway.numbers.accounts import Accounts
from tests.conftest import bearer
from tests.support.inprocess import SECRET, running
from tests.support.stream_worker import WorkerSession
from tests.support.task_rig import ACCOUNT, TaskRig, task_rig

pytestmark = pytest.mark.store

HUMAN = "+15551230099"


@dataclass
class Talk:
    """A call of Twilio's that a worker serves; its caller can be transferred."""

    rig: TaskRig
    phone: Call
    session: WorkerSession
    call_id: str

    async def transfer(self, transfer_id: str | None = None, http: Any = None) -> Any:
        """Ask as a worker does; return the result."""
        async with (http or self.rig.own.http).post(
            f"/internal/calls/{self.call_id}/transfer",
            json={"transferId": transfer_id or new_id("trf")},
            headers=bearer(TokenIssuer(SECRET).for_call(self.call_id)),
        ) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def told(self) -> list[Any]:
        """Return the transfer's events, and the call's end."""
        return [
            (event.type, event.data)
            for event in await self.rig.events(self.call_id)
            if event.type.startswith("transfer.")
            or event.type in ("call.transferred", "call.ended")
        ]

    def callback(self, what: str, transfer_id: str) -> str:
        url = call_services(self.rig.own.app).twilio_sessions.callback(
            self.call_id, what, transfer=transfer_id
        )
        return url[url.index("/v1/") :]


@asynccontextmanager
async def talking(folder: Path, **settings: Any) -> AsyncIterator[Talk]:
    config = {"transfer_number": HUMAN, "transfer_mode": settings.pop("mode", "cold")}
    async with task_rig(folder, config, **settings) as rig:
        task_id = await rig.made()
        session = await rig.worker.session()
        (phone,) = rig.twilio.calls.values()
        call_id = (await rig.task(task_id))["callId"]
        await rig.until_event(call_id, "call.answered")
        yield Talk(rig, phone, session, call_id)


@pytest.fixture
async def talk(tmp_path: Path) -> AsyncIterator[Talk]:
    async with talking(tmp_path) as talk:
        yield talk


STARTED = ("transfer.started", {"to": HUMAN, "mode": "cold"})


async def test_the_human_answers(talk: Talk) -> None:
    talk.rig.twilio.callee(HUMAN, Answer(after_ms=None))
    asked = asyncio.create_task(talk.transfer())
    human = await talk.phone.dialling()
    assert (human.to, human.from_) == (HUMAN, talk.rig.number.phone_number)
    human.pick_up()
    assert (await asked)["outcome"] == "transferred"
    assert await talk.told() == [
        STARTED,
        ("call.transferred", {"to": HUMAN, "mode": "cold"}),
        ("call.ended", {"status": "completed", "reason": "call_transfer"}),
    ]
    # They talk for as long as they like.
    assert (human.status, talk.phone.status) == ("in-progress", "in-progress")
    human.hang_up()
    assert await talk.phone.ended() == "completed"
    assert len(await talk.told()) == 3
    task = await talk.rig.api.get(f"{talk.rig.path}?limit=1")
    assert task.body["data"][0]["attempts"] == 1


@pytest.mark.parametrize(
    ("callee", "reason"),
    [(Busy(), "busy"), (RingOut(), "no_answer"), (Unreachable(), "failed")],
)
async def test_the_caller_is_back_with_the_agent(talk: Talk, callee: Any, reason: str) -> None:
    talk.rig.twilio.callee(HUMAN, callee)
    assert (await talk.transfer())["outcome"] == reason
    assert await talk.told() == [STARTED, ("transfer.failed", {"reason": reason})]
    again = await talk.rig.worker.session(2)
    assert [attach["resume"] for attach in again.attaches] == [False, True]
    assert talk.phone.status == "in-progress"
    # And can be transferred once more.
    talk.rig.twilio.callee(HUMAN, Answer())
    assert (await talk.transfer())["outcome"] == "transferred"


async def test_a_lost_status_callback(talk: Talk) -> None:
    """The action tells, when the two have hung up, that they talked."""
    talk.rig.twilio.callee(HUMAN, Answer())
    transfer_id = new_id("trf")
    talk.rig.twilio.hosts.clear()
    asked = asyncio.create_task(talk.transfer(transfer_id))
    human = await talk.phone.dialling()
    await human.reached("in-progress")
    path = talk.callback("transfer", transfer_id)
    form = {"AccountSid": ACCOUNT, "CallSid": talk.phone.sid, "CallStatus": "in-progress"}
    status, text = await talk.rig.tell(path, {**form, "DialCallStatus": "completed"})
    assert (status, "<Hangup" in text) == (200, True)
    assert (await asked)["outcome"] == "transferred"
    talk.rig.twilio.take_alerts()


async def test_the_caller_hangs_up_while_it_rings(talk: Talk) -> None:
    talk.rig.twilio.callee(HUMAN, Answer(after_ms=None))
    transfer_id = new_id("trf")
    asked = asyncio.create_task(talk.transfer(transfer_id))
    await talk.phone.dialling()
    talk.phone.hang_up()
    form = {"AccountSid": ACCOUNT, "CallSid": talk.phone.sid, "CallStatus": "completed"}
    values = {**form, "DialCallStatus": "no-answer"}
    assert (await talk.rig.tell(talk.callback("transfer", transfer_id), values))[0] == 200
    assert (await asked)["outcome"] == "no_answer"
    assert (await talk.told())[-1] == (
        "call.ended",
        {"status": "completed", "reason": "user_hangup"},
    )


async def test_nobody_tells_how_it_went(tmp_path: Path) -> None:
    async with talking(tmp_path) as talk:
        service = call_services(talk.rig.own.app).transfers
        service._twilio._told_within_s = -29.5  # the phone rings for 30 s
        talk.rig.twilio.hosts.clear()
        assert (await talk.transfer())["outcome"] == "no_answer"
        assert (await talk.told())[-1] == ("transfer.failed", {"reason": "no_answer"})
        talk.rig.twilio.take_alerts()


async def test_a_repeated_request_dials_once(talk: Talk) -> None:
    talk.rig.twilio.callee(HUMAN, Answer(after_ms=None))
    transfer_id = new_id("trf")
    async with running(talk.rig.settings, clock=talk.rig.clock) as other:
        asked = [asyncio.create_task(talk.transfer(transfer_id)) for _ in range(3)]
        human = await talk.phone.dialling()
        asked.append(asyncio.create_task(talk.transfer(transfer_id, other.http)))
        human.pick_up()
        assert {(await each)["outcome"] for each in asked} == {"transferred"}
    assert len(talk.phone.dialled) == 1
    assert len(await talk.told()) == 3
    human.hang_up()


async def test_no_room_is_looked_at(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session has none, which would look as if the caller had been referred."""

    async def nobody(*_: object) -> None:
        return None

    monkeypatch.setattr(transfers, "_BEGUN_S", -1.0)
    monkeypatch.setattr(transfers.Transfers, "_look", nobody)
    talk.rig.twilio.callee(HUMAN, Answer(after_ms=None))
    transfer_id = new_id("trf")
    async with running(talk.rig.settings, clock=talk.rig.clock) as other:
        asked = asyncio.create_task(talk.transfer(transfer_id))
        human = await talk.phone.dialling()
        again = asyncio.create_task(talk.transfer(transfer_id, other.http))
        assert not (await asyncio.wait({again}, timeout=0.5))[0]
        human.pick_up()
        assert (await asked)["outcome"] == (await again)["outcome"] == "transferred"
    human.hang_up()


async def test_a_gateway_that_dies_meanwhile(talk: Talk) -> None:
    """Twilio's callbacks and the worker's next request reach another one."""
    talk.rig.twilio.callee(HUMAN, Answer(after_ms=None))
    transfer_id = new_id("trf")
    async with running(talk.rig.settings, clock=talk.rig.clock) as other:
        asked = asyncio.create_task(talk.transfer(transfer_id))
        human = await talk.phone.dialling()
        await call_services(talk.rig.own.app).transfers.aclose()
        asked.cancel()
        for host in talk.rig.twilio.hosts:
            talk.rig.twilio.hosts[host] = f"127.0.0.1:{other.port}"
        human.pick_up()
        assert (await talk.transfer(transfer_id, other.http))["outcome"] == "transferred"
    assert len(talk.phone.dialled) == 1
    human.hang_up()


async def test_warm(tmp_path: Path) -> None:
    async with talking(tmp_path, mode="warm") as talk:
        assert (await talk.transfer())["outcome"] == "not_supported"
        assert (await talk.told())[-1] == ("transfer.failed", {"reason": "not_supported"})
        assert not talk.phone.dialled and talk.phone.status == "in-progress"


async def test_without_the_accounts_token(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: object) -> None:
        return None

    monkeypatch.setattr(Accounts, "named", unknown)
    assert (await talk.transfer())["outcome"] == "not_supported"
    assert (await talk.told())[-1] == ("transfer.failed", {"reason": "not_supported"})


async def test_the_policy_is_asked(tmp_path: Path) -> None:
    async with talking(tmp_path, dial_blocked_prefixes=(HUMAN,)) as talk:
        assert (await talk.transfer())["outcome"] == "not_allowed"
        assert not talk.phone.dialled


async def test_a_call_that_is_over_at_twilio(talk: Talk) -> None:
    talk.rig.twilio.fail(r"POST .*/Calls/CA", status=400, code=21220)
    assert (await talk.transfer())["outcome"] == "failed"


@pytest.mark.attack
async def test_hostile_callbacks(talk: Talk) -> None:
    talk.rig.twilio.callee(HUMAN, Answer(after_ms=None))
    transfer_id = new_id("trf")
    asked = asyncio.create_task(talk.transfer(transfer_id))
    human = await talk.phone.dialling()
    form = {"AccountSid": ACCOUNT, "CallSid": talk.phone.sid, "CallStatus": "in-progress"}
    done = {**form, "DialCallStatus": "completed"}
    child = {**form, "CallSid": human.sid, "ParentCallSid": talk.phone.sid}
    path, status = (talk.callback(what, transfer_id) for what in ("transfer", "transfer/status"))
    wrong_key = path.replace("key=", "key=x")
    for where, values, headers in (
        (path, done, {}),
        (path, done, talk.rig.signed(path, done, token="another")),
        (path, {**done, "DialCallStatus": "busy"}, talk.rig.signed(path, done)),
        (wrong_key, done, talk.rig.signed(wrong_key, done)),
        (path, {**done, "CallSid": human.sid}, None),
        (status, {**child, "ParentCallSid": human.sid}, None),
        (status, form, None),
    ):
        assert (await talk.rig.tell(where, values, headers))[0] == 403, (where, values)
    # Signed, but about a transfer that was never begun, or with an id that is none.
    for other in (new_id("trf"), "trf_1", "call.ended"):
        await talk.rig.tell(talk.callback("transfer/status", other), child)
    assert await talk.told() == [STARTED]
    human.pick_up()
    assert (await asked)["outcome"] == "transferred"
    late = await asyncio.gather(
        *(talk.rig.tell(path, {**done, "DialCallStatus": "busy"}) for _ in range(5)),
        *(talk.rig.tell(status, child) for _ in range(5)),
    )
    assert {status for status, _ in late} <= {200, 204}
    assert len(await talk.told()) == 3
    human.hang_up()


async def test_only_the_first_word_counts(talk: Talk) -> None:
    talk.rig.twilio.callee(HUMAN, Busy())
    transfer_id = new_id("trf")
    assert (await talk.transfer(transfer_id))["outcome"] == "busy"
    (human,) = talk.phone.dialled
    form = {"AccountSid": ACCOUNT, "CallSid": human.sid, "CallStatus": "in-progress"}
    late = {**form, "ParentCallSid": talk.phone.sid}
    path = talk.callback("transfer/status", transfer_id)
    assert (await talk.rig.tell(path, late))[0] == 204
    assert await talk.told() == [STARTED, ("transfer.failed", {"reason": "busy"})]


async def test_a_stream_that_ends_for_a_transfer_is_not_brought_back(talk: Talk) -> None:
    """A REST update would cut the human off."""
    twilio = call_services(talk.rig.own.app).twilio_sessions
    twilio._comes_back_s = 0
    talk.rig.twilio.callee(HUMAN, Answer(after_ms=None))
    asked = asyncio.create_task(talk.transfer())
    human = await talk.phone.dialling()
    url = twilio.callback(talk.call_id, "status")
    form = {"AccountSid": ACCOUNT, "CallSid": talk.phone.sid, "StreamEvent": "stream-error"}
    async with asyncio.timeout(10):
        while twilio._streams.is_connected(talk.call_id):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (await talk.rig.tell(url[url.index("/v1/") :], form))[0] == 204
    await asyncio.gather(*twilio._tasks)
    assert sum("/Calls/CA" in line for line in talk.rig.twilio.requests) == 1
    human.pick_up()
    assert (await asked)["outcome"] == "transferred"
    human.hang_up()


async def test_a_transfer_counts_as_a_call(tmp_path: Path) -> None:
    async with talking(tmp_path, calls_per_second=0.01) as talk:
        assert (await talk.transfer())["outcome"] == "not_allowed"
        assert not talk.phone.dialled
