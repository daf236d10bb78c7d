"""A gateway for the worker's tests: the real handlers over SQLite, with every request noted."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from core.events import ended
from core.jobs import Heartbeat, InboundJob, JobMetadata, agent_identity
from core.models import Agent, AgentConfig, CallEvent, new_id, now, rfc3339
from core.recordings.plan import object_key
from core.tokens import Audience, TokenIssuer
from gateway.app import create_app
from gateway.calls.inbound import call_id_of
from gateway.calls.views import CallDetail
from gateway.keys import STORE, TIMELINE, WEBHOOKS
from gateway.store.call_status import StoredEvent
from gateway.store.calls import NewCall
from gateway.store.database import Scope
from tests.support.edge import served
from tests.support.inprocess import settings_in
from tests.support.reported_call import ReportedCall

NUMBER_ID = "num_1"


@dataclass(kw_only=True)
class KeptCall(ReportedCall):
    """One call of the gateway. ``events``: those in the database that a worker reported."""

    new: NewCall

    @property
    def id(self) -> str:
        return self.new.id

    @property
    def room(self) -> str:
        return self.new.room_name

    @property
    def identity(self) -> str:
        """The identity of the far end's participant."""
        return self.new.participant_identity


class _EarlierTokens(TokenIssuer):
    """Makes tokens that look a minute old."""

    def _sign(self, audience: Audience, subject: str, ttl: timedelta, **more: Any) -> str:
        return super()._sign(audience, subject, ttl - timedelta(minutes=1), **more)


