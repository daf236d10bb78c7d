"""Tells job processes that their worker is to stop.

livekit-agents ends a job when its call is over, or after the drain's time-out; a job that waits for
others to end a call has to learn of the drain. The end of a pipe tells it: it reaches every job
process, also one that is started later, and one whose main process was killed.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.connection import Connection


class Drain:
    """The main process's end. Job processes get ``told`` when they are started."""

    def __init__(self) -> None:
        self.told, self._telling = multiprocessing.Pipe(duplex=False)

    def begin(self) -> None:
        """Tell all job processes. Idempotent."""
        self._telling.close()


def drained(told: Connection) -> asyncio.Event:
    """Return an event that is set when the worker is to stop. Call it in the job's event loop."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell() -> None:
        loop.remove_reader(told.fileno())
        event.set()

    loop.add_reader(told.fileno(), tell)
    return event
