"""A job's pulse: says twice a second, from the job's event loop, that the job lives."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from worker.pulse.beat import Beat, Says, tell

log = logging.getLogger(__name__)

EVERY_S = 0.5
# The audio hangs if it does not move for so many beats in a row, that is for four seconds. A call
# whose audio stands still is no less lost than one whose process does, but a false alarm cuts the
# caller off for some three seconds. So the limit is far above what a busy machine does to
# LiveKit's threads, and a beat that is late itself does not count.
_STILL_BEATS = 8
_LATE_S = 0.25
_OVER_WITHIN_S = 1.0
_RETRY_S = 0.05


class Heart:
    """Beats from ``start`` to ``stop``, by timers: no cancellation of tasks stops it.

    ``call_id`` returns the job's call, None while it is not known. ``still`` returns what should
    have moved since it was last called and did not (``input`` or ``output``), or None.
    """

    def __init__(
        self,
        told: Connection,
        job_id: str,
        epoch: int,
        *,
        call_id: Callable[[], str | None],
        still: Callable[[], str | None],
        every_s: float = EVERY_S,
    ) -> None:
        self._told = told
        self._job_id = job_id
        self._epoch = epoch
        self._call_id = call_id
        self._still = still
        self._every_s = every_s
        self._timer: asyncio.TimerHandle | None = None
        self._moved_at = time.time()
        self._still_beats = 0

    def start(self) -> None:
        self._timer = self._later(asyncio.get_running_loop().time())
        self._tell("alive")

    async def stop(self) -> None:
        """Say that the job is over. If the main process stands still, try for a second."""
        if self._timer is not None:
            self._timer.cancel()
        clock = asyncio.get_running_loop().time
        deadline = clock() + _OVER_WITHIN_S
        while not self._tell("over") and clock() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_RETRY_S)

    def _later(self, now: float) -> asyncio.TimerHandle:
        due = now + self._every_s
        return asyncio.get_running_loop().call_at(due, self._beat, due)

    def _beat(self, due: float) -> None:
        now = asyncio.get_running_loop().time()
        self._timer = self._later(now)
        late_s = now - due
        what = self._still()
        if what is None:
            self._still_beats, self._moved_at = 0, time.time()
        elif late_s <= _LATE_S:
            self._still_beats += 1
        if what is not None and self._still_beats >= _STILL_BEATS:
            self._tell("hung", f"no audio {what}")
        else:
            self._tell("alive")

    def _tell(self, says: Says, detail: str = "") -> bool:
        return tell(
            self._told,
            Beat(
                says=says,
                pid=os.getpid(),
                job_id=self._job_id,
                call_id=self._call_id(),
                epoch=self._epoch,
                seen_at=self._moved_at,
                detail=detail,
            ),
        )
