"""Records of inbound calls: made once, by whichever report comes first, and ended correctly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from livekit.protocol.models import ParticipantInfo
from sqlalchemy import update

from core.jobs import JobMetadata
from core.legs import LEAVING, Leg
from core.models import AgentConfig, CallEvent, PhoneNumber, new_id, now
from core.tokens import TokenIssuer
from gateway.calls.inbound import call_id_of
from gateway.keys import AGENT_STORE, DATABASE, NUMBERS, call_services
from gateway.store.call_status import Call
from gateway.store.database import Scope
from gateway.store.tables import PhoneNumberRow
from tests.conftest import bearer
from tests.gateway.api.test_livekit_webhook import deliver
from tests.support.inprocess import SECRET, Running
from tests.support.livekit_stub import LiveKitStub, phone, running_with

pytestmark = pytest.mark.store

ISSUER = TokenIssuer(SECRET)


def worker() -> dict[str, str]:
    return bearer(ISSUER.for_worker("w1"))


CALLER = "+15105550123"


@pytest.fixture
def livekit() -> LiveKitStub:
    return LiveKitStub()


@pytest.fixture
async def gateway(tmp_path: Path, livekit: LiveKitStub) -> AsyncIterator[Running]:
    async with running_with(livekit, tmp_path) as gateway:
        await gateway.worker()
        yield gateway


async def number(gateway: Running, **changes: Any) -> PhoneNumber:
    """Return a number of acme's; by default it is bound to an agent that takes calls."""
    config = AgentConfig(name="Hosted", voice_mode="hosted", max_duration_ms=60_000)
    record = await gateway.app[AGENT_STORE].create(Scope("acme"), config)
    values = {
        "id": new_id("num"),
        "auth_id": "acme",
        "phone_number": "+15105550188",
        "country": "US",
        "provider": "sip",
        "direction": "both",
        "status": "active",
        "agent_id": record.id,
        "bound_at": now(),
        "created_at": now(),
    }
    attached = PhoneNumber(**{**values, **changes})
    await gateway.app[NUMBERS].insert(attached.model_copy(update={"agent_id": None}))
    # ``insert`` would refuse an agent that is missing or another tenant's.
    row = update(PhoneNumberRow).where(PhoneNumberRow.id == attached.id)
    async with gateway.app[DATABASE].write() as connection:
        await connection.execute(row.values(agent_id=attached.agent_id))
    return attached


class Caller:
    """A caller's phone, in the room that the dispatch rule creates for the call."""

    def __init__(self, number_id: str, auth_id: str | None = "acme") -> None:
        self.room = f"in_{CALLER}_{new_id('r')}"
        self.call_id = call_id_of(self.room)
        self.number_id = number_id
        self.participant = phone(
            f"sip_{CALLER}",
            sid=new_id("PA"),
            **{
                **Leg("caller", number_id).attributes,
                "sip.phoneNumber": CALLER,
                "sip.trunkPhoneNumber": "15105550188",
                "sip.callID": "SCL_1",
                "sip.callStatus": "ringing",
            },
        )
        label = {"number_id": number_id} | ({"auth_id": auth_id} if auth_id else {})
        self.participant.metadata = json.dumps(label)

    def webhook(self, event: str, **changes: Any) -> dict[str, Any]:
        participant = {
            "sid": self.participant.sid,
            "identity": self.participant.identity,
            "kind": "SIP",
            "metadata": self.participant.metadata,
            "attributes": dict(self.participant.attributes) | changes.pop("attributes", {}),
            **changes,
        }
        return {
            "event": event,
            "id": new_id("EV"),
            "createdAt": str(int(now().timestamp())),
            "room": {"sid": "RM_1", "name": self.room},
            "participant": participant,
        }

    def left(self, status: str, reason: str = "CLIENT_INITIATED") -> dict[str, Any]:
        attributes = {"sip.callStatus": status}
        return self.webhook("participant_left", attributes=attributes, disconnectReason=reason)

    async def asked_by_worker(self, gateway: Running, **changes: Any) -> tuple[int, Any]:
        body = {"numberId": self.number_id, "roomName": self.room, **changes}
        async with gateway.http.post(
            "/internal/calls/inbound", json=body, headers=worker()
        ) as answer:
            return answer.status, await answer.json()

    async def record(self, gateway: Running) -> Call:
        call = await gateway.store.call(Scope(None), self.call_id)
        assert call is not None
        return call

    async def outcome(self, gateway: Running) -> tuple[str, str | None]:
        call = await self.record(gateway)
        return call.status, call.disconnection_reason

    async def note(self, gateway: Running) -> str | None:
        (end,) = await gateway.store.events(self.call_id, types=["call.ended"])
        note = end.data.get("note")
        return None if note is None else str(note)


