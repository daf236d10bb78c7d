"""Sockets that say nothing: beyond a number of them the next ones are closed at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.http.newcomers import Newcomers
from gateway.keys import METRICS, NEWCOMERS
from tests.conftest import ACME, SECRETS
from tests.support.numbers import make_agent
from tests.support.session_rig import PATIENT, Sessions, say, sessions_in

pytestmark = [pytest.mark.store, pytest.mark.attack]

MOST = 3
STREAM = "/v1/sessions/twilio/stream"


@pytest.fixture
async def sessions(tmp_path: Path) -> AsyncIterator[Sessions]:
    async with sessions_in(tmp_path, PATIENT) as sessions:
        yield sessions


@pytest.fixture
def newcomers(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> Newcomers:
    newcomers = sessions.gateway.app[NEWCOMERS]
    monkeypatch.setattr(newcomers, "_most_of_one", MOST)
    return newcomers


async def until_counted(newcomers: Newcomers, number: int) -> None:
    async with asyncio.timeout(10):
        while newcomers._held.total() != number:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def metric(sessions: Sessions) -> float | None:
    registry = sessions.gateway.app[METRICS].registry
    return registry.get_sample_value("switchroom_sockets_refused_total")


@pytest.mark.parametrize("path", ["session", "stream"])
async def test_silent_sockets_are_limited(
    sessions: Sessions, newcomers: Newcomers, path: str
) -> None:
    agent = await make_agent(sessions.gateway)
    url = STREAM if path == "stream" else f"/v1/agents/{agent.id}/session"

    def dial() -> Any:
        return sessions.gateway.http.ws_connect(url)

    async with AsyncExitStack() as silent:
        for _ in range(MOST):
            await silent.enter_async_context(dial())
        await until_counted(newcomers, MOST)
        async with dial() as late:
            message = await late.receive(5)
            if path == "session":
                assert message.json()["code"] == "SOCKET_LIMIT"
                await late.receive(5)
            assert late.close_code == 1013
        assert await metric(sessions) == 1
        # Who is known by the handshake is not kept out.
        async with sessions.dial(agent, headers=ACME) as client:
            await say(client, {"type": "session.update"})
            await sessions.worker.session()
    await until_counted(newcomers, 0)
    async with sessions.dial(agent) as client:
        await say(client, {"type": "auth", "token": SECRETS["acme"]})
        await until_counted(newcomers, 0)
        await say(client, {"type": "session.update"})
        async with asyncio.timeout(10):
            while len(sessions.worker.sessions) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
