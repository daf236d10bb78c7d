"""Delete recordings whose time is over."""

from __future__ import annotations

import asyncio
import logging

from core.errors import AppError
from core.recordings.config import Region
from gateway.recordings.service import RecordingService, Refused
from gateway.store.recordings.recordings import StoredRecording

log = logging.getLogger(__name__)

PERIOD_S = 60.0
_BATCH = 50
_FARTHEST = 64
"""Rounds between two attempts to delete a recording that its store refuses to delete."""


class Retention:
    """Several gateways may run it at a time: each recording is recorded as deleted once."""

    def __init__(self, service: RecordingService, *, batch: int = _BATCH) -> None:
        self._service = service
        self._batch = batch
        self._round = 0
        self._refused: dict[str, tuple[int, int]] = {}
        """For such a recording, the rounds until it is tried again, and the round when it is."""

    async def run(self, period_s: float = PERIOD_S) -> None:
        """Run until cancelled. What fails is tried again in a later round."""
        while True:
            try:
                await self.round()
            except AppError as error:
                log.warning("recordings could not be expired", extra={"problem": error.code})
            except Exception:
                # This loop must survive: nothing else deletes recordings in time.
                log.exception("expiring recordings failed")
            await asyncio.sleep(period_s)

    async def round(self) -> int:
        """Delete all that are due, but for those in stores that are away; return how many.

        One that its store refuses to delete delays no other. It is tried again 1, 2, 4, … rounds
        later.
        """
        self._round += 1
        rows, deleted = self._service.rows, 0
        away: set[Region | None] = set()
        seen: set[str] = set()
        last: StoredRecording | None = None
        while due := await rows.due(limit=self._batch, after=last, without=away):
            last = due[-1]
            for recording in due:
                seen.add(recording.call_id)
                distance, again = self._refused.get(recording.call_id, (0, 0))
                if recording.region in away or self._round < again:
                    continue
                try:
                    deleted += await self._service.delete(recording, "retention")
                except Refused:
                    distance = min(max(1, 2 * distance), _FARTHEST)
                    self._refused[recording.call_id] = distance, self._round + distance
                except AppError as error:
                    away.add(recording.region)
                    facts = {"region": recording.region, "problem": error.code}
                    log.warning("a store keeps recordings that are due", extra=facts)
        self._refused = {id: wait for id, wait in self._refused.items() if id in seen}
        return deleted
