"""A gateway with one stream worker, and clients of the socket WS /v1/agents/{id}/session."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import WSMsgType

from core.models import Agent
from gateway.http.pace import USUAL, Pace
from gateway.store.call_status import Call
from gateway.store.database import Scope
from tests.conftest import ACME
from tests.support.inprocess import Running, running, settings_in
from tests.support.stream_worker import StreamWorker, WorkerSession, stream_worker

QUICK = replace(USUAL, first_words_s=0.3, first_message_s=0.1, ping_s=0.2, patience_s=2.0)
"""Long enough for a client that speaks at once."""
PATIENT = replace(QUICK, first_words_s=10, first_message_s=10)

Client = aiohttp.ClientWebSocketResponse


@dataclass(frozen=True)
class Sessions:
    gateway: Running
    worker: StreamWorker

    async def mint(
        self, agent: Agent, body: Any = None, headers: Mapping[str, str] = ACME
    ) -> tuple[int, Any]:
        path = f"/v1/agents/{agent.id}/session"
        async with self.gateway.http.post(path, json=body or {}, headers=headers) as response:
            return response.status, await response.json()

    async def token(self, agent: Agent, **body: Any) -> str:
        status, minted = await self.mint(agent, body)
        assert status == 201, minted
        return str(minted["token"])

    def dial(
        self,
        agent: Agent | str,
        token: str | None = None,
        *,
        query: str = "",
        protocols: tuple[str, ...] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Return a context manager of a client's socket, with a session's token if given."""
        agent_id = agent if isinstance(agent, str) else agent.id
        if protocols is None:
            protocols = ("switchroom", f"token.{token}") if token is not None else ()
        return self.gateway.http.ws_connect(
            f"/v1/agents/{agent_id}/session{query}",
            protocols=protocols,
            headers=headers,
            max_msg_size=0,
        )

    async def refused(
        self, agent: Agent | str, *, first: Any = None, **options: Any
    ) -> tuple[int | None, str | None]:
        """Return the close code and the error's code of a socket that is refused, whatever it says.

        ``first`` is its first message: an object, text, or bytes.
        """
        asked = len(self.worker.asked)
        async with asyncio.timeout(15), self.dial(agent, **options) as client:
            if first is not None:
                await say(client, first)
            error = None
            async for message in client:
                error = message.json()["code"]
        assert len(self.worker.asked) == asked or error not in {None, "UNAUTHORIZED"}
        return client.close_code, error

    async def record(self, call_id: str) -> Call:
        call = await self.gateway.store.call(Scope(None), call_id)
        assert call is not None
        return call

    async def outcome(self, call_id: str) -> tuple[str, str | None]:
        call = await self.record(call_id)
        return call.status, call.disconnection_reason


async def say(client: Client, message: Any) -> None:
    match message:
        case bytes():
            await client.send_bytes(message)
        case str():
            await client.send_str(message)
        case _:
            await client.send_json(message)


async def heard(client: Client) -> Any:
    """Return the next message: an object, or bytes."""
    message = await client.receive(10)
    assert message.type in {WSMsgType.TEXT, WSMsgType.BINARY}, message
    return message.json() if message.type is WSMsgType.TEXT else message.data


async def closed(client: Client) -> int | None:
    while not client.closed:
        await client.receive(10)
    return client.close_code


async def frame(session: WorkerSession) -> Any:
    """Return the next frame that the worker got: an object, or bytes."""
    data = await session.frames.get()
    try:
        return json.loads(data)
    except ValueError:
        return data


@asynccontextmanager
async def sessions_in(
    folder: Path, pace: Pace = QUICK, capacity: int = 10_000, **changes: Any
) -> AsyncIterator[Sessions]:
    async with (
        running(settings_in(folder, **changes), pace=pace) as gateway,
        stream_worker(gateway, capacity=capacity) as worker,
    ):
        yield Sessions(gateway, worker)
