"""A call that was handed over, once its agent has left: caller and human, and how it ends.

When either leaves, the other is hung up. The same goes for a human whose caller has left
before: whatever became of the worker, nobody is left talking to an empty room.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime, timedelta

from livekit.api import LiveKitAPI
from livekit.protocol.models import ParticipantInfo

from core.events import ended
from core.legs import Leg
from core.models import CallEvent
from gateway.calls.livekit import LIVEKIT_ERRORS, leg_of, present, send_away_or_log
from gateway.calls.timeline import Timeline
from gateway.store.call_record import Call
from gateway.store.calls import Store
from gateway.store.database import Scope

log = logging.getLogger(__name__)


def humans_of(call: Call, present: Iterable[ParticipantInfo]) -> list[ParticipantInfo]:
    """Those who were dialled to take the call over, and are still in its room."""
    human = Leg("human", call.id)
    return [other for other in present if leg_of(other) == human]


async def is_transferred(store: Store, call_id: str) -> bool:
    """Whether a human has the caller."""
    return bool(await store.events(call_id, types=["call.transferred"]))


async def is_referring(store: Store, call_id: str) -> bool:
    """Whether the caller's phone has been sent elsewhere, and what came of it is not known yet."""
    told = await store.events(call_id, types=["transfer.started", "transfer.failed"])
    return bool(told) and told[-1].data.get("mode") == "cold"


class Handover:
    """Ends what was handed over. Failures of LiveKit are logged."""

    def __init__(self, livekit: LiveKitAPI, store: Store, timeline: Timeline) -> None:
        self._livekit = livekit
        self._store = store
        self._timeline = timeline

    async def human_left(self, call_id: str, room_name: str, at: datetime) -> None:
        """Of a transfer that did not come about it is the worker's business."""
        call = await self._store.call(Scope(None), call_id)
        if call is None or call.ended or call.room_name != room_name:
            return
        if not await is_transferred(self._store, call_id):
            return
        limit = timedelta(milliseconds=call.max_duration_ms)
        # The human's phone is given what is left of the time, in whole seconds.
        too_long = call.answered_at is not None and at - call.answered_at >= limit
        data = ended("completed", "max_duration_reached" if too_long else "call_transfer")
        # Before the hang-up, so that LiveKit's webhook finds the reason already there.
        over = CallEvent(type="call.ended", at=at, data=data)
        await self._timeline.append(call_id, [over], "livekit")
        await send_away_or_log(self._livekit, room_name, call.participant_identity)

    async def caller_left(self, call: Call) -> None:
        """Send away whoever was to take the call, or has taken it."""
        if not await self._store.events(call.id, types=["transfer.started"]):
            return
        try:
            others = await present(self._livekit, call.room_name)
        except LIVEKIT_ERRORS as error:
            log.warning("cannot look for a human", extra={"problem": type(error).__name__})
            return
        for human in humans_of(call, others):
            await send_away_or_log(self._livekit, call.room_name, human.identity)
