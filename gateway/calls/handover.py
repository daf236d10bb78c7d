"""The end of a transferred call, in which the agent has left the caller with a human.

When either leaves, the other is hung up. A human whose caller left before the handover is hung up
too, even if the worker has died: nobody is left in an empty room.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from livekit.api import LiveKitAPI
from livekit.protocol.models import ParticipantInfo

from core.events import ended
from core.legs import Leg
from core.models import CallEvent
from gateway.calls.livekit import (
    LIVEKIT_ERRORS,
    TRY_AGAIN_S,
    leg_of,
    present,
    send_away_or_log,
)
from gateway.calls.timeline import Timeline
from gateway.store.call_status import Call
from gateway.store.calls import Store
from gateway.store.database import Scope

log = logging.getLogger(__name__)


def humans_of(call: Call, present: Iterable[ParticipantInfo]) -> list[ParticipantInfo]:
    """Return the humans who were dialled to take over the call and are still in its room."""
    human = Leg("human", call.id)
    return [other for other in present if leg_of(other) == human]


async def is_transferred(store: Store, call_id: str) -> bool:
    """Return True if a human has taken over the caller."""
    return bool(await store.events(call_id, types=["call.transferred"]))


async def is_referring(store: Store, call_id: str) -> bool:
    """Return True if the caller's phone was referred and the outcome is not known yet."""
    told = await store.events(call_id, types=["transfer.started", "transfer.failed"])
    return bool(told) and told[-1].data.get("mode") == "cold"


class Handover:
    """Ends transferred calls. LiveKit's failures are logged."""

    def __init__(
        self,
        livekit: LiveKitAPI,
        store: Store,
        timeline: Timeline,
        *,
        pauses_s: Sequence[float] = TRY_AGAIN_S,
    ) -> None:
        """``pauses_s``: the pauses between the attempts to hang up."""
        self._livekit = livekit
        self._store = store
        self._timeline = timeline
        self._pauses_s = pauses_s

    async def human_left(self, call_id: str, room_name: str, at: datetime) -> None:
        """End the call that the human had taken over; before that, the worker handles it."""
        call = await self._store.call(Scope(None), call_id)
        if call is None or call.ended or call.room_name != room_name:
            return
        if not await is_transferred(self._store, call_id):
            return
        limit = timedelta(milliseconds=call.max_duration_ms)
        # The human's leg is limited to the call's remaining time, in whole seconds.
        too_long = call.answered_at is not None and at - call.answered_at >= limit
        data = ended("completed", "max_duration_reached" if too_long else "call_transfer")
        # Before the hang-up, so that LiveKit's webhook finds the reason already recorded.
        over = CallEvent(type="call.ended", at=at, data=data)
        await self._timeline.append(call_id, [over], "livekit")
        await self._hang_up(room_name, call.participant_identity)

    async def caller_left(self, call: Call) -> None:
        """Hang up the humans who were dialled to take over the call, or have taken it over."""
        if not await self._store.events(call.id, types=["transfer.started"]):
            return
        try:
            others = await present(self._livekit, call.room_name)
        except LIVEKIT_ERRORS as error:
            log.warning(
                "cannot look for a transfer's human", extra={"problem": type(error).__name__}
            )
            return
        for human in humans_of(call, others):
            await self._hang_up(call.room_name, human.identity)

    async def _hang_up(self, room_name: str, identity: str) -> None:
        await send_away_or_log(self._livekit, room_name, identity, pauses_s=self._pauses_s)