class WorkerGateway:
    """The gateway in this process. It has no LiveKit: the tests record its calls, and send for
    another agent when one is lost."""

    def __init__(self, app: web.Application, livekit_api_secret: str) -> None:
        self.tokens = TokenIssuer(livekit_api_secret)
        self.calls: dict[str, KeptCall] = {}
        self.failing_with: int | None = None
        """If set, the status of every response."""
        self.url = ""
        self._app = app
        self._earlier_tokens = _EarlierTokens(livekit_api_secret)
        self._answers: list[tuple[str, str, int]] = []
        self._beats: list[Heartbeat] = []
        self._news = asyncio.Condition()

    @classmethod
    @contextlib.asynccontextmanager
    async def run(
        cls, livekit_api_key: str, livekit_api_secret: str, folder: Path | None = None
    ) -> AsyncIterator[WorkerGateway]:
        with tempfile.TemporaryDirectory() as temporary:
            settings = settings_in(
                folder or Path(temporary),
                livekit_api_key=livekit_api_key,
                livekit_api_secret=livekit_api_secret,
            )
            app = await create_app(settings)
            gateway = cls(app, livekit_api_secret)
            app.middlewares.insert(0, gateway._listen)
            async with served(app) as edge:
                gateway.url = f"http://127.0.0.1:{edge.port}"
                yield gateway

    # --- for the test's setup

    def new_call(self, config: AgentConfig, **changes: Any) -> KeptCall:
        """Return a call that is not recorded yet."""
        room = new_id("call")
        inbound = changes.get("direction") == "inbound"
        values: dict[str, Any] = {
            "id": call_id_of(room) if inbound else room,
            "auth_id": "acme",
            "direction": "outbound",
            "room_name": room,
            "participant_identity": "sip_+15550100",
            "from_number": "+15550199",
            "to_number": "+15550100",
            "max_duration_ms": config.max_duration_ms,
            "agent": Agent(id="test", version=1, config=config),
            "metadata": {},
        }
        call = KeptCall(new=NewCall(**(values | changes)))
        self.calls[call.id] = call
        return call

    async def record(self, call: KeptCall) -> None:
        await self._app[STORE].insert_call(call.new, CallEvent(type="call.queued"))

    async def answer_by(self, url: str, timeout_s: int) -> None:
        """Let the webhook at ``url`` answer the turns of agents with voiceMode webhook."""
        await self._app[WEBHOOKS].put("acme", "", url=url, context_limit=0, timeout_s=timeout_s)

    async def recording_key(self, call: KeptCall) -> str:
        """Return the name of the call's recording in its store."""
        kept = await self._app[STORE].call(Scope(None), call.id)
        assert kept is not None
        return object_key(kept.id, kept.auth_id, kept.created_at, "wav")

    async def end(self, call: KeptCall) -> None:
        """End the call without its worker."""
        over = CallEvent(type="call.ended", data=ended("canceled", "canceled"))
        await self._app[TIMELINE].append(call.id, [over], "gateway")

    async def lost(self, call: KeptCall, epoch: int = 0, within_s: float = 10.0) -> StoredEvent:
        """Wait until the call's agent of this epoch is lost; return the event."""
        store = self._app[STORE]
        async with asyncio.timeout(within_s), self._app[TIMELINE].listen(call.id) as news:
            while len(found := await store.events(call.id, types=["agent.lost"])) <= epoch:
                await news.wait(1.0)
        return found[epoch]

    async def everything(self, call: KeptCall) -> list[StoredEvent]:
        """Return the call's events of all sources."""
        return await self._app[STORE].events(call.id)

    async def shown(self, call: KeptCall) -> CallDetail:
        """Return the call as the API shows it."""
        found = await self._app[STORE].call_and_agent(call.id)
        assert found is not None
        return CallDetail.with_turns(found[0], await self._app[STORE].turns(call.id))

    async def lose(self, call: KeptCall) -> str:
        """Record that the call's first agent is lost; return the metadata of the next one's job."""
        data = {"epoch": 0, "why": "killed", "seenAt": rfc3339(now())}
        lost = CallEvent(id=f"{call.id}_lost_0", type="agent.lost", data=data)
        await self._app[TIMELINE].append(call.id, [lost], "gateway")
        job = JobMetadata(call_id=call.id, token=self.tokens.for_call(call.id, 1), epoch=1)
        return job.model_dump_json(by_alias=True)

    def job(self, call: KeptCall, *, epoch: int = 0, made_earlier: bool = False) -> str:
        """Return the metadata for the dispatch of the call's agent.

        ``made_earlier``: with a token so old that the call would have been recorded by now.
        """
        if call.new.direction == "inbound" and not epoch:
            return InboundJob(number_id=NUMBER_ID).model_dump_json(by_alias=True)
        tokens = self._earlier_tokens if made_earlier else self.tokens
        token = tokens.for_call(call.id, epoch)
        identity = agent_identity(call.room) if epoch else None
        job = JobMetadata(call_id=call.id, token=token, epoch=epoch, identity=identity)
        return job.model_dump_json(by_alias=True)

    # --- the workers' requests

    async def heartbeat(
        self, condition: Callable[[Heartbeat], bool], within_s: float = 15.0
    ) -> Heartbeat:
        """Return the next heartbeat that fulfils the condition.

        Earlier ones are stale: a call of under two seconds may fit between two heartbeats.
        """
        async with asyncio.timeout(within_s), self._news:
            known = len(self._beats)
            await self._news.wait_for(
                lambda: len(self._beats) > known and condition(self._beats[-1])
            )
            return self._beats[-1]

    async def worker(
        self, agent_name: str, *, not_of: Collection[str] = (), within_s: float = 15.0
    ) -> Heartbeat:
        """Return the newest heartbeat of a worker with this AGENT_NAME, but for those workers."""

        def found() -> Heartbeat | None:
            return next(
                (
                    beat
                    for beat in reversed(self._beats)
                    if beat.agent_name == agent_name and beat.worker_id not in not_of
                ),
                None,
            )

        async with asyncio.timeout(within_s), self._news:
            await self._news.wait_for(lambda: found() is not None)
        beat = found()
        assert beat is not None
        return beat

    async def answered(self, method: str, path: str, status: int, within_s: float = 20.0) -> None:
        """Wait until such a request has been answered with ``status``."""
        async with asyncio.timeout(within_s), self._news:
            await self._news.wait_for(lambda: (method, path, status) in self._answers)

    @web.middleware
    async def _listen(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.failing_with is not None:
            return web.json_response({}, status=self.failing_with)
        response = await handler(request)
        if response.status == 200 and request.path == "/internal/workers/heartbeat":
            token = request.headers["Authorization"].removeprefix("Bearer ")
            worker_id = self.tokens.verify(token, "switchroom:worker")
            beats = await self._app[STORE].workers()
            self._beats += [beat for beat in beats if beat.worker_id == worker_id]
        if response.status == 200 and request.path.endswith("/events"):
            await self._read(self.calls[request.match_info["id"]])
        async with self._news:
            self._answers.append((request.method, request.path, response.status))
            self._news.notify_all()
        return response

    async def _read(self, call: KeptCall) -> None:
        stored = await self._app[STORE].events(call.id)
        async with call.changed:
            call.events = [event for event in stored if event.source == "worker"]
            call.changed.notify_all()
