"""Refusing calls, one after the other: cheap, however many come."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from typing import Final

from sip.bridge.stack.phone import PhoneCall

log = logging.getLogger(__name__)

# Under a flood one line tells of all.
TELL_EVERY_S: Final = 1.0
# The bridge stops soon, however slow the stack is to refuse those who still wait.
CLOSE_WITHIN_S: Final = 3.0


class Refuser:
    """The stack takes a limited number of commands at a time, so one task gives them to it."""

    def __init__(self) -> None:
        self._calls: deque[PhoneCall] = deque()
        self._task: asyncio.Task[None] | None = None
        self._told: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def refuse(self, phone: PhoneCall, why: str) -> None:
        """486, soon."""
        self._calls.append(phone)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="refuser")
        self._told[why] += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TELL_EVERY_S, self._tell)

    async def close(self) -> None:
        """When all have been refused, or no later than ``CLOSE_WITHIN_S``.

        Nothing may be refused afterwards.
        """
        if (task := self._task) is not None:
            _, late = await asyncio.wait({task}, timeout=CLOSE_WITHIN_S)
            if late:
                left = len(self._calls) + 1  # the task has one in hand
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
                    # The others still wait for their refusal.
                    log.exception("refusing an incoming call failed")
        finally:
            self._task = None

    def _tell(self) -> None:
        self._timer = None
        for why, calls in self._told.items():
            log.warning("incoming calls refused", extra={"why": why, "calls": calls})
        self._told.clear()
