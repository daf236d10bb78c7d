"""Twilio numbers between SIP and streams: switched whole or not at all, and kept as switched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from core.errors import Conflict
from core.models import PhoneNumber
from gateway.keys import NUMBERS
from gateway.numbers.provider import ProviderRef
from gateway.numbers.repair import Repairs
from gateway.numbers.switching import Switching
from gateway.store.database import Scope
from tests.conftest import RIVAL, Answered
from tests.support.databases import OnPostgres
from tests.support.inprocess import NOWHERE
from tests.support.number_rig import (
    ACCOUNT,
    API,
    NUMBER,
    PUBLIC_URL,
    TWILIO,
    Rig,
    code,
    number_rig,
)

pytestmark = pytest.mark.store

NOTHING = Repairs()
THEIRS = {
    "voice_url": "https://theirs.example.com/voice",
    "voice_method": "GET",
    "voice_fallback_url": "https://theirs.example.com/sorry",
    "status_callback": "https://theirs.example.com/status",
}
STREAMED = {
    "trunk_sid": None,
    "voice_application_sid": "",
    "voice_url": f"{PUBLIC_URL}/v1/sessions/twilio",
    "voice_method": "POST",
    "voice_fallback_url": f"{PUBLIC_URL}/v1/sessions/twilio",
    "status_callback": "",
}
APP = "AP" + "3" * 32
BEFORE = ["urls", "trunk", "application"]
CHANGE = "POST .*/IncomingPhoneNumbers/"
UNASSIGN = "DELETE .*/PhoneNumbers/"
ASSIGN = "POST .*/PhoneNumbers$"
# Each step of a switch, in each direction, that changes something or may be refused.
TO_STREAM = [("stream", step) for step in (CHANGE, UNASSIGN)]
TO_SIP = [
    ("sip", step)
    for step in (
        "CreateSIPInboundTrunk",
        "CreateSIPDispatchRule",
        "GET /v1/Trunks",
        "POST /v1/Trunks$",
        "GET .*/OriginationUrls",
        "POST .*/OriginationUrls",
        ASSIGN,
        CHANGE,
    )
]


@asynccontextmanager
async def switching_rig(folder: Path, **settings: Any) -> AsyncIterator[Rig]:
    async with number_rig(folder, public_url=PUBLIC_URL, **settings) as rig:
        # The gateway's own first round is over before there is anything to repair.
        assert await rig.repair.reconcile() == NOTHING
        await rig.credential(TWILIO)
        yield rig


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with switching_rig(tmp_path) as rig:
        yield rig


def given(rig: Rig, before: str = "urls", phone_number: str = NUMBER) -> dict[str, Any]:
    """Add a number to the account that is routed to its tenant's own system."""
    columns: dict[str, Any] = dict(THEIRS)
    if before == "trunk":
        columns["trunk_sid"] = rig.twilio.make_trunk(ACCOUNT, "theirs")["sid"]
    elif before == "application":
        columns["voice_application_sid"] = APP
    return rig.twilio.give(ACCOUNT, phone_number, **columns)


async def attached(rig: Rig, via: str, **fields: Any) -> Any:
    return await rig.attached("twilio", credentialsRef="main", via=via, **fields)


async def patch(rig: Rig, number_id: str, **changes: Any) -> Answered:
    options = {"headers": changes.pop("headers")} if "headers" in changes else {}
    return await rig.api.request("PATCH", f"{API}/{number_id}", json=changes, **options)


async def detach(rig: Rig, number_id: str) -> Answered:
    return await rig.api.request("DELETE", f"{API}/{number_id}")


async def shown(rig: Rig, number_id: str) -> Any:
    return (await rig.api.get(f"{API}/{number_id}")).body["data"]


def streams(row: dict[str, Any]) -> bool:
    return {name: row[name] for name in STREAMED} == STREAMED


