"""An agent whose process stood still, and its requests to the servers of its owner."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from core.jobs import CallBrief
from tests.support.edge import served
from tests.worker.test_line import brief
from worker.endings import ENDINGS, REPLACED
from worker.link.client import Gateway, Refused, Unavailable
from worker.link.reporter import Reporter
from worker.link.spool import Owner
from worker.pulse.standing import Standing
from worker.pulse.standstill import Standstill

pytestmark = [pytest.mark.unit, pytest.mark.asyncio(loop_scope="session")]


class Told(Gateway):
    """Answers when the test does: ``answers`` are taken one after the other."""

    def __init__(self) -> None:
        self.asked = 0
        self.asking = asyncio.Condition()
        self.answers: asyncio.Queue[CallBrief | Exception] = asyncio.Queue()

    async def brief(self, call_id: str, token: str) -> CallBrief:
        assert (call_id, token) == ("call_1", "token")
        async with self.asking:
            self.asked += 1
            self.asking.notify_all()
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


class Agent:
    """An agent with a tool's server; both are on the event loop of the test."""

    def __init__(
        self, gateway: Told, standing: Standing, http: aiohttp.ClientSession, port: int
    ) -> None:
        self.gateway = gateway
        self.standing = standing
        self.requests = 0
        self.replaced = 0
        self._http = http
        self._port = port

    def stands_still(self) -> None:
        time.sleep(2.0)

    async def uses_a_tool(self, within_s: float = 15.0) -> int:
        within = aiohttp.ClientTimeout(total=within_s)
        url = f"http://127.0.0.1:{self._port}/"
        async with self._http.get(url, timeout=within) as response:
            return response.status

    async def has_asked(self, times: int) -> None:
        async with self.gateway.asking:
            await self.gateway.asking.wait_for(lambda: self.gateway.asked >= times)


@asynccontextmanager
async def agent(folder: Path, *, owned: bool = True) -> AsyncIterator[Agent]:
    gateway = Told()
    reporter = Reporter(gateway, folder)
    if owned:
        reporter.own(Owner("call_1", "token"))
    standstill = Standstill()

    async def asked(_: web.Request) -> web.Response:
        it.requests += 1
        return web.Response()

    def on_replaced() -> None:
        it.replaced += 1

    standing = Standing(gateway, reporter, standstill, on_replaced)
    app = web.Application()
    app.router.add_get("/", asked)
    async with (
        served(app) as server,
        standing.opener(allow_private=True)() as http,
        standing.watched(),
    ):
        it = Agent(gateway, standing, http, server.port)
        standstill.start()
        try:
            async with asyncio.timeout(20):
                yield it
        finally:
            standstill.stop()
            await reporter.aclose(1.0)


async def test_its_requests_wait_until_it_is_known(tmp_path: Path) -> None:
    async with agent(tmp_path) as it:
        assert await it.uses_a_tool() == 200
        assert it.gateway.asked == 0
        it.stands_still()
        request = asyncio.create_task(it.uses_a_tool())
        it.gateway.answers.put_nowait(Unavailable("away"))
        await it.has_asked(2)
        assert it.requests == 1, "the gateway has not answered"
        it.gateway.answers.put_nowait(brief())
        assert await request == 200
        assert (it.requests, it.replaced) == (2, 0)


async def test_of_one_that_was_replaced_none_is_sent(tmp_path: Path) -> None:
    async with agent(tmp_path) as it:
        it.stands_still()
        it.gateway.answers.put_nowait(Refused("HTTP 410", 410))
        for _ in range(2):
            with pytest.raises(aiohttp.ClientConnectionError):
                await it.uses_a_tool()
        assert (it.requests, it.replaced) == (0, 1)
        assert await it.standing.ending("max_duration", "") == REPLACED


async def test_an_answer_from_before_another_standstill_does_not_count(tmp_path: Path) -> None:
    async with agent(tmp_path) as it:
        it.stands_still()
        request = asyncio.create_task(it.uses_a_tool())
        await it.has_asked(1)
        it.gateway.answers.put_nowait(brief())
        it.stands_still()
        await it.has_asked(2)
        assert not request.done()
        it.gateway.answers.put_nowait(Refused("HTTP 410", 410))
        with pytest.raises(aiohttp.ClientConnectionError):
            await request
        assert it.requests == 0


async def test_a_request_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    async with agent(tmp_path) as it:
        it.stands_still()
        with pytest.raises(TimeoutError):
            await it.uses_a_tool(within_s=0.3)
        assert (it.requests, it.gateway.asked) == (0, 1)
        it.gateway.answers.put_nowait(brief())
        assert await it.uses_a_tool() == 200


async def test_a_request_that_waits_at_the_end_is_not_sent(tmp_path: Path) -> None:
    async with agent(tmp_path) as it:
        it.stands_still()
        request = asyncio.create_task(it.uses_a_tool())
        await it.has_asked(1)
    with pytest.raises(aiohttp.ClientConnectionError):
        await request
    assert it.requests == 0


async def test_a_hang_up_waits_for_the_answer_to_the_last_standstill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.pulse.standing._KNOWN_WITHIN_S", 1.0)
    async with agent(tmp_path) as it:
        it.stands_still()
        ending = asyncio.create_task(it.standing.ending("max_duration", ""))
        await it.has_asked(1)
        it.stands_still()
        await it.has_asked(2)
        it.gateway.answers.put_nowait(Refused("HTTP 410", 410))
        assert await ending == REPLACED


async def test_what_it_learns_in_another_way_counts_too(tmp_path: Path) -> None:
    async with agent(tmp_path) as it:
        it.standing.replaced()
        with pytest.raises(aiohttp.ClientConnectionError):
            await it.uses_a_tool()
        assert it.requests == 0


async def test_it_hangs_up_if_the_gateway_stays_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.pulse.standing._KNOWN_WITHIN_S", 0.2)
    async with agent(tmp_path) as it:
        it.stands_still()
        await it.has_asked(1)
        assert await it.standing.ending("max_duration", "") == ENDINGS["max_duration"]


async def test_before_its_call_is_known_there_is_nothing_to_ask(tmp_path: Path) -> None:
    async with agent(tmp_path, owned=False) as it:
        it.stands_still()
        assert await it.uses_a_tool() == 200
        assert it.gateway.asked == 0
