"""Follows one call's timeline over HTTP, as a user's program would."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Self

import aiohttp

from core.models import Turn

_ANSWER_WITHIN_S = 10.0
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_read=60)


class Follower:
    """Reads ``/v1/calls/{id}/events``. ``seen``: the types of all events so far."""

    def __init__(
        self, http: aiohttp.ClientSession, call_id: str, headers: dict[str, str] | None = None
    ) -> None:
        self.seen: set[str] = set()
        self._http = http
        self._url = f"/v1/calls/{call_id}/events"
        self._headers = headers or {}
        self._turns: dict[str, Turn] = {}
        self._told: dict[str, str] = {}
        self._news = asyncio.Event()
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._read(), name="follower")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def next_answer(self) -> str:
        """Wait for the agent's next words and return them; ``…`` if none come within 10 s."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                while True:
                    for turn in self._turns.values():
                        told = self._told.get(turn.id, "")
                        if turn.response and turn.response != told:
                            self._told[turn.id] = turn.response
                            return turn.response.removeprefix(told).strip()
                    await self._wait()
        return "…"

    async def turns(self) -> AsyncIterator[Turn]:
        """Yield each turn once it has a response, until the call has ended."""
        told: set[str] = set()
        while True:
            over = self._ended.is_set()
            for turn in list(self._turns.values()):
                if turn.id not in told and turn.response:
                    told.add(turn.id)
                    yield turn
            if over:
                return
            await self._wait()

    async def wait_ended(self, timeout: float) -> None:
        async with asyncio.timeout(timeout):
            await self._ended.wait()

    async def _wait(self) -> None:
        await self._news.wait()
        self._news.clear()

    async def _read(self) -> None:
        kind = ""
        async with self._http.get(
            self._url, headers=self._headers, timeout=_NO_TIMEOUT
        ) as response:
            response.raise_for_status()
            async for raw in response.content:
                name, _, value = raw.decode().rstrip("\n").partition(": ")
                if name == "event":
                    kind = value
                    self.seen.add(kind)
                elif name == "data" and kind == "turn":
                    turn = Turn.model_validate(json.loads(value)["data"])
                    self._turns[turn.id] = turn
                if kind == "ended":
                    self._ended.set()
                self._news.set()
