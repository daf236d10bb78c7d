"""One dial, followed to its verdict: what is written down meanwhile, and what ends it early.

Whatever says that the call is over ends the dial, too: nobody's phone is left ringing for a call
that has no other side any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from core.errors import Unavailable
from gateway.calls.dispatcher import Arrival
from gateway.calls.timeline import Watch
from sip.dial import Dial, DialOutcome

log = logging.getLogger(__name__)

# LiveKit has no webhook for ringing.
_LOOK_EVERY_S = 0.5

NEVER_DIALLED = DialOutcome(status="failed", reason="dial_failed")


class Following:
    """One dial whose participant is in the room, until its verdict."""

    def __init__(
        self,
        dial: Dial,
        watch: Watch,
        *,
        ringing: Callable[[], Awaitable[None]],
        verdict: Callable[[DialOutcome], Awaitable[None]] | None = None,
        arrival: Arrival | None = None,
    ) -> None:
        """``watch``: on the call that the phone is dialled for.

        ``ringing`` and ``verdict`` write an event, and raise Unavailable when the database is
        away. ``arrival``: of the agent that the dial must not go on without.
        """
        self._dial = dial
        self._watch = watch
        self._ringing = ringing
        self._verdict = verdict
        self._arrival = arrival

    async def run(self) -> DialOutcome | None:
        """The outcome, once it is written and the agent has come; the dial is closed then.

        None: the phone was answered when the call was over, and has been hung up on.
        """
        try:
            async with asyncio.TaskGroup() as group:
                while_it_rings = [
                    group.create_task(self._see_ringing()),
                    group.create_task(self._hang_up_when_over()),
                ]
                if self._arrival is not None:
                    group.create_task(self._await_agent(self._arrival))
                outcome = await self._dial.verdict()
                for task in while_it_rings:
                    task.cancel()
                if self._verdict is not None:
                    await self._verdict(outcome)
            if outcome.answered and await self._watch.seen("call.ended"):
                await self._dial.cancel()
                return None
            return outcome
        finally:
            await self._dial.aclose()

    async def _see_ringing(self) -> None:
        while (status := await self._dial.call_status()) == "dialing":  # noqa: ASYNC110 (told by nobody)
            await asyncio.sleep(_LOOK_EVERY_S)
        if status == "ringing":
            try:
                await self._ringing()
            except Unavailable:
                log.warning("ringing not written", extra=self._watch.facts)

    async def _hang_up_when_over(self) -> None:
        await self._watch.until("call.ended")
        await self._dial.cancel()

    async def _await_agent(self, arrival: Arrival) -> None:
        if not await arrival.seen():
            await self._dial.cancel()
