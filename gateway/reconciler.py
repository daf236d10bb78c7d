"""Finishes the records of calls that nobody follows any more.

A gateway killed in mid-dial, a lost webhook: LiveKit knows whether the call's
participant is still there. At the start and every minute; never dials.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import aiohttp
from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.room import RoomParticipantIdentity

from core.errors import AppError
from core.events import ended
from core.models import Call, CallEvent, now
from core.store import Store
from gateway.live import Timeline
from gateway.outbound import Outbound

log = logging.getLogger(__name__)

PERIOD_S = 60.0
# Younger calls may be between their record and their participant.
_SETTLED = timedelta(seconds=20)


class Reconciler:
    def __init__(
        self,
        *,
        livekit: LiveKitAPI,
        store: Store,
        timeline: Timeline,
        outbound: Outbound,
        second_look_s: float = 5.0,
    ) -> None:
        self._second_look_s = second_look_s
        self._livekit = livekit
        self._store = store
        self._timeline = timeline
        self._outbound = outbound

    async def run(self, period_s: float = PERIOD_S) -> None:
        """Until cancelled. A failing round is logged and the next one tried."""
        while True:
            try:
                await self.round()
            except (AppError, aiohttp.ClientError, TimeoutError) as error:
                log.warning("reconciling failed", extra={"problem": type(error).__name__})
            except Exception:
                # Nobody would notice a reconciler that died of one odd call.
                log.exception("reconciling failed")
            await asyncio.sleep(period_s)

    async def round(self) -> int:
        """Two looks at every unfinished call; how many were finished.

        A call that ended just now is missing from its room before its verdict is written,
        by this gateway or another: only one that is still open and still missing a moment
        later was left behind.
        """
        if suspects := await self._gone():
            await asyncio.sleep(self._second_look_s)
        finished = 0
        for call in await self._gone() if suspects else []:
            if call.id in {suspect.id for suspect in suspects}:
                await self._finish(call)
                finished += 1
        await self._store.sweep()
        return finished

    async def _gone(self) -> list[Call]:
        """Unfinished calls of nobody's whose participant is in no room."""
        gone = []
        for call in await self._store.unfinished_calls(created_before=now() - _SETTLED):
            if self._outbound.follows(call.id):
                continue
            try:
                if not await self._present(call):
                    gone.append(call)
            except ServerError as error:
                # One call that LiveKit will not talk about must not keep the others open.
                facts = {"call_id": call.id, "problem": error.code}
                log.warning("LiveKit does not tell of a call", extra=facts)
        return gone

    async def _present(self, call: Call) -> bool:
        whom = RoomParticipantIdentity(room=call.room_name, identity=call.participant_identity)
        try:
            await self._livekit.room.get_participant(whom)
        except ServerError as error:
            if error.code == "not_found":
                return False
            raise
        return True

    async def _finish(self, call: Call) -> None:
        if call.answered_at is not None:
            data = ended("completed", "user_hangup", note="found gone")
        elif call.participant_id is None:
            data = ended("failed", "dial_failed", note="never dialled")
        else:
            data = ended("failed", "dial_failed", note="found gone before an answer was seen")
        log.info("finished a call nobody followed", extra={"call_id": call.id})
        await self._timeline.append(
            call.id, [CallEvent(type="call.ended", data=data)], "reconciler"
        )
