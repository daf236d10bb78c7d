"""Lets a few calls at a time join their rooms, each within a deadline."""

from __future__ import annotations

import asyncio
from typing import Final

from core.tasks.first_of import first_of
from sip.bridge.twirp import TwirpError
from sip.endings import Ending
from sip.room_leg import NotJoined, OverAlready, RoomLeg

# From the request to the room. The gateway gives up after 10 s and must have the outcome by then:
# a dial that joins later would ring a phone with nobody to talk to.
JOIN_WITHIN_S: Final = 9.0


class Turns:
    """Queues joins: ``at_once`` may run, and no further call may queue while ``waiting`` do."""

    def __init__(self, at_once: int, waiting: int, *, join_within_s: float = JOIN_WITHIN_S) -> None:
        self._turns = asyncio.Semaphore(at_once)
        self._may_wait = waiting
        self._waiting = 0
        self._join_within_s = join_within_s

    def check(self) -> None:
        """Raises TwirpError ``resource_exhausted`` if no further call may wait."""
        if self._waiting >= self._may_wait:
            raise TwirpError("resource_exhausted", "too many calls at once")

    async def join(self, leg: RoomLeg) -> None:
        """Wait for a turn, then ``RoomLeg.join``.

        Raises TwirpError: ``unavailable`` if the room cannot be joined, ``resource_exhausted`` if
        the turn does not come in time, ``canceled`` as soon as the call is over, which frees the
        turn or the place in the queue.
        """
        deadline = asyncio.get_running_loop().time() + self._join_within_s
        self._waiting += 1
        try:
            await self._turn(leg, deadline)
            try:
                await leg.join(deadline)
            except NotJoined as error:
                # Nobody was called, and a retry may succeed a moment later.
                raise TwirpError("unavailable", "the room could not be joined") from error
            except OverAlready as over:
                raise _canceled(over.ending) from over
            finally:
                self._turns.release()
        finally:
            self._waiting -= 1

    async def _turn(self, leg: RoomLeg, deadline: float) -> None:
        turn = asyncio.ensure_future(self._turns.acquire())
        left = deadline - asyncio.get_running_loop().time()
        taken = False
        try:
            await first_of(turn, leg.over, timeout=left)
            if leg.over.done():
                raise _canceled(leg.over.result())
            if not turn.done():
                raise TwirpError("resource_exhausted", "too many calls at once")
            taken = True
        finally:
            # The turn may have come at the same moment as the end of the call or the deadline.
            if not taken and not turn.cancel():
                self._turns.release()


def _canceled(ending: Ending) -> TwirpError:
    return TwirpError("canceled", f"the call was ended: {ending.cause}")
