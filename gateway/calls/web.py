"""Web calls, from a browser: the room, its agent, the visitor's token, and how the call starts."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Any

from livekit.api import LiveKitAPI

from core.errors import AppError
from core.events import ended
from core.legs import Leg
from core.models import Agent, CallEvent, new_id
from core.settings import Settings
from core.tasks.owned import Owned
from gateway.calls.dispatcher import Arrival, Dispatcher
from gateway.calls.limits import CallLimits
from gateway.calls.livekit import close_room
from gateway.calls.room_tokens import join_token
from gateway.calls.rooms import LiveKitRooms
from gateway.calls.timeline import Journal, Timeline, Watch
from gateway.store.call_status import Call
from gateway.store.calls import NewCall, Store
from gateway.store.database import Principal
from gateway.store.room_names import Claim
from sip.dispatch import EMPTY_TIMEOUT_S
from sip.twirp import livekit_errors

log = logging.getLogger(__name__)

VISITOR = "visitor"
"""The visitor's identity. The room is the call's own, and named after it."""

# LiveKit keeps an empty room for so long.
JOIN_WITHIN = timedelta(seconds=EMPTY_TIMEOUT_S)


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
        """``news_within_s``: how long a worker's event may take to reach us."""
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
        self._tasks = Owned("following a web call")

    def follows(self, call_id: str) -> bool:
        """Return True while this process waits for the visitor, or the agent."""
        return call_id in self._tasks

    async def aclose(self) -> None:
        """Stop following; the reconciler of the next gateway ends the calls that nobody joined."""
        await self._tasks.aclose()

    async def open(
        self, principal: Principal, agent: Agent, metadata: dict[str, Any], *, record: bool
    ) -> tuple[Call, Claim]:
        """Create the call's record and room, and dispatch the agent; return record and claim.

        Raises TooManyRequests, Conflict, Unavailable, ServerFault. If there is a record by then,
        it says why.
        """
        await self._limits.take(principal.auth_id)
        call_id = new_id("call")
        new = NewCall(
            id=call_id,
            auth_id=principal.auth_id,
            direction="web",
            type="web",
            room_name=call_id,
            participant_identity=VISITOR,
            from_number=None,
            to_number=None,
            max_duration_ms=agent.config.max_duration_ms,
            agent=agent,
            metadata=metadata,
            record=record,
        )
        call = await self._limits.insert(new, CallEvent(type="call.queued"))
        try:
            await self._rooms.admit_to_call(call_id, VISITOR, self._join_within)
            with livekit_errors(failed="CALL_FAILED"):
                dispatch = self._dispatcher.dispatch(call_id, await self._dispatcher.seat(call_id))
                claimed = await self._rooms.enter(principal, call_id, [dispatch])
        except AppError:
            await self._write_off(call_id, ended("failed", "agent_error", note="no room"))
            raise
        self._tasks.begin(call_id, self._follow(call_id))
        return call, claimed.claim

    def adopt(self, call: Call) -> None:
        """Follow a call whose gateway is gone, from here on."""
        self._tasks.begin(call.id, self._follow(call.id))

    async def _follow(self, call_id: str) -> None:
        """Wait until agent and visitor have met; if they do not, end the call, close the room."""
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
            await close_room(self._livekit, call_id)

    async def _await_visitor(self, call_id: str, watch: Watch) -> None:
        met = ("call.answered", "call.ended")
        await watch.until(
            *met, "livekit.participant_left", timeout_s=self._join_within.total_seconds()
        )
        if not await watch.until(*met, timeout_s=self._news_within_s):
            await self._write_off(call_id, ended("canceled", "canceled", note="nobody came"))

    async def _write_off(self, call_id: str, data: dict[str, Any]) -> None:
        await self._journal.write(call_id, "call.ended", data)


def visitor_token(settings: Settings, claim: Claim) -> str:
    """Return a LiveKit token to join the call's room, speak and listen, while the room waits.

    LiveKit accepts it for a minute longer and creates the room again for it; that room is the
    tenant's, too.
    """
    return join_token(
        settings,
        claim,
        identity=VISITOR,
        name="Visitor",
        sources=["microphone"],
        data=False,
        valid=JOIN_WITHIN,
        attributes=Leg("visitor", claim.room_name).attributes,
    )
