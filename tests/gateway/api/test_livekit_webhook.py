"""POST /livekit/webhook: its signature, and what the gateway concludes from the event."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.fernet import Fernet
from livekit.protocol.models import DisconnectReason

from core.legs import LEAVING, LEG, LOST, Leg
from core.models import Agent, AgentConfig, CallEvent, new_id, now
from gateway.api.livekit_webhook import _ENDINGS
from gateway.keys import TIMELINE
from gateway.store.call_status import Call
from gateway.store.database import Scope
from tests.gateway.api.test_agent_tools import WITH_HEADERS
from tests.support.inprocess import KEY, SECRET, Running, running, settings_in

pytestmark = pytest.mark.store


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_in(tmp_path)) as started:
        yield started


def left(call: Call, **changes: Any) -> dict[str, Any]:
    """Return a webhook as LiveKit writes it: protobuf's JSON, with kinds and reasons by name."""
    participant = {
        "sid": "PA_1",
        "identity": call.participant_identity,
        "kind": "SIP",
        "attributes": {"sip.callStatus": "hangup", "sip.callIDFull": "abc@host"},
        "disconnectReason": "CLIENT_INITIATED",
        **changes.pop("participant", {}),
    }
    participant["attributes"] = Leg("callee", call.id).attributes | participant["attributes"]
    return {
        "event": "participant_left",
        "id": new_id("EV"),
        "createdAt": str(int(now().timestamp())),
        "room": {"sid": "RM_1", "name": call.room_name},
        "participant": participant,
        "somethingNewer": {"a": 1},
        **changes,
    }


def sign(body: bytes, *, secret: str = SECRET, **claims: Any) -> str:
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    values = {
        "iss": KEY,
        "sha256": digest,
        "exp": datetime.now(UTC) + timedelta(minutes=5),
        **claims,
    }
    return jwt.encode({k: v for k, v in values.items() if v is not None}, secret, "HS256")


async def post(gateway: Running, body: bytes, token: str | None, **headers: str) -> tuple[int, Any]:
    sent = {"Content-Type": "application/webhook+json", **headers}
    if token is not None:
        sent["Authorization"] = token
    async with gateway.http.post(
        "/livekit/webhook", data=io.BytesIO(body), headers=sent
    ) as response:
        return response.status, await response.json()


async def deliver(gateway: Running, document: dict[str, Any]) -> int:
    body = json.dumps(document).encode()
    return (await post(gateway, body, sign(body)))[0]


async def record(gateway: Running, call: Call) -> Call:
    kept = await gateway.store.call(Scope(None), call.id)
    assert kept is not None
    return kept


async def answered(gateway: Running, *, ago_s: float = 5, **changes: Any) -> Call:
    call = await gateway.call(**changes)
    events = [
        CallEvent(type="call.dialing", data={"participantId": "PA_1", "sipCallId": "SCL_1"}),
        CallEvent(type="call.answered", at=now() - timedelta(seconds=ago_s)),
    ]
    await gateway.store.append(call.id, events, "gateway")
    return call


