"""Joining rooms a few calls at a time, none of them for long."""

from __future__ import annotations

import asyncio
from typing import Final

from core.first_of import first_of
from sip.bridge.twirp import TwirpError
from sip.endings import Ending
from sip.room_leg import NotJoined, OverAlready, RoomLeg

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

    async def join(self, leg: RoomLeg) -> None:
        """As ``RoomLeg.join``, when it is this leg's turn.

        Raises TwirpError: ``unavailable`` when the room cannot be joined, ``resource_exhausted``
        when its turn does not come in time, ``canceled`` as soon as the call is over: it waits no
        longer, and keeps no other's place.
        """
        deadline = asyncio.get_running_loop().time() + JOIN_WITHIN_S
        self._waiting += 1
        try:
            await self._turn(leg, deadline)
            try:
                await leg.join(deadline)
            except NotJoined as error:
                # Nobody was called: the same request may well succeed a moment later.
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
            # It may have come together with the end of the call, or of the wait.
            if not taken and not turn.cancel():
                self._turns.release()


def _canceled(ending: Ending) -> TwirpError:
    return TwirpError("canceled", f"the call was ended: {ending.cause}")
