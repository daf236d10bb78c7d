"""Workers' requests for briefs, their events and heartbeats, and which tokens are accepted."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from livekit.api import AccessToken, VideoGrants

from core.events import ended
from core.models import CallEvent, Turn, new_id
from core.tokens import CALL_TOKEN_TTL, TokenIssuer
from gateway.store.database import Scope
from gateway.store.places.fleet import WORKER_STALE
from tests.conftest import bearer
from tests.support.inprocess import KEY, SECRET, Running, running, settings_in

pytestmark = pytest.mark.store

ISSUER = TokenIssuer(SECRET)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_in(tmp_path)) as started:
        yield started


async def ask(
    gateway: Running, method: str, path: str, headers: dict[str, str], **options: Any
) -> tuple[int, Any]:
    async with gateway.http.request(method, path, headers=headers, **options) as response:
        return response.status, await response.json()


async def tell(gateway: Running, call_id: str, *events: object) -> tuple[int, Any]:
    headers = bearer(ISSUER.for_call(call_id))
    path = f"/internal/calls/{call_id}/events"
    return await ask(gateway, "POST", path, headers, json={"events": list(events)})


def event(**changes: Any) -> dict[str, Any]:
    return {**CallEvent(type="agent.joined").wire(), **changes}


def expired(call_id: str) -> str:
    return until(call_id, datetime.now(UTC) - timedelta(1))


def aged(call_id: str, age_s: int) -> str:
    return until(call_id, datetime.now(UTC) + CALL_TOKEN_TTL - timedelta(seconds=age_s))


def until(call_id: str, expires: datetime) -> str:
    claims = {"sub": call_id, "aud": "switchroom:call", "exp": expires}
    return jwt.encode(claims, ISSUER._key, algorithm="HS256")


def nested() -> str:
    deep = base64.urlsafe_b64encode(b"[" * 5000).decode().rstrip("=")
    return f"{deep}.e30.AA"


class TestToken:
    @pytest.mark.parametrize("method", ["GET", "POST"])
    async def test_only_the_calls_own_is_taken(self, gateway: Running, method: str) -> None:
        call, other = await gateway.call(), await gateway.call()
        livekit = AccessToken(KEY, SECRET).with_identity(call.id).with_grants(VideoGrants())
        none = jwt.encode({"sub": call.id, "aud": "switchroom:call", "exp": 2**31}, "", "none")
        path = f"/internal/calls/{call.id}" + ("/events" if method == "POST" else "")
        body = {"events": [event()]}
        for headers in (
            {},
            bearer(""),
            {"Authorization": ISSUER.for_call(call.id)},
            {"Authorization": f"Basic {ISSUER.for_call(call.id)}"},
            bearer(ISSUER.for_call(other.id)),
            bearer(ISSUER.for_worker(call.id)),
            bearer(TokenIssuer("another secret").for_call(call.id)),
            bearer(expired(call.id)),
            bearer(livekit.to_jwt()),
            bearer(none),
            bearer(nested()),
            bearer("\udcff\udcfe"),
            bearer("é.é.é"),
            bearer("acme-secret-0123456789"),
        ):
            status, answer = await ask(gateway, method, path, headers, json=body)
            assert (status, set(answer)) == (401, {"error", "code"}), headers
        assert len(await gateway.store.events(call.id)) == 1

    async def test_without_livekit_keys_nobody_is_a_worker(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path, livekit_api_key=None, livekit_api_secret=None)
        async with running(settings) as gateway:
            assert (await tell(gateway, "call_x", event()))[0] == 401


class TestBrief:
    async def brief(self, gateway: Running, call_id: str) -> tuple[int, Any]:
        path = f"/internal/calls/{call_id}"
        return await ask(gateway, "GET", path, bearer(ISSUER.for_call(call_id)))

    async def test_what_the_worker_needs(self, gateway: Running) -> None:
        call = await gateway.call()
        status, body = await self.brief(gateway, call.id)
        assert status == 200
        assert body["agent"]["id"] == "greeter"
        assert body["maxDurationMs"] == 60_000
        assert body["participantIdentity"] == "caller"

    async def test_no_such_call(self, gateway: Running) -> None:
        path = "/internal/calls/call_nope"
        async with gateway.http.get(path, headers=bearer(aged("call_nope", 11))) as answer:
            assert (answer.status, (await answer.json())["code"]) == (404, "CALL_NOT_FOUND")

    async def test_a_call_that_is_not_on_record_yet(self, gateway: Running) -> None:
        """A new call's agent may ask before the call's record is written."""
        path = "/internal/calls/call_nope"
        async with gateway.http.get(path, headers=bearer(aged("call_nope", 5))) as answer:
            assert (answer.status, (await answer.json())["code"]) == (425, "CALL_NOT_READY")
            assert int(answer.headers["Retry-After"]) > 0

    async def test_a_call_that_takes_no_agent_any_more(self, gateway: Running) -> None:
        done, alone = await gateway.call(), await gateway.call(agent=None)
        over = CallEvent(type="call.ended", data=ended("failed", "dial_failed"))
        await gateway.store.append(done.id, [over], "gateway")
        for call in (done, alone):
            status, body = await self.brief(gateway, call.id)
            assert (status, body["code"]) == (410, "CALL_ENDED")


class TestEvents:
    async def test_they_are_kept_once_and_fold(self, gateway: Running) -> None:
        call = await gateway.call()
        answered = event(type="call.answered")
        assert await tell(gateway, call.id, answered, answered) == (
            200,
            {"accepted": 1, "over": False},
        )
        assert (await tell(gateway, call.id, answered))[1]["accepted"] == 0
        kept = await gateway.store.call(Scope(None), call.id)
        assert kept is not None and kept.status == "in-progress"

    @pytest.mark.parametrize(
        "events",
        [
            [],
            [event() for _ in range(101)],
            [event(type="Call.Answered")],
            [event(type="a b")],
            [event(type="x\nevent: ended")],
            [event(type="")],
            [event(type="a" * 65)],
            [event(id="")],
            [event(id="x" * 201)],
            [event(id=7)],
            [event(at="2026-01-31T12:00:00")],
            [event(at="soon")],
            [event(at="0001-01-01T00:00:00+14:00")],
            [event(at="9999-12-31T23:59:59-14:00")],
            [event(data=[])],
            [event(data=None)],
            [event(type="turn", data={})],
            [event(type="turn", data={"id": "t", "startMs": "late"})],
            [event(type="call.ended", data=ended("busy", "dial_busy", sip_status_code=10**30))],
            ["text"],
            [None],
        ],
    )
    async def test_what_cannot_be_kept_or_shown_is_refused(
        self, gateway: Running, events: list[object]
    ) -> None:
        call = await gateway.call()
        status, body = await tell(gateway, call.id, *events)
        assert (status, body["code"]) == (422, "VALIDATION_ERROR")
        assert len(await gateway.store.events(call.id)) == 1

    async def test_nul_is_no_json_of_ours(self, gateway: Running) -> None:
        call = await gateway.call()
        status, body = await tell(gateway, call.id, event(data={"heard": "a\x00b"}))
        assert (status, body["code"]) == (400, "INVALID_JSON")

    async def test_a_hundred_and_large_ones_are_taken(self, gateway: Running) -> None:
        call = await gateway.call()
        many = [event(id=new_id("evt"), data={"heard": "ü" * 1000}) for _ in range(100)]
        assert (await tell(gateway, call.id, *many))[1]["accepted"] == 100
        huge = io.BytesIO(json.dumps({"events": [event(data={"heard": "x" * 2**20})]}).encode())
        headers = {**bearer(ISSUER.for_call(call.id)), "Content-Type": "application/json"}
        path = f"/internal/calls/{call.id}/events"
        status, body = await ask(gateway, "POST", path, headers, data=huge)
        assert (status, body["code"]) == (413, "PAYLOAD_TOO_LARGE")

    async def test_another_calls_event_is_neither_shown_nor_taken(self, gateway: Running) -> None:
        mine, other = await gateway.call(), await gateway.call(auth_id="rival")
        theirs = event(type="barge_in", data={"heard": "a secret"})
        await tell(gateway, other.id, theirs)
        status, body = await tell(gateway, mine.id, {**theirs, "data": {}})
        assert (status, body) == (200, {"accepted": 0, "over": False})
        assert [e.type for e in await gateway.store.events(mine.id)] == ["call.queued"]
        assert (await gateway.store.events(other.id))[-1].data == {"heard": "a secret"}

    async def test_an_id_that_names_another_call_is_refused(self, gateway: Running) -> None:
        """Or it would be taken before the other call's worker can use it."""
        mine, other = await gateway.call(), await gateway.call(auth_id="rival")
        id = f"{other.id}_recording.failed"
        assert (await tell(gateway, mine.id, event(), event(id=id)))[0] == 422
        assert [e.type for e in await gateway.store.events(mine.id)] == ["call.queued"]
        assert (await tell(gateway, other.id, event(id=id)))[1]["accepted"] == 1

    @pytest.mark.parametrize("kind", ["accessed", "deleted", "exported"])
    async def test_the_gateways_own_events_are_refused(self, gateway: Running, kind: str) -> None:
        call = await gateway.call()
        assert (await tell(gateway, call.id, event(type=f"recording.{kind}")))[0] == 422
        assert [e.type for e in await gateway.store.events(call.id)] == ["call.queued"]

    async def test_after_the_end_they_are_kept_but_change_nothing(self, gateway: Running) -> None:
        call = await gateway.call()
        end = event(type="call.ended", data=ended("busy", "dial_busy", sip_status_code=486))
        assert (await tell(gateway, call.id, end))[1]["over"] is True
        late = [
            event(id=new_id("evt"), type="call.answered"),
            event(id=new_id("evt"), type="call.ended", data=ended("completed", "user_hangup")),
            event(id=new_id("evt"), type="turn", data=Turn(id="t", response="Bye").wire()),
        ]
        assert (await tell(gateway, call.id, *late))[1] == {"accepted": 3, "over": True}
        kept = await gateway.store.call(Scope(None), call.id)
        assert kept is not None
        assert (kept.status, kept.disconnection_reason, kept.sip_status_code) == (
            "busy",
            "dial_busy",
            486,
        )

    async def test_turns_are_measured_once_when_the_agent_has_left(self, gateway: Running) -> None:
        call = await gateway.call()
        heard = Turn(id="turn_1", transcript="Hello", latency={"endpointing": 230.0, "odd": 1.0})
        whole = heard.model_copy(update={"latency": {**heard.latency, "total": 640.0}})
        left = event(type="agent.left")
        for told in (heard, whole, whole):
            await tell(gateway, call.id, event(id=new_id("evt"), type="turn", data=told.wire()))
        assert "turn_latency_seconds_count" not in await self.metrics(gateway)
        for _ in range(2):
            await tell(gateway, call.id, left)
        text = await self.metrics(gateway)
        counts = [line for line in text.splitlines() if "turn_latency_seconds_count" in line]
        assert counts == [
            'switchroom_turn_latency_seconds_count{part="endpointing"} 1.0',
            'switchroom_turn_latency_seconds_count{part="total"} 1.0',
        ]
        assert 'turn_latency_seconds_sum{part="total"} 0.64' in text

    async def metrics(self, gateway: Running) -> str:
        async with gateway.http.get("/metrics") as response:
            return await response.text()

    @pytest.mark.parametrize(
        ("age_s", "refusal"), [(5, (425, "CALL_NOT_READY")), (11, (404, "CALL_NOT_FOUND"))]
    )
    async def test_of_an_unknown_call(
        self, gateway: Running, age_s: int, refusal: tuple[int, str]
    ) -> None:
        path, headers = "/internal/calls/call_nope/events", bearer(aged("call_nope", age_s))
        status, body = await ask(gateway, "POST", path, headers, json={"events": [event()]})
        assert (status, body["code"]) == refusal