class TestSignature:
    async def test_a_good_one_with_and_without_bearer(self, gateway: Running) -> None:
        body = json.dumps(left(await answered(gateway))).encode()
        for token in (sign(body), f"Bearer {sign(body)}"):
            assert await post(gateway, body, token) == (200, {"status": "ok"})

    async def test_anything_else_is_refused(self, gateway: Running) -> None:
        call = await answered(gateway)
        body = json.dumps(left(call)).encode()
        past = datetime.now(UTC) - timedelta(hours=1)
        for token in (
            None,
            "",
            "Bearer",
            "not-a-token",
            "\udcff.\udcff.\udcff",
            sign(body, secret="another-secret-of-32-bytes-or-more"),
            sign(body, iss="APIother"),
            sign(body, exp=past),
            sign(body, exp=None),
            sign(body, sha256=None),
            sign(body, sha256="%%%"),
            sign(body, sha256=17),
            sign(body + b" "),
            jwt.encode({"iss": KEY, "exp": 2**31}, "", "none"),
        ):
            status, answer = await post(gateway, body, token)
            assert status == 401, token
            assert set(answer) == {"error", "code"}
        assert (await record(gateway, call)).status == "in-progress"
        assert len(await gateway.store.events(call.id)) == 3

    async def test_signed_nonsense_is_refused_too(self, gateway: Running) -> None:
        for body in (b"", b"[]", b"null", b"{", b'{"event": 7}', b'{"createdAt": "soon"}'):
            assert (await post(gateway, body, sign(body)))[0] in {400, 401}, body
        latin = '{"event":"é"}'.encode("latin-1")
        assert (await post(gateway, latin, sign(latin)))[0] == 400

    @pytest.mark.parametrize(
        "changes",
        [
            {"id": ""},
            {"id": "x" * 500},
            {"id": "a\x00b"},
            {"event": "Odd-Name"},
            {"event": ""},
            {"event": "x" * 100},
        ],
    )
    async def test_what_no_event_can_be_named_is_refused(
        self, gateway: Running, changes: dict[str, Any]
    ) -> None:
        call = await answered(gateway)
        assert await deliver(gateway, left(call, **changes)) == 400
        assert (await record(gateway, call)).status == "in-progress"

    async def test_a_huge_body_and_a_wrong_type(self, gateway: Running) -> None:
        body = json.dumps({"event": "x" * 2**20}).encode()
        assert (await post(gateway, body, sign(body)))[0] == 413
        body = b"{}"
        status, _ = await post(gateway, body, sign(body), **{"Content-Type": "text/plain"})
        assert status == 415

    async def test_without_keys_there_is_nobody_to_believe(self, tmp_path: Path) -> None:
        async with running(settings_in(tmp_path, livekit_api_secret=None)) as gateway:
            status, body = await post(gateway, b"{}", sign(b"{}"))
            assert (status, body["code"]) == (500, "LIVEKIT_NOT_CONFIGURED")