async def total(gateway: Running) -> int:
    async with gateway.http.get("/v1/calls", headers=bearer("acme-secret-0123456789")) as answer:
        return int((await answer.json())["total"])


class TestWhoeverIsFirst:
    async def test_the_webhook(self, gateway: Running) -> None:
        attached = await number(gateway)
        caller = Caller(attached.id)
        assert await deliver(gateway, caller.webhook("participant_joined")) == 200
        call = await caller.record(gateway)
        assert (call.status, call.direction, call.type) == ("ringing", "inbound", "pstn")
        assert (call.from_number, call.to_number) == (CALLER, "+15105550188")
        assert (call.agent_id, call.agent_version) == (attached.agent_id, 1)
        assert call.phone_number_id == attached.id
        assert call.participant_id == caller.participant.sid
        assert call.sip_call_id == "SCL_1"
        assert call.ringing_at == call.created_at

    async def test_the_worker(self, gateway: Running, livekit: LiveKitStub) -> None:
        caller = Caller((await number(gateway)).id)
        livekit.enter(caller.room, caller.participant)
        status, body = await caller.asked_by_worker(gateway)
        assert status == 200
        assert body["brief"]["callId"] == caller.call_id
        assert body["brief"]["direction"] == "inbound"
        assert body["brief"]["participantIdentity"] == f"sip_{CALLER}"
        assert body["brief"]["maxDurationMs"] == 60_000
        assert ISSUER.verify(body["token"], "switchroom:call") == caller.call_id

    async def test_all_at_once(self, gateway: Running, livekit: LiveKitStub) -> None:
        caller = Caller((await number(gateway)).id)
        livekit.enter(caller.room, caller.participant)
        joined = caller.webhook("participant_joined")
        inbound = call_services(gateway.app).inbound
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(deliver(gateway, joined))
                group.create_task(caller.asked_by_worker(gateway))
                group.create_task(inbound.admit(caller.room, caller.participant))
        assert await total(gateway) == 1
        kinds = [event.type for event in await gateway.store.events(caller.call_id)]
        assert sorted(kinds) == sorted(
            ["call.queued", "call.ringing", "livekit.participant_joined", "agent.dispatched"]
        )

    async def test_a_caller_who_is_in_the_room_a_moment_later(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        caller = Caller((await number(gateway)).id)
        asking = asyncio.create_task(caller.asked_by_worker(gateway))
        await asyncio.sleep(0.15)
        caller.participant.state = ParticipantInfo.State.JOINED
        livekit.enter(caller.room, caller.participant)
        await asyncio.sleep(0.15)
        assert not asking.done(), "it is still connecting"
        caller.participant.state = ParticipantInfo.State.ACTIVE
        assert (await asking)[0] == 200

    async def test_two_calls_of_one_caller(self, gateway: Running) -> None:
        attached = await number(gateway)
        for caller in (Caller(attached.id), Caller(attached.id)):
            await deliver(gateway, caller.webhook("participant_joined"))
        assert await total(gateway) == 2


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "note"),
        [
            ({"agent_id": None}, "number_without_agent"),
            ({"agent_id": "agt_gone"}, "agent_not_found"),
            ({"direction": "outbound"}, "number_outbound_only"),
            ({"direction": "outbound", "agent_id": None}, "number_outbound_only"),
            ({"status": "detaching"}, "number_not_attached"),
            ({"status": "pending"}, "number_not_attached"),
            ({"auth_id": "rival"}, "agent_not_found"),
        ],
    )
    async def test_with_a_record_that_says_why(
        self, gateway: Running, livekit: LiveKitStub, changes: dict[str, Any], note: str
    ) -> None:
        caller = Caller((await number(gateway, **changes)).id)
        livekit.enter(caller.room, caller.participant)
        status, body = await caller.asked_by_worker(gateway)
        assert (status, body["code"]) == (410, "CALL_ENDED")
        assert await caller.outcome(gateway) == ("failed", "agent_unavailable")
        assert await caller.note(gateway) == note
        await sent_away(livekit, caller)

    @pytest.mark.parametrize(
        ("config", "note"),
        [
            ({"enabled": False, "voice_mode": "hosted"}, "agent_disabled"),
            ({"voice_mode": "webhook"}, "webhook_not_configured"),
        ],
    )
    async def test_of_an_agent_that_takes_no_calls(
        self, gateway: Running, livekit: LiveKitStub, config: dict[str, Any], note: str
    ) -> None:
        agent = await gateway.app[AGENT_STORE].create(
            Scope("acme"), AgentConfig(name="Off", **config)
        )
        caller = Caller((await number(gateway, agent_id=agent.id)).id)
        livekit.enter(caller.room, caller.participant)
        await deliver(gateway, caller.webhook("participant_joined"))
        assert await caller.note(gateway) == note
        assert (await caller.record(gateway)).agent_id == agent.id
        await sent_away(livekit, caller)

    async def test_of_an_agent_whose_secrets_cannot_be_read(
        self, tmp_path: Path, livekit: LiveKitStub
    ) -> None:
        keys = [Fernet.generate_key().decode() for _ in range(2)]
        tool = {"name": "a", "description": "", "url": "https://h/", "headers": {"A": "b"}}
        config = AgentConfig.model_validate(
            {"name": "Hosted", "voiceMode": "hosted", "customTools": [tool]}
        )
        async with running_with(livekit, tmp_path, secrets_key=keys[0]) as gateway:
            agent = await gateway.app[AGENT_STORE].create(Scope("acme"), config)
            caller = Caller((await number(gateway, agent_id=agent.id)).id)
        livekit.enter(caller.room, caller.participant)
        async with running_with(livekit, tmp_path, secrets_key=keys[1]) as gateway:
            status, _ = await caller.asked_by_worker(gateway)
            assert status == 410
            assert await caller.note(gateway) == "credential_unreadable"
            await sent_away(livekit, caller)

    async def test_a_number_that_was_detached_meanwhile(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        """The number's dispatch rule still routed the call, and names the tenant."""
        caller = Caller("num_gone")
        livekit.enter(caller.room, caller.participant)
        await deliver(gateway, caller.webhook("participant_joined"))
        assert await caller.note(gateway) == "number_not_attached"
        call = await gateway.store.call(Scope("acme"), caller.call_id)
        assert call is not None and call.to_number == "15105550188"

    async def test_one_too_many(self, tmp_path: Path, livekit: LiveKitStub) -> None:
        async with running_with(livekit, tmp_path, max_concurrent_calls=1) as gateway:
            attached = await number(gateway)
            first, second = Caller(attached.id), Caller(attached.id)
            for caller in (first, second):
                livekit.enter(caller.room, caller.participant)
                await deliver(gateway, caller.webhook("participant_joined"))
            assert (await first.record(gateway)).status == "ringing"
            assert await second.note(gateway) == "concurrency_limit"
            await sent_away(livekit, second)

    async def test_nobody_is_there(self, gateway: Running) -> None:
        caller = Caller((await number(gateway)).id)
        assert (await caller.asked_by_worker(gateway))[0] == 410
        assert await total(gateway) == 0

    async def test_a_phone_that_is_no_caller_of_this_number(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        caller = Caller((await number(gateway)).id)
        livekit.enter(
            caller.room,
            phone("dialled"),
            phone("other", **Leg("caller", "num_other").attributes),
            ParticipantInfo(identity="browser", attributes=caller.participant.attributes),
        )
        assert (await caller.asked_by_worker(gateway))[0] == 410

    async def test_livekit_does_not_answer(self, gateway: Running, livekit: LiveKitStub) -> None:
        caller = Caller((await number(gateway)).id)
        livekit.failing[caller.room] = "internal"
        status, body = await caller.asked_by_worker(gateway)
        assert (status, body["code"]) == (503, "LIVEKIT_UNAVAILABLE")


class TestTheWorkersQuestion:
    @pytest.mark.parametrize(
        "token",
        [None, "", "x", ISSUER.for_call("call_1"), TokenIssuer("other").for_worker("w1")],
    )
    async def test_from_nobody_we_know(self, gateway: Running, token: str | None) -> None:
        headers = {} if token is None else bearer(token)
        body = {"numberId": "num_1", "roomName": "r"}
        async with gateway.http.post(
            "/internal/calls/inbound", json=body, headers=headers
        ) as answer:
            assert answer.status == 401

    @pytest.mark.parametrize(
        "changes",
        [
            {"numberId": None},
            {"numberId": ""},
            {"numberId": "x" * 65},
            {"numberId": 7},
            {"roomName": ""},
            {"roomName": "x" * 1025},
            {"roomName": ["in_1"]},
        ],
    )
    async def test_that_makes_no_sense(self, gateway: Running, changes: dict[str, Any]) -> None:
        assert (await Caller("num_1").asked_by_worker(gateway, **changes))[0] == 422


class TestTheEnd:
    @pytest.mark.parametrize(
        ("status", "reason", "wanted"),
        [
            ("hangup", "CLIENT_INITIATED", ("canceled", "user_hangup")),
            ("ringing", "CLIENT_INITIATED", ("failed", "agent_unavailable")),
            ("ringing", "PARTICIPANT_REMOVED", ("canceled", "canceled")),
            ("active", "CLIENT_INITIATED", ("completed", "user_hangup")),
        ],
    )
    async def test_as_the_webhook_tells_it(
        self, gateway: Running, status: str, reason: str, wanted: tuple[str, str]
    ) -> None:
        caller = Caller((await number(gateway)).id)
        await deliver(gateway, caller.webhook("participant_joined"))
        await deliver(gateway, caller.left(status, reason))
        assert await caller.outcome(gateway) == wanted

    async def test_a_leg_that_was_asked_to_leave_was_removed(self, gateway: Running) -> None:
        """It leaves by itself (CLIENT_INITIATED), like a leg that rang for too long."""
        caller = Caller((await number(gateway)).id)
        await deliver(gateway, caller.webhook("participant_joined"))
        asked = {"sip.callStatus": "ringing", LEAVING: "true"}
        left = caller.webhook(
            "participant_left", attributes=asked, disconnectReason="CLIENT_INITIATED"
        )
        await deliver(gateway, left)
        assert await caller.outcome(gateway) == ("canceled", "canceled")
        # The reconciler reads this reason if the call's agent does not finish it.
        (told,) = await gateway.store.events(caller.call_id, types=["livekit.participant_left"])
        assert told.data["disconnectReason"] == "PARTICIPANT_REMOVED"

    async def test_late_lost_doubled_and_backwards_it_is_the_same(self, gateway: Running) -> None:
        attached = await number(gateway)
        orders = ((0, 1), (1, 0), (1,), (1, 1, 0, 0, 1))
        for order in orders:
            caller = Caller(attached.id)
            told = (caller.webhook("participant_joined"), caller.left("hangup"))
            for index in order:
                assert await deliver(gateway, told[index]) == 200
            assert await caller.outcome(gateway) == ("canceled", "user_hangup")
            ends = await gateway.store.events(caller.call_id, types=["call.ended"])
            assert len(ends) == 1
        assert await total(gateway) == len(orders)

    async def test_where_an_agent_was_it_is_the_agents_to_tell(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        """The agent's report that it answered the call may still be in flight."""
        caller = Caller((await number(gateway)).id)
        livekit.enter(caller.room, caller.participant)
        await caller.asked_by_worker(gateway)
        await deliver(gateway, caller.left("hangup"))
        assert (await caller.record(gateway)).status == "ringing"
        await gateway.store.append(caller.call_id, [CallEvent(type="call.answered")], "worker")
        assert (await caller.record(gateway)).status == "in-progress"

    async def test_no_agent_comes(self, tmp_path: Path, livekit: LiveKitStub) -> None:
        """The dispatch is repeated once; then the caller is sent away."""
        async with running_with(livekit, tmp_path, agent_join_timeout_s=0.4) as gateway:
            await gateway.worker()
            attached = await number(gateway)
            caller = Caller(attached.id)
            livekit.enter(caller.room, caller.participant)
            await deliver(gateway, caller.webhook("participant_joined"))
            await sent_away(livekit, caller)
            assert await caller.outcome(gateway) == ("failed", "agent_unavailable")
        (again,) = livekit.dispatched
        assert (again.room, again.agent_name) == (caller.room, "switchroom")
        job = JobMetadata.model_validate_json(again.metadata)
        assert (job.call_id, job.identity) == (caller.call_id, f"agent-{caller.room}")

    async def test_a_worker_that_has_the_call_is_not_hurried(
        self, tmp_path: Path, livekit: LiveKitStub
    ) -> None:
        async with running_with(livekit, tmp_path, agent_join_timeout_s=0.2) as gateway:
            await gateway.worker()
            caller = Caller((await number(gateway)).id)
            livekit.enter(caller.room, caller.participant)
            await caller.asked_by_worker(gateway)
            inbound = call_services(gateway.app).inbound
            async with asyncio.timeout(10):
                while inbound.follows(caller.call_id):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert (await caller.record(gateway)).status == "ringing"
        assert livekit.removed == [] and livekit.dispatched == []


async def sent_away(livekit: LiveKitStub, caller: Caller) -> None:
    async with asyncio.timeout(10):
        while (caller.room, caller.participant.identity) not in livekit.removed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