def uses_sip(rig: Rig, row: dict[str, Any]) -> bool:
    """Return True if the number is assigned to our trunk, and has its own URLs beneath."""
    own = {name: row[name] for name in THEIRS} == THEIRS
    trunk = rig.twilio.trunks.get(row["trunk_sid"] or "", {})
    return own and trunk.get("friendly_name") == "Switchroom (switchroom)"


class Halfway:
    """Holds switches up after their last change at Twilio, until the block ends."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        self._at, self._on = asyncio.Event(), asyncio.Event()
        route = rig.provisioner.provider.route

        async def held_up(*args: Any) -> ProviderRef:
            ref = await route(*args)
            self._at.set()
            await self._on.wait()
            return ref

        monkeypatch.setattr(rig.provisioner.provider, "route", held_up)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._on.set()

    async def reached(self) -> None:
        await asyncio.wait_for(self._at.wait(), 5)


def other(via: str) -> str:
    return "sip" if via == "stream" else "stream"


class TestAttach:
    @pytest.mark.parametrize("before", BEFORE)
    async def test_streamed_and_back(self, rig: Rig, before: str) -> None:
        row = given(rig, before)
        former = dict(row)
        view = await attached(rig, "stream", agentId="greeter")
        assert (view["via"], view["status"], view["inboundCallsEnabled"]) == (
            "stream",
            "active",
            True,
        )
        assert streams(row)
        assert rig.sip.names == [[], []]
        assert await rig.repair.reconcile() == NOTHING
        assert (await detach(rig, view["id"])).status == 200
        assert (row, await rig.rows()) == (former, [])

    async def test_needs_no_address_for_sip(self, tmp_path: Path) -> None:
        async with number_rig(tmp_path, public_url=PUBLIC_URL, sip_public_address=None) as rig:
            await rig.credential(TWILIO)
            row = given(rig)
            view = await attached(rig, "stream")
            assert streams(row)
            refused = await patch(rig, view["id"], via="sip")
            assert (refused.status, code(refused)) == (409, "SIP_ADDRESS_NOT_CONFIGURED")
            assert streams(row)

    @pytest.mark.parametrize(
        ("values", "status"),
        [
            ({}, 409),
            ({"gateway_url": "http://127.0.0.1:8080"}, 409),
            ({"public_url": "http://voice.example.com"}, 409),
            ({"public_url": "http://127.0.0.1:8080"}, 201),
            ({"gateway_url": PUBLIC_URL}, 201),
        ],
    )
    async def test_needs_an_address_that_twilio_takes(
        self, tmp_path: Path, values: dict[str, str], status: int
    ) -> None:
        async with number_rig(tmp_path, **values) as rig:
            await rig.credential(TWILIO)
            row = given(rig)
            former = dict(row)
            answer = await rig.attach("twilio", credentialsRef="main", via="stream")
            assert answer.status == status
            if status == 409:
                assert (code(answer), row, await rig.rows()) == (
                    "PUBLIC_URL_NOT_CONFIGURED",
                    former,
                    [],
                )

    @pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize("step", [CHANGE, UNASSIGN])
    async def test_undone(self, rig: Rig, step: str, late: bool) -> None:
        row = given(rig, "trunk")
        former = dict(row)
        fault = rig.twilio.fail(step, status=400, code=21402, late=late, times=1)
        answer = await rig.attach("twilio", credentialsRef="main", via="stream")
        assert fault.hit.is_set()
        assert (answer.status, code(answer)) == (422, "PROVIDER_REFUSED")
        assert (row, await rig.rows()) == (former, [])
        assert await rig.repair.reconcile() == NOTHING

    @pytest.mark.parametrize("refused", [False, True], ids=["taken", "refused"])
    async def test_needs_no_sip_service(self, tmp_path: Path, refused: bool) -> None:
        async with number_rig(tmp_path, public_url=PUBLIC_URL, livekit_sip_url=NOWHERE) as rig:
            await rig.credential(TWILIO)
            row = given(rig, "trunk")
            former = dict(row)
            if refused:
                rig.twilio.fail(UNASSIGN, status=400, code=21402, times=1)
                answer = await rig.attach("twilio", credentialsRef="main", via="stream")
                assert (answer.status, code(answer)) == (422, "PROVIDER_REFUSED")
            else:
                view = await attached(rig, "stream")
                assert streams(row)
                row["voice_url"] = THEIRS["voice_url"]
                assert (await rig.repair.reconcile()).restored == 1
                assert streams(row)
                assert (await patch(rig, view["id"], direction="inbound")).status == 200
                assert (await detach(rig, view["id"])).status == 200
            assert (row, await rig.rows()) == (former, [])

    async def test_a_switch_to_it_needs_none(self, tmp_path: Path) -> None:
        """Its trunk and rule are removed when the service is there again."""
        async with switching_rig(tmp_path) as rig:
            row = given(rig)
            view = await attached(rig, "sip")
            rig.sip.faults.fail("POST .*", status=503)
            assert (await patch(rig, view["id"], via="stream")).status == 200
            assert streams(row)
            assert rig.sip.names == [[view["id"]]] * 2
            rig.sip.faults.clear()
            assert (await rig.repair.reconcile()).removed == 2
            assert rig.sip.names == [[], []]

    async def test_bought(self, rig: Rig) -> None:
        rig.twilio.offer("+14155550100")
        answer = await rig.api.post(f"{API}/buy", json={"credentialsRef": "main", "via": "stream"})
        assert (answer.status, answer.body["data"]["via"]) == (201, "stream")
        (row,) = rig.twilio.numbers.values()
        assert streams(row)
        assert rig.sip.names == [[], []]

    async def test_is_twilios_alone(self, rig: Rig) -> None:
        view = await rig.attached()
        for answer in (
            await rig.attach(phoneNumber="+14155550124", via="stream"),
            await patch(rig, view["id"], via="stream", direction="inbound"),
        ):
            assert (answer.status, code(answer)) == (422, "VALIDATION_ERROR")
            assert [each["field"] for each in answer.body["meta"]["details"]] == ["via"]
        assert await shown(rig, view["id"]) == view


class TestSwitch:
    @pytest.mark.parametrize("before", BEFORE)
    async def test_there_and_back(self, rig: Rig, before: str) -> None:
        row = given(rig, before)
        former = dict(row)
        view = await attached(rig, "sip")
        assert view["via"] == "sip"
        for _ in range(2):
            changed = await patch(
                rig, view["id"], via="stream", agentId="greeter", direction="inbound"
            )
            wanted = {**view, "via": "stream", "agentId": "greeter", "direction": "inbound"}
            assert (changed.status, changed.body["data"]) == (200, wanted)
            assert await shown(rig, view["id"]) == wanted
            assert streams(row)
            assert rig.sip.names == [[], []]
            assert await rig.repair.reconcile() == NOTHING
            back = await patch(rig, view["id"], via="sip")
            assert back.body["data"] == {**wanted, "via": "sip"}
            assert uses_sip(rig, row)
            assert rig.sip.names == [[view["id"]]] * 2
            assert await rig.repair.reconcile() == NOTHING
        assert (await detach(rig, view["id"])).status == 200
        assert row == former

    @pytest.mark.parametrize("before", BEFORE)
    async def test_detached_after_it(self, rig: Rig, before: str) -> None:
        row = given(rig, before)
        former = dict(row)
        view = await attached(rig, "sip")
        assert (await patch(rig, view["id"], via="stream")).status == 200
        assert (await detach(rig, view["id"])).status == 200
        assert (row, rig.sip.names) == (former, [[], []])

    async def test_to_the_same_asks_nobody(self, rig: Rig) -> None:
        given(rig)
        view = await attached(rig, "stream")
        rig.twilio.requests.clear()
        assert (await patch(rig, view["id"], via="stream")).body["data"] == view
        assert rig.twilio.requests == []

    @pytest.mark.attack
    async def test_of_another_tenant(self, rig: Rig) -> None:
        row = given(rig)
        view = await attached(rig, "sip")
        former = dict(row)
        answer = await patch(rig, view["id"], via="stream", headers=RIVAL)
        assert (answer.status, code(answer)) == (404, "NUMBER_NOT_FOUND")
        assert (row, await shown(rig, view["id"])) == (former, view)

    async def test_urls_that_were_changed_beneath_the_trunk_are_kept(self, rig: Rig) -> None:
        row = given(rig)
        view = await attached(rig, "sip")
        for turn in range(2):
            new = f"https://new.example.com/{turn}"
            row.update(voice_url=new, status_callback="")
            for via in ("stream", "sip"):
                assert (await patch(rig, view["id"], via=via)).status == 200
            assert (row["voice_url"], row["status_callback"]) == (new, "")
            assert row["voice_method"] == "GET"

    async def test_a_number_attached_before_its_urls_were_kept(self, rig: Rig) -> None:
        row = given(rig)
        former = dict(row)
        view = await attached(rig, "sip")
        (stored,) = await rig.rows()
        known = ("trunkSid", "voiceApplicationSid")
        before = {name: stored.provider_ref["before"][name] for name in known}
        ref = {**stored.provider_ref, "before": before}
        await rig.own.app[NUMBERS].move(Scope(None), stored.id, {"active"}, {"provider_ref": ref})
        assert (await patch(rig, view["id"], via="stream")).status == 200
        assert streams(row)
        assert (await detach(rig, view["id"])).status == 200
        assert row == former


class TestUndone:
    @pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize(("via", "step"), [*TO_STREAM, *TO_SIP])
    async def test_at_once(self, rig: Rig, via: str, step: str, late: bool) -> None:
        row, view, former = await self.start(rig, other(via))
        fault = self.fail(rig, step, late=late, times=1)
        answer = await patch(rig, view["id"], via=via, agentId="greeter", direction="outbound")
        assert fault.hit.is_set()
        wanted = (500, "LIVEKIT_ERROR") if "SIP" in step else (422, "PROVIDER_REFUSED")
        assert (answer.status, code(answer)) == wanted
        await self.is_undone(rig, row, view, former)
        assert (await patch(rig, view["id"], via=via)).status == 200
        assert streams(row) if via == "stream" else uses_sip(rig, row)

    @pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize(("via", "step"), [*TO_STREAM, *TO_SIP])
    async def test_after_a_kill(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, via: str, step: str, late: bool
    ) -> None:
        """The gateway stops at a step and undoes nothing; the repair of the next one does."""
        row, view, former = await self.start(rig, other(via))
        self.fail(rig, step, late=late, times=1)
        await self.stop_halfway(rig, monkeypatch, view, via)
        (stored,) = await rig.rows()
        assert (stored.status, stored.via) == ("active", other(via))
        assert await rig.repair.reconcile() == Repairs(undone=1)
        await self.is_undone(rig, row, view, former)

    @pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize(("via", "step"), [*TO_STREAM, *TO_SIP])
    async def test_detached_after_a_kill(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, via: str, step: str, late: bool
    ) -> None:
        row = given(rig, "trunk")
        origin = dict(row)
        _, view, _ = await self.start(rig, other(via), row)
        self.fail(rig, step, late=late, times=1)
        await self.stop_halfway(rig, monkeypatch, view, via)
        assert (await detach(rig, view["id"])).status == 200
        assert (row, rig.sip.names, await rig.rows()) == (origin, [[], []], [])

    @pytest.mark.parametrize("via", ["stream", "sip"])
    @pytest.mark.parametrize("step", [CHANGE, UNASSIGN, ASSIGN])
    async def test_switched_on_after_a_kill(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, step: str, via: str
    ) -> None:
        """A half switch can be completed or taken back by hand."""
        row, view, _ = await self.start(rig, "stream" if step == ASSIGN else "sip")
        self.fail(rig, step, late=True, times=1)
        await self.stop_halfway(rig, monkeypatch, view, other(view["via"]))
        assert (await patch(rig, view["id"], via=via)).body["data"] == {**view, "via": via}
        assert streams(row) if via == "stream" else uses_sip(rig, row)
        assert await rig.repair.reconcile() == NOTHING

    @pytest.mark.parametrize("via", ["stream", "sip"])
    async def test_twilio_goes_away_halfway(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, via: str
    ) -> None:
        row, view, former = await self.start(rig, other(via))
        agent = await rig.agent()
        async with Halfway(rig, monkeypatch) as halfway:
            asking = asyncio.create_task(patch(rig, view["id"], via=via, agentId=agent))
            await halfway.reached()
            assert (await rig.api.request("DELETE", f"/v1/agents/{agent}")).status == 200
            rig.twilio.fail(".", status=503)
        assert (await asking).status == 404
        assert await shown(rig, view["id"]) == view
        assert await rig.repair.reconcile() == Repairs(failed=1)
        rig.twilio.faults.clear()
        assert await rig.repair.reconcile() == Repairs(undone=1)
        await self.is_undone(rig, row, view, former)

    async def test_the_credential_is_refused(self, rig: Rig) -> None:
        row, view, former = await self.start(rig, "sip")
        rig.twilio.accounts[ACCOUNT] = "another-token"
        answer = await patch(rig, view["id"], via="stream")
        assert (answer.status, code(answer)) == (422, "CREDENTIAL_REFUSED")
        await self.is_undone(rig, row, view, former)

    async def test_the_number_was_sold(self, rig: Rig) -> None:
        row, view, former = await self.start(rig, "sip")
        del rig.twilio.numbers[row["sid"]]
        answer = await patch(rig, view["id"], via="stream")
        assert (answer.status, code(answer)) == (422, "NUMBER_NOT_IN_ACCOUNT")
        await self.is_undone(rig, row, view, former)

    @pytest.mark.parametrize("via", ["stream", "sip"])
    async def test_the_agent_is_deleted_meanwhile(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, via: str
    ) -> None:
        row, view, former = await self.start(rig, other(via))
        agent = await rig.agent()
        async with Halfway(rig, monkeypatch) as halfway:
            asking = asyncio.create_task(patch(rig, view["id"], via=via, agentId=agent))
            await halfway.reached()
            assert (await rig.api.request("DELETE", f"/v1/agents/{agent}")).status == 200
        answer = await asking
        assert (answer.status, code(answer)) == (404, "AGENT_NOT_FOUND")
        await self.is_undone(rig, row, view, former)

    @pytest.mark.parametrize("via", ["stream", "sip"])
    async def test_the_gateway_is_told_to_stop(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, via: str
    ) -> None:
        row, view, former = await self.start(rig, other(via))
        async with Halfway(rig, monkeypatch) as halfway:
            asking = asyncio.create_task(patch(rig, view["id"], via=via))
            await halfway.reached()
            monkeypatch.undo()
            await rig.provisioner.drain(0)
        answer = await asking
        assert (answer.status, code(answer)) == (503, "UNAVAILABLE")
        await self.is_undone(rig, row, view, former)

    async def test_the_databases_confirmation_is_lost(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the database has kept is not undone at Twilio."""
        row, view, _ = await self.start(rig, "sip")
        move = rig.provisioner.numbers.move

        async def lost(*args: Any, **options: Any) -> PhoneNumber | None:
            done = await move(*args, **options)
            if "via" in args[3]:
                raise TimeoutError
            return done

        monkeypatch.setattr(rig.provisioner.numbers, "move", lost)
        assert (await patch(rig, view["id"], via="stream")).status == 503
        monkeypatch.undo()
        assert (await shown(rig, view["id"]))["via"] == "stream"
        assert streams(row)

    # --- steps

    async def start(
        self, rig: Rig, via: str, row: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], Any, dict[str, Any]]:
        row = given(rig, "application") if row is None else row
        view = await attached(rig, via)
        return row, view, dict(row)

    def fail(self, rig: Rig, step: str, **how: Any) -> Any:
        if "SIP" in step:
            return rig.sip.faults.fail(step, **how)
        return rig.twilio.fail(step, status=400, code=21402, **how)

    async def stop_halfway(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, view: Any, via: str
    ) -> None:
        async def nothing(self: Switching, held: PhoneNumber, error: BaseException) -> None:
            pass

        with monkeypatch.context() as patched:
            patched.setattr(Switching, "_switch_back", nothing)
            assert (await patch(rig, view["id"], via=via)).status in (422, 500)

    async def is_undone(
        self, rig: Rig, row: dict[str, Any], view: Any, former: dict[str, Any]
    ) -> None:
        assert await shown(rig, view["id"]) == view
        assert row == former
        assert rig.sip.names == ([[view["id"]]] * 2 if view["via"] == "sip" else [[], []])
        assert await rig.repair.reconcile() == NOTHING