class TestConclusions:
    @pytest.mark.parametrize("reason", list(_ENDINGS))
    async def test_each_ending(self, gateway: Running, reason: DisconnectReason) -> None:
        name = DisconnectReason.Name(reason)
        call = await answered(gateway)
        assert await deliver(gateway, left(call, participant={"disconnectReason": name})) == 200
        kept = await record(gateway, call)
        wanted = _ENDINGS[reason]
        assert (kept.status, kept.disconnection_reason) == wanted
        end = (await gateway.store.events(call.id))[-1]
        assert (end.type, end.source) == ("call.ended", "livekit")
        assert end.data["disconnectReason"] == name

    @pytest.mark.parametrize("reason", ["CONNECTION_TIMEOUT", "UNKNOWN_REASON", 99])
    async def test_any_other_reason_is_a_fault(self, gateway: Running, reason: object) -> None:
        call = await answered(gateway)
        assert await deliver(gateway, left(call, participant={"disconnectReason": reason})) == 200
        kept = await record(gateway, call)
        assert (kept.status, kept.disconnection_reason) == ("failed", "agent_error")

    async def test_the_time_was_up(self, gateway: Running) -> None:
        call = await answered(gateway, ago_s=60)
        await deliver(gateway, left(call))
        assert (await record(gateway, call)).disconnection_reason == "max_duration_reached"

    async def test_a_leg_that_was_asked_to_leave_was_removed(self, gateway: Running) -> None:
        call = await answered(gateway)
        asked = {"attributes": {"sip.callStatus": "active", LEAVING: "true"}}
        await deliver(gateway, left(call, participant=asked))
        assert (await record(gateway, call)).disconnection_reason == "agent_hangup"

    async def test_a_leg_whose_service_died_was_not_hung_up(self, gateway: Running) -> None:
        """A restarted bridge marks the legs of its earlier run as lost and removes them."""
        call = await answered(gateway)
        lost = {
            "attributes": {"sip.callStatus": "active", LOST: "true"},
            "disconnectReason": "PARTICIPANT_REMOVED",
        }
        await deliver(gateway, left(call, participant=lost))
        kept = await record(gateway, call)
        assert (kept.status, kept.disconnection_reason) == ("failed", "agent_error")

    async def test_before_the_answer_it_is_the_dials_to_explain(self, gateway: Running) -> None:
        call = await gateway.call()
        ringing = {"attributes": {"sip.callStatus": "ringing"}}
        await deliver(gateway, left(call, participant=ringing))
        assert (await record(gateway, call)).status == "queued"
        assert (await gateway.store.events(call.id))[-1].type == "livekit.participant_left"

    async def test_twice_and_out_of_order_is_the_same_record(self, gateway: Running) -> None:
        call = await answered(gateway)
        gone = left(call)
        joined = left(call, event="participant_joined")
        for document in (gone, gone, joined, gone, joined):
            assert await deliver(gateway, document) == 200
        assert (await record(gateway, call)).disconnection_reason == "user_hangup"
        kinds = [event.type for event in await gateway.store.events(call.id)][3:]
        assert kinds == ["livekit.participant_left", "call.ended", "livekit.participant_joined"]

    async def test_others_are_no_news_of_a_call(self, gateway: Running) -> None:
        call = await answered(gateway)
        for document in (
            left(call, room={"name": "elsewhere"}, participant={"sid": "PA_9"}),
            left(call, participant={"kind": "STANDARD"}),
            left(call, participant={"kind": "AGENT"}),
            left(call, participant={"attributes": {LEG: ""}}),
            left(call, participant={"identity": "another"}),
            {"event": "room_started", "id": "EV_2", "room": {"name": call.room_name}},
        ):
            assert await deliver(gateway, document) == 200
        assert (await record(gateway, call)).status == "in-progress"
        assert len(await gateway.store.events(call.id)) == 3

    async def test_late_news_of_an_earlier_call_leaves_its_successor_alone(
        self, gateway: Running
    ) -> None:
        """The earlier call's phone had the same identity in the same room."""
        call = await answered(gateway)
        await deliver(gateway, left(call, participant={"sid": "PA_old"}))
        fresh = await gateway.call(room_name="second")
        old = {
            "sid": "PA_old",
            "attributes": {"sip.callStatus": "hangup", **Leg("callee", "call_old").attributes},
        }
        await deliver(gateway, left(fresh, participant=old))
        assert (await record(gateway, call)).status == "in-progress"
        assert (await record(gateway, fresh)).status == "queued"

    async def test_a_delayed_one_tells_when_it_was(self, gateway: Running) -> None:
        call = await answered(gateway, ago_s=50)
        at = int(now().timestamp()) - 20
        await deliver(gateway, left(call, createdAt=str(at)))
        ended_at = (await record(gateway, call)).ended_at
        assert ended_at is not None and ended_at.timestamp() == at

    @pytest.mark.parametrize("at", ["0", "-5", str(2**62), "-9223372036854775808", "4102444800"])
    async def test_an_impossible_time_is_now(self, gateway: Running, at: str) -> None:
        call = await answered(gateway)
        before = now()
        assert await deliver(gateway, left(call, createdAt=at)) == 200
        ended_at = (await record(gateway, call)).ended_at
        assert ended_at is not None and before <= ended_at <= now()

    async def test_numbers_and_metadata_stay_out_of_the_timeline(self, gateway: Running) -> None:
        call = await answered(gateway)
        private = {"attributes": {"sip.phoneNumber": "+1999"}, "metadata": "m3tadata"}
        await deliver(gateway, left(call, participant=private))
        told = str([event.data for event in await gateway.store.events(call.id)])
        assert "+1999" not in told and "m3tadata" not in told


async def test_every_event_that_is_kept_is_counted(gateway: Running) -> None:
    """A stored event counts once, whichever source reports it and however often."""
    call, other = await answered(gateway), await answered(gateway)
    webhook = left(call)
    for _ in range(3):
        assert await deliver(gateway, webhook) == 200
    joined = CallEvent(type="agent.joined")
    for source in ("worker", "reconciler", "worker"):
        await gateway.app[TIMELINE].append(other.id, [joined], source)
    async with gateway.http.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    counted = sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("switchroom_call_events_total{")
    )
    kept = [await gateway.store.events(each.id) for each in (call, other)]
    assert counted == sum(map(len, kept)) == 9


async def test_a_call_whose_agents_key_is_lost_still_ends(tmp_path: Path) -> None:
    config = AgentConfig.model_validate({"name": "Ann", "customTools": [WITH_HEADERS]})
    agent = Agent(id="ann", version=1, config=config)
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    async with running(settings_in(tmp_path, secrets_key=old)) as gateway:
        call = await answered(gateway, agent=agent)
    async with running(settings_in(tmp_path, secrets_key=new)) as gateway:
        assert await deliver(gateway, left(call)) == 200
        told = await gateway.store.events(call.id)
        assert [event.type for event in told][-2:] == ["livekit.participant_left", "call.ended"]
        ended = await record(gateway, call)
        assert (ended.status, ended.disconnection_reason) == ("completed", "user_hangup")
