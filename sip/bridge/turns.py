"""Joining rooms a few calls at a time, none of them for long."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from sip.bridge.call import Call, canceled
from sip.bridge.twirp import TwirpError

# From the wish to the room. A gateway gives up after 10 s, and must have heard of it by then: a
# dial that joins later would ring a phone with nobody to talk to.
JOIN_WITHIN_S: Final = 9.0


class Turns:
    """Of calls that join; ``at_once`` do, ``waiting`` may wait."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._turns = asyncio.Semaphore(at_once)
        self._may_wait = waiting
        self._waiting = 0

    def check(self) -> None:
        """Raises TwirpError ``resource_exhausted`` when no further call may wait."""
        if self._waiting >= self._may_wait:
            raise TwirpError("resource_exhausted", "too many calls at once")

    async def join(self, call: Call) -> None:
        """As ``Call.join``, when it is this call's turn.

        Raises TwirpError ``resource_exhausted`` when its turn does not come in time, ``canceled``
        as soon as the call is over: it waits no longer, and keeps no other's place.
        """
        deadline = asyncio.get_running_loop().time() + JOIN_WITHIN_S
        self._waiting += 1
        try:
            await self._turn(call, deadline)
            try:
                await call.join(deadline)
            finally:
                self._turns.release()
        finally:
            self._waiting -= 1

    async def _turn(self, call: Call, deadline: float) -> None:
        turn = asyncio.ensure_future(self._turns.acquire())
        outcomes: set[asyncio.Future[Any]] = {turn, call.over}
        left = deadline - asyncio.get_running_loop().time()
        taken = False
        try:
            await asyncio.wait(outcomes, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if call.over.done():
                raise canceled(call.over.result())
            if not turn.done():
                raise TwirpError("resource_exhausted", "too many calls at once")
            taken = True
        finally:
            # It may have come together with the end of the call, or of the wait.
            if not taken and not turn.cancel():
                self._turns.release()
