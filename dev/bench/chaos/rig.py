"""The whole system as several processes of each kind, and the ways to call its agent."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import aiohttp
from aiohttp import web

from core.models import new_id
from core.settings import Settings
from dev.bench.api import answering, sip_call
from dev.bench.chaos.callers import WAIT_S, ByPhone, FarEnd, OnSocket, OnTwilio
from dev.bench.chaos.conversation import agent, control
from dev.bench.rig import agent_settings
from dev.bench.streams.voice_urls import VoiceUrls
from dev.phone import Phone
from dev.stack import Stack, StackOptions
from dev.stack.options import HOST
from dev.stack.ports import PORTS
from dev.standins.balancer import Balancer
from dev.standins.databases import Server, postgres_server, redis_server
from dev.standins.twilio import TwilioServer

GATEWAYS, WORKERS, STREAMS = 2, 3, 2
_DRAIN_S: Final = 90
_ACCOUNT, _TOKEN = "AC" + 32 * "5", 32 * "6"
_TWILIO_NUMBER, _NUMBER = "+15105551000", "+15105550199"
_RETRY_S: Final = 0.5
_ONE_GET: Final = aiohttp.ClientTimeout(total=2 * WAIT_S)


@dataclass(slots=True)
class Tables:
    """The agent's tool: it counts how often it ran, by call and table."""

    url: str = ""
    runs: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[Tables]:
        app = web.Application()
        app.router.add_post("/", self._book)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, HOST, 0).start()
        self.url = f"http://{HOST}:{runner.addresses[0][1]}/"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _book(self, request: web.Request) -> web.Response:
        table = (await request.json())["table"]
        self.runs[request.headers["X-Call-Id"]][table] += 1
        return web.json_response({"booked": table})


