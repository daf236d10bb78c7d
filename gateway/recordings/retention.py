"""Delete recordings whose time is over."""

from __future__ import annotations

import asyncio
import logging

from core.errors import AppError
from core.recordings.config import Region
from gateway.recordings.service import RecordingService

log = logging.getLogger(__name__)

PERIOD_S = 60.0
_BATCH = 50


class Retention:
    """Several gateways may run it at a time: each recording is recorded as deleted once."""

    def __init__(self, service: RecordingService, *, batch: int = _BATCH) -> None:
        self._service = service
        self._batch = batch

    async def run(self, period_s: float = PERIOD_S) -> None:
        """Run until cancelled. What fails is tried again in the next round."""
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
        """Delete all that are due, but for those in stores that fail; return how many."""
        rows, deleted = self._service.rows, 0
        failing: set[Region | None] = set()
        while due := await rows.due(limit=self._batch, without=failing):
            for recording in due:
                if recording.region in failing:
                    continue
                try:
                    deleted += await self._service.delete(recording, "retention")
                except AppError as error:
                    failing.add(recording.region)
                    facts = {"region": recording.region, "problem": error.code}
                    log.warning("a store keeps recordings that are due", extra=facts)
        return deleted