class TestAtOnce:
    """A switch and other requests for the same number."""

    async def test_many_switches(self, rig: Rig) -> None:
        row = given(rig)
        view = await attached(rig, "sip")
        answers = await asyncio.gather(*(patch(rig, view["id"], via="stream") for _ in range(5)))
        statuses = [answer.status for answer in answers]
        assert 200 in statuses
        assert {code(answer) for answer in answers if answer.status != 200} <= {"NUMBER_BUSY"}
        assert streams(row)
        assert await rig.repair.reconcile() == NOTHING
        answers = await asyncio.gather(
            *(patch(rig, view["id"], via=via) for via in ["sip", "stream"] * 3)
        )
        assert {answer.status for answer in answers} <= {200, 409}
        via = (await shown(rig, view["id"]))["via"]
        assert streams(row) if via == "stream" else uses_sip(rig, row)
        assert await rig.repair.reconcile() == NOTHING

    async def test_a_switch_goes_on_without_its_client(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        row = given(rig)
        view = await attached(rig, "sip")
        async with Halfway(rig, monkeypatch) as halfway:
            asking = asyncio.create_task(patch(rig, view["id"], via="stream"))
            await halfway.reached()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            for busy in (
                await detach(rig, view["id"]),
                await patch(rig, view["id"], via="stream"),
                await patch(rig, view["id"], via="sip"),
            ):
                assert (busy.status, code(busy)) == (409, "NUMBER_BUSY")
            # Other changes do not wait, and the repair leaves the number alone.
            assert (await patch(rig, view["id"], agentId="greeter")).status == 200
            assert await rig.repair.reconcile() == NOTHING
        await rig.provisioner.drain(5)
        wanted = {**view, "via": "stream", "agentId": "greeter"}
        assert await shown(rig, view["id"]) == wanted
        assert streams(row)

    @pytest.mark.parametrize("via", ["stream", "sip"])
    async def test_another_gateway_is_at_it(self, rig: Rig, via: str) -> None:
        row = given(rig)
        view = await attached(rig, other(via))
        former = dict(row)
        (stored,) = await rig.rows()
        await self.hold(rig, stored, "another:8080", time.time() + 60, via)
        trunks = dict(rig.sip.registry.inbound)
        for busy in (await detach(rig, view["id"]), await patch(rig, view["id"], via=via)):
            assert (busy.status, code(busy)) == (409, "NUMBER_BUSY")
        if via == "sip":
            # The other gateway has made the trunk and not noted it yet.
            await rig.provisioner.objects.put_trunk(stored, ())
            trunks = dict(rig.sip.registry.inbound)
        assert await rig.repair.reconcile() == NOTHING
        assert (row, dict(rig.sip.registry.inbound)) == (former, trunks)
        # It died: its time is over.
        await self.hold(rig, stored, "another:8080", time.time() - 1, via)
        assert await rig.repair.reconcile() == Repairs(undone=1)
        assert (await shown(rig, view["id"]), row) == (view, former)
        assert [len(names) for names in rig.sip.names] == ([1, 1] if via == "stream" else [0, 0])

    async def test_another_gateway_took_it_over(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A gateway that stood still for minutes changes nothing at Twilio any more."""
        row = given(rig)
        view = await attached(rig, "sip")
        former = dict(row)
        (stored,) = await rig.rows()
        route = rig.provisioner.provider.route

        async def late(*args: Any) -> ProviderRef:
            monkeypatch.undo()
            await self.hold(rig, stored, "another:8080", time.time() + 60, "stream")
            return await route(*args)

        monkeypatch.setattr(rig.provisioner.provider, "route", late)
        answer = await patch(rig, view["id"], via="stream")
        assert (answer.status, code(answer)) == (409, "NUMBER_BUSY")
        (stored,) = await rig.rows()
        assert (row, ProviderRef.of(stored).held_by) == (former, "another:8080")

    async def test_a_switch_ends_while_another_request_is_checked(self, rig: Rig) -> None:
        """A request that read the row before the switch changes nothing by what it read."""
        row = given(rig)
        former = dict(row)
        view = await attached(rig, "sip")
        (before,) = await rig.rows()
        account, owned = await rig.provisioner.provider.find(before)
        assert (await patch(rig, view["id"], via="stream")).status == 200

        async def keep(values: dict[str, Any]) -> PhoneNumber:
            raise AssertionError("it was switched")

        with pytest.raises(Conflict, match="switched or detached"):
            await Switching(rig.provisioner).switch(before, "stream", account, owned, keep)
        with pytest.raises(Conflict, match="switched or detached"):
            await rig.provisioner.detach(before, release=False)
        assert streams(row)
        assert (await shown(rig, view["id"]))["status"] == "active"
        assert (await detach(rig, view["id"])).status == 200
        assert row == former

    async def test_a_switch_begins_while_drift_is_repaired(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The repair leaves the number to the gateway that has begun to switch it."""
        given(rig)
        await attached(rig, "sip")
        (stored,) = await rig.rows()
        rig.sip.registry.rules.clear()
        get = rig.provisioner.numbers.get

        async def switched(*args: Any) -> PhoneNumber | None:
            await self.hold(rig, stored, "another:8080", time.time() + 60, "stream")
            return await get(*args)

        monkeypatch.setattr(rig.provisioner.numbers, "get", switched)
        assert await rig.repair.reconcile() == NOTHING
        assert rig.sip.registry.rules == {}

    async def hold(self, rig: Rig, number: PhoneNumber, by: str, until: float, via: Any) -> None:
        held = ProviderRef.of(number).model_copy(
            update={"held_by": by, "held_until": until, "switching": via}
        )
        moved = await rig.own.app[NUMBERS].move(
            Scope(None), number.id, {"active"}, {"provider_ref": held.wire()}
        )
        assert moved is not None


class TestAtOnceOnPostgres(OnPostgres, TestAtOnce):
    @pytest.fixture
    async def rig(self, tmp_path: Path, url: str) -> AsyncIterator[Rig]:
        async with switching_rig(tmp_path, database_url=url) as rig:
            yield rig


class TestDrift:
    @pytest.mark.parametrize(
        "drift",
        [
            {"voice_url": "https://by-hand.example.com"},
            {"voice_url": ""},
            {"voice_method": "GET"},
            {"voice_application_sid": APP},
            {"trunk_sid": "theirs"},
        ],
    )
    async def test_changed_at_twilio(self, rig: Rig, drift: dict[str, str]) -> None:
        row = given(rig)
        former = dict(row)
        view = await attached(rig, "stream")
        theirs = rig.twilio.make_trunk(ACCOUNT, "theirs")["sid"]
        row.update(drift)
        if "trunk_sid" in drift:
            row["trunk_sid"] = theirs
        assert await rig.repair.reconcile() == Repairs(restored=1)
        assert streams(row)
        assert await rig.repair.reconcile() == NOTHING
        assert (await detach(rig, view["id"])).status == 200
        assert row == former

    async def test_an_account_is_asked_once(self, rig: Rig) -> None:
        numbers = [f"+1415555020{turn}" for turn in range(4)]
        rows = [given(rig, phone_number=number) for number in numbers]
        for number in numbers[:3]:
            await attached(rig, "stream", phoneNumber=number)
        await attached(rig, "sip", phoneNumber=numbers[3])
        rows[0]["voice_url"] = rows[3]["voice_url"] = "https://by-hand.example.com"
        rig.twilio.requests.clear()
        assert await rig.repair.reconcile() == Repairs(restored=1)
        assert [streams(row) for row in rows] == [True, True, True, False]
        rig.twilio.requests.clear()
        assert await rig.repair.reconcile() == NOTHING
        assert len(rig.twilio.requests) == 1

    async def test_numbers_of_sip_ask_nobody(self, rig: Rig) -> None:
        given(rig)
        await attached(rig, "sip")
        rig.twilio.requests.clear()
        assert await rig.repair.reconcile() == NOTHING
        assert rig.twilio.requests == []

    async def test_another_public_url(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        """After PUBLIC_URL was changed, Twilio is told the new one, and forgets it at the end."""
        row = given(rig)
        former = dict(row)
        view = await attached(rig, "stream")
        provider = rig.provisioner.provider
        moved = provider._settings.model_copy(update={"public_url": "https://new.example.com"})
        monkeypatch.setattr(provider, "_settings", moved)
        assert await rig.repair.reconcile() == Repairs(restored=1)
        assert row["voice_url"] == "https://new.example.com/v1/sessions/twilio"
        assert (await detach(rig, view["id"])).status == 200
        assert row == former

    @pytest.mark.parametrize("first", ["stream", "sip"])
    async def test_routed_elsewhere_before_it_is_detached(self, rig: Rig, first: str) -> None:
        row = given(rig, "trunk")
        view = await attached(rig, first)
        assert (await patch(rig, view["id"], via="stream")).status == 200
        row["voice_url"] = "https://by-hand.example.com"
        elsewhere = dict(row)
        assert (await detach(rig, view["id"])).status == 200
        assert row == elsewhere

    async def test_objects_of_a_streamed_number_are_removed(self, rig: Rig) -> None:
        given(rig)
        view = await attached(rig, "sip")
        rig.sip.faults.fail("DeleteSIP")
        assert (await patch(rig, view["id"], via="stream")).status == 200
        assert rig.sip.names == [[view["id"]]] * 2
        rig.sip.faults.clear()
        assert await rig.repair.reconcile() == Repairs(removed=2)
        assert rig.sip.names == [[], []]

    async def test_twilio_is_away(self, rig: Rig) -> None:
        """Numbers of others are repaired all the same."""
        given(rig)
        await attached(rig, "stream")
        await rig.attached(phoneNumber="+14155550124")
        rig.sip.registry.inbound.clear()
        rig.twilio.fail(".", status=503)
        assert await rig.repair.reconcile() == Repairs(restored=1, failed=1)

    async def test_one_that_was_sold_does_not_keep_the_others(self, rig: Rig) -> None:
        rows = [given(rig, phone_number=f"+1415555020{turn}") for turn in range(2)]
        for row in rows:
            await attached(rig, "stream", phoneNumber=row["phone_number"])
            row["voice_url"] = ""
        del rig.twilio.numbers[rows[0]["sid"]]
        assert await rig.repair.reconcile() == Repairs(restored=1, failed=1)
        assert streams(rows[1])