class Rig:
    """Two gateways behind a load balancer, three workers, two stream workers, PostgreSQL, Redis.

    ``problems``: what went wrong while calls were placed. Requests are repeated until they are
    answered, as clients do.
    """

    def __init__(
        self,
        stack: Stack,
        http: aiohttp.ClientSession,
        twilio: TwilioServer,
        tables: Tables,
        agent_id: str,
        postgres: Server,
        redis: Server,
    ) -> None:
        self.stack = stack
        self.http = http
        self.tables = tables
        self.postgres, self.redis = postgres, redis
        self.problems: list[str] = []
        self._twilio = twilio
        self._agent_id = agent_id
        self._numbers = itertools.count(1000)
        self._sessions: dict[str, str] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def run(cls, settings: Settings) -> AsyncIterator[Rig]:
        async with contextlib.AsyncExitStack() as running:
            enter = running.enter_async_context
            folder = Path(running.enter_context(TemporaryDirectory()))
            database = await asyncio.to_thread(running.enter_context, postgres_server())
            redis = await asyncio.to_thread(running.enter_context, redis_server(folder))
            balanced, first = PORTS.take(HOST), PORTS.take(HOST)
            for port in (balanced, first):
                running.callback(PORTS.give_back, port)
            balancer = await enter(Balancer([first], check="readyz").serve(balanced))
            options = StackOptions(
                settings=settings,
                gateway=GATEWAYS,
                worker=WORKERS,
                streams=STREAMS,
                providers=True,
                stop_grace_s=_DRAIN_S + 10,
                values={
                    **running.enter_context(agent_settings()),
                    "gateway_port": first,
                    "gateway_url": balancer.url,
                    "database_url": database.url,
                    "cache_url": redis.url,
                    "worker_idle_processes": 1,
                    "worker_drain_timeout_s": _DRAIN_S,
                },
            )
            stack = await enter(Stack(options))
            addresses = [
                part.address
                for name, part in stack.components.items()
                if name.startswith("gateway")
            ]
            balancer.ports[:] = [int(address.rpartition(":")[2]) for address in addresses]
            await stack.set_providers(control())
            http = await enter(aiohttp.ClientSession(balancer.url))
            twilio = await enter(TwilioServer({_ACCOUNT: _TOKEN}))
            urls = await enter(VoiceUrls())
            tables = await enter(Tables().serve())
            agent_id = await answering(http, _NUMBER, agent(tables.url))
            rig = cls(stack, http, twilio, tables, agent_id, database, redis)
            twilio.give(_ACCOUNT, _TWILIO_NUMBER, voice_url=urls.add(rig._voice))
            yield rig

    async def dial(self, phone: Phone) -> FarEnd:
        """The API calls the phone."""
        path, body = self.request("phone")
        number = body["to_phone_number"]
        body["sip"] = {"outbound_address": phone.address}
        placing = asyncio.create_task(self.post(path, body, key=new_id("key")))
        try:
            call = await phone.next_call(2 * WAIT_S)
            await call.answered(WAIT_S)
            placed = await placing
        finally:
            placing.cancel()
        rung = [one for one in phone.calls if one.called.endswith(number[1:])]
        if len(rung) != 1:
            self.problems.append(f"{placed['call_id']} rang {len(rung)} times")
        return ByPhone(call, str(placed["call_id"]))

    async def dial_in(self, phone: Phone) -> FarEnd:
        """The phone calls the number."""
        caller = self._next_number()
        call = await phone.dial(f"sip:{_NUMBER}@{self.stack.sip_address}", caller=caller)
        await call.answered(2 * WAIT_S)
        found = await self.get("/v1/calls", search=caller)
        return ByPhone(call, str(found["data"][0]["id"]))

    async def on_twilio(self) -> FarEnd:
        caller = self._next_number()
        call = await self._twilio.call(_TWILIO_NUMBER, caller)
        await call.streaming(timeout_s=WAIT_S)
        return OnTwilio(call, self._sessions[caller])

    async def on_socket(self) -> FarEnd:
        return await OnSocket.call(self.http, self._agent_id)

    def request(self, line: str) -> tuple[str, dict[str, Any]]:
        """Return the path and body of a request for a call by that line."""
        match line:
            case "phone":
                body = sip_call(
                    new_id("room"),
                    from_phone_number=_NUMBER,
                    to_phone_number=self._next_number(),
                    agent=self._agent_id,
                )
                return "/sip/call", body
            case "Twilio":
                called = {"from": self._next_number(), "to": _TWILIO_NUMBER}
                return "/v1/sessions/twilio", {"agentId": self._agent_id, **called}
            case _:
                return f"/v1/agents/{self._agent_id}/session", {}

    async def _voice(self, form: Mapping[str, str]) -> str:
        body = {"agentId": self._agent_id, "from": form["From"], "to": form["To"]}
        made = await self.post("/v1/sessions/twilio", body, key=new_id("key"))
        self._sessions[form["From"]] = str(made["sessionId"])
        return str(made["twiml"])

    def _next_number(self) -> str:
        return f"+1415555{next(self._numbers):04}"

    # --- requests, as a client makes them

    async def post(self, path: str, body: Mapping[str, Any], key: str) -> dict[str, Any]:
        """Post until there is an answer; the key makes that one effect."""
        headers = {"Idempotency-Key": key}
        async with asyncio.timeout(2 * WAIT_S):
            while True:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with self.http.post(path, json=body, headers=headers) as answer:
                        if answer.status < 300:
                            return dict(await answer.json())
                        if answer.status not in (409, 502, 503):
                            raise RuntimeError(f"{answer.status} {await answer.text()}")
                await asyncio.sleep(_RETRY_S)

    async def get(self, path: str, **params: str) -> Any:
        async with asyncio.timeout(4 * WAIT_S):
            while True:
                # A gateway may be killed, or stand still, while it has the request.
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with self.http.get(path, params=params, timeout=_ONE_GET) as answer:
                        if answer.status == 200:
                            return await answer.json()
                await asyncio.sleep(_RETRY_S)
