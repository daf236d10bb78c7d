"""Refuses calls one after the other, cheaply, however many arrive."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from typing import Final

from sip.bridge.stack.phone import PhoneCall

log = logging.getLogger(__name__)

# During a flood, one log line per interval sums up the refusals.
TELL_EVERY_S: Final = 1.0
# Bounds the bridge's shutdown, however slowly the stack refuses the remaining calls.
CLOSE_WITHIN_S: Final = 3.0


class Refuser:
    """Refuses calls from one task, since the stack takes few commands at a time."""

    def __init__(self, *, close_within_s: float = CLOSE_WITHIN_S) -> None:
        self._close_within_s = close_within_s
        self._calls: deque[PhoneCall] = deque()
        self._task: asyncio.Task[None] | None = None
        self._told: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def refuse(self, phone: PhoneCall, why: str) -> None:
        """Enqueue the call to be refused with 486."""
        self._calls.append(phone)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="refuser")
        self._told[why] += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TELL_EVERY_S, self._tell)

    async def close(self) -> None:
        """Wait until all calls are refused, at most ``close_within_s``.

        ``refuse`` must not be called afterwards.
        """
        if (task := self._task) is not None:
            _, late = await asyncio.wait({task}, timeout=self._close_within_s)
            if late:
                left = len(self._calls) + 1  # one more is being refused
                task.cancel()
                log.warning("incoming calls were not refused in time", extra={"calls": left})
                await asyncio.wait(late, timeout=1)
        if self._timer is not None:
            self._timer.cancel()
            self._tell()

    async def _run(self) -> None:
        try:
            while self._calls:
                phone = self._calls.popleft()
                try:
                    await phone.hang_up()
                except Exception:
                    # Go on: the other calls still wait for their refusal.
                    log.exception("refusing an incoming call failed")
        finally:
            self._task = None

    def _tell(self) -> None:
        self._timer = None
        for why, calls in self._told.items():
            log.warning("incoming calls refused", extra={"why": why, "calls": calls})
        self._told.clear()
