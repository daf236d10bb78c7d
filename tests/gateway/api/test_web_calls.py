"""POST /v1/calls/web without a browser: answers, refusals, and calls that nobody joins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest

from core.jobs import Heartbeat
from core.legs import Leg
from core.models import Agent, AgentConfig, CallEvent, new_id, now
from gateway.calls.dispatcher import Dispatcher
from gateway.calls.rooms import LABEL
from gateway.calls.timeline import Journal
from gateway.calls.web import JOIN_WITHIN, VISITOR, WebCalls
from gateway.keys import LIMITS, METRICS, SETTINGS, TIMELINE, call_services
from gateway.store.call_status import Call
from gateway.store.database import Principal, Scope
from tests.conftest import ACME, RIVAL, operator
from tests.gateway.api.test_livekit_webhook import deliver, left
from tests.gateway.calls.test_reconciler import round_of
from tests.support.inprocess import SECRET, Running, running, settings_in
from tests.support.livekit_stub import LiveKitStub, running_with
from tests.support.numbers import make_agent

pytestmark = pytest.mark.store

SOON = timedelta(milliseconds=50)


@pytest.fixture
def livekit() -> LiveKitStub:
    return LiveKitStub()


@pytest.fixture
async def gateway(tmp_path: Path, livekit: LiveKitStub) -> AsyncIterator[Running]:
    public = "wss://livekit.example.com"
    async with running_with(livekit, tmp_path, livekit_public_url=public) as gateway:
        await worker_is_free(gateway)
        yield gateway


async def worker_is_free(gateway: Running, capacity: int = 10) -> None:
    name = gateway.app[SETTINGS].agent_name
    beat = Heartbeat(worker_id="w1", agent_name=name, capacity=capacity, active=0)
    await gateway.store.heartbeat(beat)


async def post(gateway: Running, body: Any, headers: dict[str, str] = ACME) -> tuple[int, Any]:
    async with gateway.http.post("/v1/calls/web", json=body, headers=headers) as response:
        return response.status, await response.json()


async def record(gateway: Running, call_id: str) -> Call:
    call = await gateway.store.call(Scope(None), call_id)
    assert call is not None
    return call


class TestAnswer:
    async def test_a_browser_gets_a_room_of_its_own(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        agent = await make_agent(gateway, begin_message="Hello {{who}}.")
        body = {"agentId": agent.id, "variables": {"who": "Ann"}, "metadata": {"lead": 7}}
        status, answer = await post(gateway, body)
        assert status == 200
        assert answer["id"] == answer["callId"]
        assert answer["livekitUrl"] == "wss://livekit.example.com"

        call = await record(gateway, answer["callId"])
        assert (call.direction, call.type, call.status) == ("web", "web", "queued")
        assert (call.room_name, call.participant_identity) == (call.id, VISITOR)
        assert (call.agent_id, call.metadata) == (agent.id, {"lead": 7})
        found = await gateway.store.call_and_agent(call.id)
        assert found is not None and found[1] is not None
        assert found[1].config.begin_message == "Hello Ann."

        (room,) = livekit.created
        assert room.name == call.id
        assert json.loads(room.metadata) == {"auth_id": "acme"}
        assert [agent.agent_name for agent in room.agents] == [gateway.app[SETTINGS].agent_name]

    async def test_the_token_opens_that_room_to_that_visitor_only(self, gateway: Running) -> None:
        agent = await make_agent(gateway)
        _, answer = await post(gateway, {"agentId": agent.id})
        claims = jwt.decode(answer["accessToken"], SECRET, algorithms=["HS256"])
        assert claims["sub"] == VISITOR
        assert claims["attributes"] == Leg("visitor", answer["callId"]).attributes
        assert claims["video"] == {
            "roomJoin": True,
            "room": answer["callId"],
            "canPublish": True,
            "canPublishSources": ["microphone"],
            "canSubscribe": True,
            "canPublishData": False,
            "canUpdateOwnMetadata": False,
        }
        assert claims["exp"] - claims["nbf"] == JOIN_WITHIN.total_seconds()
        # A room that LiveKit creates for a late visitor has a label, which does not show the
        # tenant's name, and no dispatch, which would show a worker's token.
        assert json.loads(claims["roomConfig"]["metadata"]).keys() == {LABEL}
        assert "acme" not in json.dumps(claims)
        assert "agents" not in claims["roomConfig"]

    async def test_a_repetition_is_the_same_call(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        agent = await make_agent(gateway)
        key = {**ACME, "Idempotency-Key": "k1"}
        first, again = [await post(gateway, {"agentId": agent.id}, key) for _ in range(2)]
        assert first == again
        assert len(livekit.created) == 1
        status, other = await post(gateway, {"agentId": agent.id, "metadata": {"a": 1}}, key)
        assert (status, other["error"]["code"]) == (409, "IDEMPOTENCY_KEY_REUSED")

    async def test_what_a_client_library_leaves_out_is_null(self, gateway: Running) -> None:
        agent = await make_agent(gateway)
        body = {"agentId": agent.id, "variables": None, "metadata": None}
        assert (await post(gateway, body))[0] == 200


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"agentId": None}, "agentId"),
            ({"agentId": ""}, "agentId"),
            ({"agentId": 7}, "agentId"),
            ({"agentId": "x" * 65}, "agentId"),
            ({"variables": []}, "variables"),
            ({"variables": {"who": 7}}, "variables.who"),
            ({"variables": {"": "x"}}, "variables..[key]"),
            ({"variables": {str(n): "x" for n in range(101)}}, "variables"),
            ({"variables": {"who": "x" * 5_001}}, "variables.who"),
            ({"metadata": "text"}, "metadata"),
            ({"metadata": {"a": "x" * 20_000}}, "metadata"),
            ({"toNumber": "+15551234567"}, "toNumber"),
        ],
    )
    async def test_wrong_fields(self, gateway: Running, change: dict[str, Any], field: str) -> None:
        status, answer = await post(gateway, {"agentId": "greeter", **change})
        assert (status, answer["error"]["code"]) == (422, "VALIDATION_ERROR")
        assert field in [detail["field"] for detail in answer["error"]["details"]]

    async def test_values_that_make_the_greeting_too_long(self, gateway: Running) -> None:
        agent = await make_agent(gateway, begin_message="{{who}}")
        body = {"agentId": agent.id, "variables": {"who": "x" * 2_001}}
        status, answer = await post(gateway, body)
        assert (status, answer["error"]["details"][0]["field"]) == (422, "variables")

    async def test_another_tenants_agent_is_like_none(self, gateway: Running) -> None:
        agent = await make_agent(gateway)
        unknown = await post(gateway, {"agentId": "agt_000000000000000000000000"})
        assert (unknown[0], unknown[1]["error"]["code"]) == (404, "AGENT_NOT_FOUND")
        assert await post(gateway, {"agentId": agent.id}, RIVAL) == unknown

    @pytest.mark.parametrize(
        ("config", "code"),
        [({"enabled": False}, "AGENT_DISABLED"), ({"voice_mode": "webhook"}, None)],
    )
    async def test_an_agent_that_takes_no_calls(
        self, gateway: Running, config: dict[str, Any], code: str | None
    ) -> None:
        agent = await make_agent(gateway, **config)
        status, answer = await post(gateway, {"agentId": agent.id})
        assert (status, answer["error"]["code"]) == (409, code or "WEBHOOK_NOT_CONFIGURED")

    async def test_without_a_token(self, gateway: Running) -> None:
        status, answer = await post(gateway, {}, {})
        assert (status, answer["error"]["code"]) == (401, "MISSING_AUTH_HEADER")

    async def test_no_worker_is_free(self, gateway: Running, livekit: LiveKitStub) -> None:
        await worker_is_free(gateway, capacity=0)
        agent = await make_agent(gateway)
        status, answer = await post(gateway, {"agentId": agent.id})
        assert (status, answer["error"]["code"]) == (503, "AGENT_UNAVAILABLE")
        (call,) = await calls_of(gateway, agent)
        assert (call.status, call.disconnection_reason) == ("failed", "agent_unavailable")
        assert not livekit.created

    async def test_a_phone_has_the_visitors_place(
        self, gateway: Running, livekit: LiveKitStub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        call_id = new_id("call")
        monkeypatch.setattr("gateway.calls.web.new_id", lambda _kind: call_id)
        await gateway.call(room_name=call_id, participant_identity=f"{VISITOR}#1")
        agent = await make_agent(gateway)
        status, answer = await post(gateway, {"agentId": agent.id})
        assert (status, answer["error"]["code"]) == (409, "PARTICIPANT_EXISTS")
        (call,) = await calls_of(gateway, agent)
        assert (call.status, call.disconnection_reason) == ("failed", "agent_error")
        assert not livekit.created

    async def test_too_many_calls(self, tmp_path: Path, livekit: LiveKitStub) -> None:
        async with running_with(livekit, tmp_path, max_concurrent_calls=1) as gateway:
            await worker_is_free(gateway)
            agent = await make_agent(gateway)
            assert (await post(gateway, {"agentId": agent.id}))[0] == 200
            status, answer = await post(gateway, {"agentId": agent.id})
            assert (status, answer["error"]["code"]) == (429, "CONCURRENCY_LIMIT")

    async def test_livekit_is_away(self, tmp_path: Path) -> None:
        async with running(settings_in(tmp_path)) as gateway:
            await worker_is_free(gateway)
            agent = await make_agent(gateway)
            status, answer = await post(gateway, {"agentId": agent.id})
            assert (status, answer["error"]["code"]) == (503, "LIVEKIT_UNAVAILABLE")
            (call,) = await calls_of(gateway, agent)
            assert (call.status, call.disconnection_reason) == ("failed", "agent_error")

    async def test_livekit_is_not_configured(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path, livekit_api_key=None, livekit_api_secret=None)
        async with running(settings) as gateway:
            status, answer = await post(gateway, {"agentId": "greeter"})
            assert (status, answer["error"]["code"]) == (500, "LIVEKIT_NOT_CONFIGURED")


async def calls_of(gateway: Running, agent: Agent) -> list[Call]:
    async with gateway.http.get(f"/v1/calls?agentId={agent.id}", headers=operator()) as response:
        ids = [call["id"] for call in (await response.json())["data"]]
    return [await record(gateway, call_id) for call_id in ids]


class TestNobodyComes:
    """Calls that a WebCalls with shorter time-outs follows."""

    @staticmethod
    def web_calls(gateway: Running, **patience: Any) -> WebCalls:
        app = gateway.app
        services = call_services(app)
        return WebCalls(
            livekit=services.livekit,
            store=gateway.store,
            timeline=app[TIMELINE],
            rooms=services.rooms,
            journal=Journal(app[TIMELINE], app[METRICS]),
            dispatcher=Dispatcher(
                services.livekit, services.tokens, gateway.store.places, app[SETTINGS].agent_name
            ),
            limits=app[LIMITS],
            **{"agent_join_timeout_s": 60, "news_within_s": 0.05, **patience},
        )

    @staticmethod
    async def open(web_calls: WebCalls) -> str:
        agent = Agent(id="agt_1", version=1, config=AgentConfig(name="A", voice_mode="hosted"))
        call, _ = await web_calls.open(Principal("acme"), agent, {}, record=False)
        return call.id

    async def ended(self, gateway: Running, livekit: LiveKitStub, call_id: str) -> Any:
        async with asyncio.timeout(5):
            while call_id in livekit.rooms:  # noqa: ASYNC110 (there is no event)
                await asyncio.sleep(0.01)
        call = await record(gateway, call_id)
        return call.status, call.disconnection_reason

    async def test_no_visitor(self, gateway: Running, livekit: LiveKitStub) -> None:
        web_calls = self.web_calls(gateway, join_within=SOON)
        call_id = await self.open(web_calls)
        await self.happened(gateway, call_id, "agent.joined")
        assert await self.ended(gateway, livekit, call_id) == ("canceled", "canceled")
        await web_calls.aclose()

    async def test_no_agent(self, gateway: Running, livekit: LiveKitStub) -> None:
        web_calls = self.web_calls(gateway, agent_join_timeout_s=0.1)
        call_id = await self.open(web_calls)
        assert await self.ended(gateway, livekit, call_id) == ("failed", "agent_unavailable")
        assert [asked.room for asked in livekit.dispatched] == [call_id], "asked for once more"
        await web_calls.aclose()

    async def test_no_worker_took_the_dispatch(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        """LiveKit does not retry it; the gateway repeats it long before half time."""
        livekit.workers_full = True
        web_calls = self.web_calls(gateway, agent_join_timeout_s=60)
        call_id = await self.open(web_calls)
        async with asyncio.timeout(10):
            while not livekit.dispatched:  # noqa: ASYNC110 (there is no event)
                await asyncio.sleep(0.01)
        await self.happened(gateway, call_id, "agent.joined")
        assert {asked.room for asked in livekit.dispatched} == {call_id}
        await web_calls.aclose()

    async def test_the_visitor_leaves_before_the_agent_saw_them(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        web_calls = self.web_calls(gateway)
        call_id = await self.open(web_calls)
        await self.happened(gateway, call_id, "agent.joined")
        await leave(gateway, await record(gateway, call_id))
        assert await self.ended(gateway, livekit, call_id) == ("canceled", "canceled")
        await web_calls.aclose()

    async def test_a_call_that_was_answered_is_left_alone(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        web_calls = self.web_calls(gateway, join_within=SOON, agent_join_timeout_s=0.1)
        call_id = await self.open(web_calls)
        await self.happened(gateway, call_id, "agent.joined", "call.answered")
        async with asyncio.timeout(5):
            while web_calls.follows(call_id):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await record(gateway, call_id)).status == "in-progress"
        assert call_id in livekit.rooms

    @staticmethod
    async def happened(gateway: Running, call_id: str, *types: str) -> None:
        events = [CallEvent(type=type) for type in types]
        await gateway.app[TIMELINE].append(call_id, events, "worker")


async def leave(gateway: Running, call: Call, reason: str = "CLIENT_INITIATED") -> None:
    attributes = Leg("visitor", call.id).attributes
    participant = {"kind": "STANDARD", "attributes": attributes, "disconnectReason": reason}
    await deliver(gateway, left(call, participant=participant))


class TestOthersWhoTell:
    """LiveKit's webhooks and the reconciler end a call that no worker has ended."""

    @staticmethod
    async def call(gateway: Running, *types: str, age: timedelta = timedelta(0)) -> Call:
        queued = CallEvent(type="call.queued", at=now() - age)
        call = await gateway.call(
            direction="web",
            participant_identity=VISITOR,
            from_number=None,
            to_number=None,
            queued=queued,
        )
        await gateway.store.append(call.id, [CallEvent(type=type) for type in types], "worker")
        return call

    @pytest.mark.parametrize(
        ("reason", "outcome"),
        [
            ("CLIENT_INITIATED", ("completed", "user_hangup")),
            ("CONNECTION_TIMEOUT", ("completed", "user_hangup")),
            ("PARTICIPANT_REMOVED", ("completed", "agent_hangup")),
        ],
    )
    async def test_a_visitor_who_left_ended_the_call(
        self, gateway: Running, reason: str, outcome: tuple[str, str]
    ) -> None:
        call = await self.call(gateway, "call.answered")
        await leave(gateway, call, reason)
        ended = await record(gateway, call.id)
        assert (ended.status, ended.disconnection_reason) == outcome

    async def test_a_visitor_of_no_call_of_ours_is_nobody(self, gateway: Running) -> None:
        call = await self.call(gateway, "call.answered")
        await leave(gateway, call.model_copy(update={"room_name": "another"}))
        assert (await record(gateway, call.id)).status == "in-progress"

    async def test_the_reconciler_gives_a_visitor_time(self, gateway: Running) -> None:
        waits = await self.call(gateway, age=JOIN_WITHIN - timedelta(seconds=1))
        late = await self.call(gateway, age=timedelta(minutes=5))
        left_behind = await self.call(gateway, "call.answered", age=timedelta(minutes=5))
        assert await round_of(gateway) == 2
        assert (await record(gateway, waits.id)).status == "queued"
        for call, outcome in (
            (late, ("canceled", "canceled")),
            (left_behind, ("completed", "user_hangup")),
        ):
            ended = await record(gateway, call.id)
            assert (ended.status, ended.disconnection_reason) == outcome