class TestHeartbeat:
    async def beat(self, gateway: Running, token: str, **changes: Any) -> tuple[int, Any]:
        body = {"workerId": "w1", "agentName": "switchroom", "capacity": 3, "active": 1, **changes}
        return await ask(gateway, "POST", "/internal/workers/heartbeat", bearer(token), json=body)

    async def test_it_lives_until_it_is_stale(self, gateway: Running) -> None:
        assert await self.beat(gateway, ISSUER.for_worker("w1")) == (200, {"ok": True})
        assert [worker.worker_id for worker in await gateway.store.workers()] == ["w1"]
        gateway.clock.forward(WORKER_STALE + timedelta(milliseconds=1))
        assert await gateway.store.workers() == []

    @pytest.mark.parametrize(
        "changes",
        [
            {"capacity": -1},
            {"capacity": 10**30},
            {"capacity": 2**31},
            {"active": 2**63},
            {"active": "many"},
            {"active": None},
            {"agentName": ""},
            {"agentName": "x" * 129},
            {"workerId": ""},
            {"draining": "perhaps"},
        ],
    )
    async def test_bad_values(self, gateway: Running, changes: dict[str, Any]) -> None:
        status, body = await self.beat(gateway, ISSUER.for_worker("w1"), **changes)
        assert (status, body["code"]) == (422, "VALIDATION_ERROR")

    async def test_nobody_elses(self, gateway: Running) -> None:
        for token in (ISSUER.for_worker("w2"), ISSUER.for_call("w1"), "x"):
            assert (await self.beat(gateway, token))[0] == 401
        assert await gateway.store.workers() == []
