"""Watches the worker's jobs from its main process: a job that dies or hangs is lost."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.recovery import Why
from worker.pulse.beat import Beat, Pulses

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.25
_STOPPED_S = 2.0
"""Without a pulse for this long (two a second), a job hangs."""
_STARTING_S, _SLOWER = 10.0, 3.0
"""In its first seconds a job joins its room and warms up, and has so much more time."""
_LATE_S = 1.0
"""A look that is so late: this process stood still, and knows nothing of its jobs."""
_MISSED_S = 1.0
_STARVED_S = 4.0
"""On a busy machine, a job has so much more time: as long as the kernel does not let it run."""
_DIES_WITHIN_S = 1.0
_REPORTED_WITHIN_S = 3.0
_REMEMBERED = 1000


@dataclass(slots=True)
class _Job:
    last: Beat
    heard_at: float  # loop time; later by what the job could not run since
    since: float  # loop time of its first pulse
    starved_s: float = 0.0
    waited_s: float | None = None  # see _waited_s, when last looked at
    pidfd: int | None = None
    why: Why = "killed"
    detail: str = ""
    dying: asyncio.TimerHandle | None = None


OnLost = Callable[[Beat, Why, str], Coroutine[Any, Any, None]]
"""Gets a lost job's last beat, why it is lost, and a detail. Its process is dead by then."""


class Watch:
    """Calls ``on_lost``, which must not raise, once for each lost job."""

    def __init__(
        self,
        pulses: Pulses,
        on_lost: OnLost,
        *,
        stopped_s: float = _STOPPED_S,
    ) -> None:
        self._pulses = pulses
        self._on_lost = on_lost
        self._stopped_s = stopped_s
        self._jobs: dict[str, _Job] = {}
        self._gone: deque[str] = deque(maxlen=_REMEMBERED)
        self._reports: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pulses.fileno(), self._hear)
        try:
            while True:
                looked_at = loop.time()
                await asyncio.sleep(_LOOK_EVERY_S)
                self._look(loop.time(), late_s=loop.time() - looked_at - _LOOK_EVERY_S)
        finally:
            loop.remove_reader(self._pulses.fileno())

    async def aclose(self) -> None:
        """Wait a moment for jobs that have just ended, and for the reports of lost ones."""
        self._hear()
        for job in list(self._jobs.values()):
            if _is_dead(job):
                self._ended(job)
        if self._reports:
            await asyncio.wait(self._reports, timeout=_REPORTED_WITHIN_S)
        for job in list(self._jobs.values()):
            self._forget(job)
        for report in self._reports:
            report.cancel()
        await asyncio.gather(*self._reports, return_exceptions=True)

    def _hear(self) -> None:
        now = asyncio.get_running_loop().time()
        for beat in self._pulses.read():
            job = self._jobs.get(beat.job_id)
            if job is None:
                if beat.job_id in self._gone:
                    continue
                job = self._jobs[beat.job_id] = _Job(beat, now, now)
                self._follow(job)
            job.last, job.heard_at, job.starved_s, job.waited_s = beat, now, 0.0, None
            if beat.says == "over":
                self._forget(job)
            elif beat.says == "hung":
                self._kill(job, beat.detail)

    def _follow(self, job: _Job) -> None:
        """Learn at once when the job's process ends. Where the kernel does not tell, its pulses
        are missed."""
        try:
            job.pidfd = os.pidfd_open(job.last.pid)
        except ProcessLookupError:
            # What it has said may not all be read.
            asyncio.get_running_loop().call_soon(self._ended, job)
        except (AttributeError, OSError) as error:
            log.warning("cannot follow a process", extra={"error": str(error)})
        else:
            asyncio.get_running_loop().add_reader(job.pidfd, self._ended, job)

    def _look(self, now: float, *, late_s: float) -> None:
        if late_s > _LATE_S:
            log.warning("this process stood still", extra={"seconds": round(late_s, 1)})
            for job in self._jobs.values():
                job.heard_at = now
            return
        for job in list(self._jobs.values()):
            if now - job.heard_at > _MISSED_S:
                _excuse(job)
            starting = now - job.since < _STARTING_S
            if now - job.heard_at > self._stopped_s * (_SLOWER if starting else 1.0):
                self._kill(job, "no pulse")

    def _kill(self, job: _Job, detail: str) -> None:
        if job.dying is not None:
            return
        job.why, job.detail = "hung", detail
        loop = asyncio.get_running_loop()
        log.error("a job hangs, and is killed", extra=_facts(job))
        try:
            if job.pidfd is not None:
                signal.pidfd_send_signal(job.pidfd, signal.SIGKILL)
            else:
                os.kill(job.last.pid, signal.SIGKILL)
        except ProcessLookupError:
            job.why, job.detail = "killed", ""
        wait_s = _DIES_WITHIN_S if job.pidfd is not None else 0.0
        job.dying = loop.call_later(wait_s, self._ended, job)

    def _ended(self, job: _Job) -> None:
        self._hear()
        if self._jobs.get(job.last.job_id) is not job:
            return
        self._forget(job)
        log.error("a job is lost", extra=_facts(job))
        report = asyncio.create_task(
            self._on_lost(job.last, job.why, job.detail), name=f"lost agent of {job.last.call_id}"
        )
        self._reports.add(report)
        report.add_done_callback(self._reports.discard)

    def _forget(self, job: _Job) -> None:
        del self._jobs[job.last.job_id]
        self._gone.append(job.last.job_id)
        if job.dying is not None:
            job.dying.cancel()
        if job.pidfd is not None:
            asyncio.get_running_loop().remove_reader(job.pidfd)
            os.close(job.pidfd)
            job.pidfd = None


def _excuse(job: _Job) -> None:
    """Do not hold against the job the time that it has waited for a processor."""
    before, job.waited_s = job.waited_s, _waited_s(job.last.pid)
    if before is not None and job.waited_s is not None:
        waited_s = min(job.waited_s - before, _STARVED_S - job.starved_s)
        job.starved_s += waited_s
        job.heard_at += waited_s


def _waited_s(pid: int) -> float | None:
    """Return how long the process's first thread, which has the event loop, was ready to run and
    did not, since its start (Linux: proc(5), sched-stats). None if the kernel does not tell."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None


def _is_dead(job: _Job) -> bool:
    if job.pidfd is None:
        return False
    poll = select.poll()
    poll.register(job.pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _facts(job: _Job) -> dict[str, object]:
    return {
        "call_id": job.last.call_id,
        "why": job.why,
        "detail": job.detail,
        "pid": job.last.pid,
    }
