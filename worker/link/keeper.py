"""Writes one call's spool in a separate thread, so that a slow disk does not delay audio."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from core.models import CallEvent
from worker.link.spool import Owner, Spool

log = logging.getLogger(__name__)

_PATIENCE_S = 2.0  # a disk that takes longer counts as failed


class Keeper:
    """Runs all operations in order. None of them raises; those that are no coroutines do not wait.

    Each event goes to the thread at once rather than through the event loop, so that it is on its
    way to the file before anything else happens.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._spool: Spool | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")
        self.complete = True
        """True if the file has all events that were kept and not forgotten."""

    def open(self, owner: Owner, events: Iterable[CallEvent]) -> None:
        """Create the file with the ``events`` so far. Call it once, before all other methods."""
        known = list(events)

        def make() -> None:
            self._spool = Spool.create(self._directory, owner)
            for event in known:
                self._spool.append(event)

        self._submit(make, "no spool, events are kept in memory", loses=True)

    def keep(self, event: CallEvent) -> None:
        def append() -> None:
            if self._spool is not None:
                self._spool.append(event)

        self._submit(append, "spool not writable, kept in memory", loses=True)

    def forget(self) -> None:
        """Clear the file, because all events kept so far are delivered."""

        def clear() -> None:
            if self._spool is not None:
                self._spool.clear()
                self.complete = True

        self._submit(clear, "cannot clear the spool")

    def set_aside(self, events: list[CallEvent], reason: str) -> None:
        """Set aside events that the gateway refused for good."""

        def reject() -> None:
            if self._spool is not None:
                self._spool.reject(events, reason)

        self._submit(reject, "cannot keep refused events")

    async def settled(self) -> None:
        """Wait until all previous operations are done, or the disk takes too long."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await asyncio.wrap_future(self._thread.submit(lambda: None))
        except TimeoutError:
            log.error("the disk does not answer")

    async def aclose(self, *, delivered: bool) -> None:
        """Remove the file if all is delivered, else leave it to the sweeper. Call it once."""

        def close() -> None:
            if self._spool is not None:
                (self._spool.remove if delivered else self._spool.release)()

        self._submit(close, "cannot close the spool")
        try:
            await self.settled()
        finally:
            self._thread.shutdown(wait=False)

    def _submit(self, step: Callable[[], None], message: str, *, loses: bool = False) -> None:
        def run() -> None:
            try:
                step()
            except OSError as error:
                if self.complete or not loses:
                    log.error(message, extra={"error": str(error)})
                self.complete = self.complete and not loses

        self._thread.submit(run)
