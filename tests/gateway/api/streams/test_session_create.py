"""POST /v1/agents/{id}/session: the token for a browser, and when there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from core.models import now
from tests.conftest import ACME, RIVAL
from tests.support.inprocess import running, settings_in
from tests.support.numbers import make_agent
from tests.support.session_rig import Sessions, sessions_in

pytestmark = pytest.mark.store


@pytest.fixture
async def sessions(tmp_path: Path) -> AsyncIterator[Sessions]:
    async with sessions_in(tmp_path, public_url="https://voice.example.com") as sessions:
        yield sessions


async def test_a_session_is_a_call_that_waits_for_its_socket(sessions: Sessions) -> None:
    agent = await make_agent(sessions.gateway, begin_message="Hello {{who}}.")
    body = {"variables": {"who": "Ann"}, "metadata": {"lead": 7}}
    status, minted = await sessions.mint(agent, body)
    assert status == 201
    assert minted["url"] == f"wss://voice.example.com/v1/agents/{agent.id}/session"
    left = datetime.fromisoformat(minted["expiresAt"]) - now()
    assert timedelta(seconds=50) < left <= timedelta(seconds=60)

    call = await sessions.record(minted["sessionId"])
    assert (call.auth_id, call.direction, call.type) == ("acme", "web", "stream")
    assert (call.status, call.metadata) == ("queued", {"lead": 7})
    found = await sessions.gateway.store.call_and_agent(call.id)
    assert found is not None and found[1] is not None
    assert found[1].config.begin_message == "Hello Ann."


async def test_a_repetition_is_the_same_session(sessions: Sessions) -> None:
    agent = await make_agent(sessions.gateway)
    key = {**ACME, "Idempotency-Key": "k1"}
    first, again = [await sessions.mint(agent, {}, key) for _ in range(2)]
    assert first == again
    status, other = await sessions.mint(agent, {"metadata": {"a": 1}}, key)
    assert (status, other["error"]["code"]) == (409, "IDEMPOTENCY_KEY_REUSED")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"variables": {"who": 7}}, "variables.who"),
        ({"metadata": {"a": "x" * 20_000}}, "metadata"),
        ({"agentId": "another"}, "agentId"),
        ({"variables": {"who": "x" * 2_001}}, "variables"),
    ],
)
async def test_wrong_fields(sessions: Sessions, body: dict[str, Any], field: str) -> None:
    agent = await make_agent(sessions.gateway, begin_message="{{who}}")
    status, answer = await sessions.mint(agent, body)
    assert (status, answer["error"]["code"]) == (422, "VALIDATION_ERROR")
    assert [detail["field"] for detail in answer["error"]["details"]] == [field]


async def test_another_tenants_agent_is_like_none(sessions: Sessions) -> None:
    agent = await make_agent(sessions.gateway)
    none = agent.model_copy(update={"id": "agt_000000000000000000000000"})
    unknown = await sessions.mint(none)
    assert (unknown[0], unknown[1]["error"]["code"]) == (404, "AGENT_NOT_FOUND")
    assert await sessions.mint(agent, headers=RIVAL) == unknown


@pytest.mark.parametrize(
    ("config", "code"),
    [({"enabled": False}, "AGENT_DISABLED"), ({"voice_mode": "webhook"}, "WEBHOOK_NOT_CONFIGURED")],
)
async def test_an_agent_that_takes_no_calls(
    sessions: Sessions, config: dict[str, Any], code: str
) -> None:
    agent = await make_agent(sessions.gateway, **config)
    status, answer = await sessions.mint(agent)
    assert (status, answer["error"]["code"]) == (409, code)


async def test_without_a_token(sessions: Sessions) -> None:
    agent = await make_agent(sessions.gateway)
    status, answer = await sessions.mint(agent, headers={})
    assert (status, answer["error"]["code"]) == (401, "MISSING_AUTH_HEADER")


async def test_no_worker_is_free(tmp_path: Path) -> None:
    async with sessions_in(tmp_path, capacity=0) as sessions:
        agent = await make_agent(sessions.gateway)
        status, answer = await sessions.mint(agent)
        assert (status, answer["error"]["code"]) == (503, "AGENT_UNAVAILABLE")


async def test_too_many_calls(tmp_path: Path) -> None:
    async with sessions_in(tmp_path, max_concurrent_calls=1) as sessions:
        agent = await make_agent(sessions.gateway)
        assert (await sessions.mint(agent))[0] == 201
        status, answer = await sessions.mint(agent)
        assert (status, answer["error"]["code"]) == (429, "CONCURRENCY_LIMIT")


async def test_livekits_keys_are_missing(tmp_path: Path) -> None:
    """Tokens for workers are signed with them."""
    settings = settings_in(tmp_path, livekit_api_key=None, livekit_api_secret=None)
    async with running(settings) as gateway:
        path = "/v1/agents/greeter/session"
        async with gateway.http.post(path, json={}, headers=ACME) as response:
            answer = await response.json()
        assert (response.status, answer["error"]["code"]) == (500, "LIVEKIT_NOT_CONFIGURED")
