"""``POST /v1/calls/web``: a call with an agent from a browser.

The room is made for the call, with its agent in it; the visitor gets a token for that one
room. Every call is followed until its visitor has come or, for too long, has not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

from aiohttp import web
from livekit.api import LiveKitAPI
from livekit.protocol.room import DeleteRoomRequest
from pydantic import BaseModel, ConfigDict, Field, StrictStr
from pydantic.alias_generators import to_camel

from core.errors import AppError, ServerFault
from core.events import ended
from core.models import Agent, Call, CallEvent, Model, Timestamp, new_id, now
from core.settings import Settings
from gateway.api.from_number import Metadata, agent_of
from gateway.auth.tokens import PRINCIPAL, Principal
from gateway.calls.following import LIVEKIT_ERRORS, Arrival, Dispatcher, Journal, Watch
from gateway.calls.limits import CallLimits
from gateway.calls.outbound import no_worker, worker_free
from gateway.calls.room_tokens import join_token
from gateway.calls.rooms import LiveKitRooms
from gateway.calls.timeline import Timeline
from gateway.calls.variables import Variables, fill
from gateway.http.body import parse_body
from gateway.http.idempotency import once
from gateway.http.route import Route
from gateway.keys import SETTINGS, STORE, WEB_CALLS, WEBHOOKS
from gateway.store.calls import NewCall, Store
from gateway.store.database import Scope
from gateway.store.lookup import check_takes_calls
from gateway.store.room_names import Claim
from sip.dispatch import EMPTY_TIMEOUT_S
from sip.twirp import livekit_errors

log = logging.getLogger(__name__)

VISITOR = "visitor"
"""The visitor's identity, in a room of the call's own."""

# LiveKit keeps the room so long for somebody to come.
JOIN_WITHIN = timedelta(seconds=EMPTY_TIMEOUT_S)


class CreateWebCall(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")

    agent_id: StrictStr = Field(min_length=1, max_length=64)
    variables: Variables | None = Field(
        None,
        description="Fill {{name}} in all that the agent says or is told; null fills in nothing, "
        "names that are not given stay as they are.",
    )
    metadata: Metadata | None = Field(None, description="Kept on the record.")


class WebCall(Model):
    """What a browser needs to join: ``room.connect(livekitUrl, accessToken)``."""

    id: str = Field(description="The record: GET /v1/calls/{id}.", examples=["call_…"])
    call_id: str = Field(description="Another name of id.")
    access_token: str = Field(description="For this call alone: microphone and listening.")
    livekit_url: str = Field(examples=["wss://livekit.example.com"])
    expires_at: Timestamp = Field(description="A call that nobody has joined by then is over.")


class WebCalls:
    """Opens calls for browsers, and owns the tasks that follow them."""

    def __init__(
        self,
        *,
        livekit: LiveKitAPI,
        store: Store,
        timeline: Timeline,
        rooms: LiveKitRooms,
        journal: Journal,
        dispatcher: Dispatcher,
        limits: CallLimits,
        agent_join_timeout_s: float,
        join_within: timedelta = JOIN_WITHIN,
        news_within_s: float = 5.0,
    ) -> None:
        """``news_within_s``: how long what a worker saw may be on its way to us."""
        self._livekit = livekit
        self._store = store
        self._timeline = timeline
        self._rooms = rooms
        self._journal = journal
        self._dispatcher = dispatcher
        self._limits = limits
        self._agent_join_timeout_s = agent_join_timeout_s
        self._join_within = join_within
        self._news_within_s = news_within_s
        self._tasks: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Stop following; the reconciler of the next gateway finishes what nobody joined."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def open(
        self, principal: Principal, agent: Agent, metadata: dict[str, Any]
    ) -> tuple[Call, Claim]:
        """The call's record and the claim on its room, with the agent on its way there.

        Raises TooManyRequests, Conflict, Unavailable, ServerFault; once there is a record, it
        says why.
        """
        self._limits.take(principal.auth_id)
        call_id = new_id("call")
        new = NewCall(
            id=call_id,
            auth_id=principal.auth_id,
            direction="web",
            room_name=call_id,
            participant_identity=VISITOR,
            from_number=None,
            to_number=None,
            max_duration_ms=agent.config.max_duration_ms,
            agent=agent,
            metadata=metadata,
        )
        call = await self._limits.insert(new, CallEvent(type="call.queued"))
        if not await worker_free(self._store, self._dispatcher.agent_name):
            await self._write_off(call_id, ended("failed", "agent_unavailable"))
            raise no_worker()
        try:
            await self._rooms.admit_to_call(call_id, VISITOR, self._join_within)
            with livekit_errors(failed="CALL_FAILED"):
                dispatch = self._dispatcher.dispatch(call_id)
                claimed = await self._rooms.enter(principal, call_id, [dispatch])
        except AppError:
            await self._write_off(call_id, ended("failed", "agent_error", note="no room"))
            raise
        self._spawn(call_id, self._follow(call_id))
        return call, claimed.claim

    async def _follow(self, call_id: str) -> None:
        """Until agent and visitor have met; otherwise the call is over, and its room closed."""
        watch = Watch(call_id, self._store, self._timeline)
        arrival = Arrival(
            call_id,
            call_id,
            watch=watch,
            journal=self._journal,
            dispatcher=self._dispatcher,
            timeout_s=self._agent_join_timeout_s,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(arrival.seen())
            group.create_task(self._await_visitor(call_id, watch))
        if not await watch.seen("call.answered"):
            await self._close(call_id)

    async def _await_visitor(self, call_id: str, watch: Watch) -> None:
        met = ("call.answered", "call.ended")
        await watch.until(
            *met, "livekit.participant_left", timeout_s=self._join_within.total_seconds()
        )
        if not await watch.until(*met, timeout_s=self._news_within_s):
            await self._write_off(call_id, ended("canceled", "canceled", note="nobody came"))

    async def _write_off(self, call_id: str, data: dict[str, Any]) -> None:
        await self._journal.write(call_id, "call.ended", data)

    async def _close(self, call_id: str) -> None:
        try:
            await self._livekit.room.delete_room(DeleteRoomRequest(room=call_id))
        except LIVEKIT_ERRORS:
            # Mostly it is gone already; if not, it has time-outs of its own.
            log.info("room left to its own time-out", extra={"call_id": call_id})

    def _spawn(self, call_id: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"web {call_id}")
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            log.error("following a web call failed", exc_info=task.exception())


def visitor_token(settings: Settings, claim: Claim) -> str:
    """A LiveKit token to join the call's room with, as long as it waits: speak and listen.

    LiveKit takes it for a minute longer than it says, and makes the room again for it: that one
    is the tenant's, too.
    """
    return join_token(
        settings,
        claim,
        identity=VISITOR,
        name="Visitor",
        sources=["microphone"],
        data=False,
        valid=JOIN_WITHIN,
    )


async def create(request: web.Request) -> web.StreamResponse:
    """A room with the agent, and a token to join it from a browser, within 30 seconds."""
    principal = request[PRINCIPAL]
    body = await parse_body(request, CreateWebCall)
    settings, web_calls = request.app[SETTINGS], request.app[WEB_CALLS]
    if web_calls is None:
        raise ServerFault("LiveKit is not configured", code="LIVEKIT_NOT_CONFIGURED")

    async def effect() -> dict[str, Any]:
        agent = await agent_of(request, Scope(principal.auth_id), body.agent_id)
        await check_takes_calls(agent, principal.auth_id, request.app[WEBHOOKS])
        tailored = fill(agent, body.variables or {})
        call, claim = await web_calls.open(principal, tailored, body.metadata or {})
        return WebCall(
            id=call.id,
            call_id=call.id,
            access_token=visitor_token(settings, claim),
            livekit_url=settings.livekit_browser_url,
            expires_at=now() + JOIN_WITHIN,
        ).wire()

    return await once(request, request.app[STORE], principal, body, effect)


ROUTES: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/v1/calls/web",
        handler=create,
        summary="Call an agent from a browser",
        tag="Calls",
        body=CreateWebCall,
        answer=WebCall,
        errors=(
            (404, "AGENT_NOT_FOUND"),
            (409, "AGENT_DISABLED"),
            (409, "WEBHOOK_NOT_CONFIGURED"),
            (409, "PARTICIPANT_EXISTS"),
            (429, "RATE_LIMITED"),
            (429, "CONCURRENCY_LIMIT"),
            (500, "LIVEKIT_NOT_CONFIGURED"),
            (500, "CALL_FAILED"),
            (503, "LIVEKIT_UNAVAILABLE"),
            (503, "AGENT_UNAVAILABLE"),
            (503, "STORE_UNAVAILABLE"),
        ),
        idempotent=True,
    ),
)
