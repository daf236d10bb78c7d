"""Follow one dial to its verdict: record its progress, and cancel it when the call ends.

Any ``call.ended`` cancels the dial, so that no phone keeps ringing for a call whose other side
is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from core.errors import Unavailable
from gateway.calls.dispatcher import Arrival
from gateway.calls.timeline import Watch
from sip.dial import DialOutcome

log = logging.getLogger(__name__)

# Poll: LiveKit has no webhook for ringing.
_LOOK_EVERY_S = 0.5

NEVER_DIALLED = DialOutcome(status="failed", reason="dial_failed")


class DialInProgress(Protocol):
    """The part of sip.dial.Dial that is used here."""

    async def verdict(self) -> DialOutcome: ...

    async def call_status(self) -> str | None: ...

    async def cancel(self) -> None: ...

    async def aclose(self) -> None: ...


class Following:
    """One dial whose participant is in the room, until its verdict."""

    def __init__(
        self,
        dial: DialInProgress,
        watch: Watch,
        *,
        ringing: Callable[[], Awaitable[None]],
        verdict: Callable[[DialOutcome], Awaitable[None]] | None = None,
        arrival: Arrival | None = None,
    ) -> None:
        """``watch`` is on the call that the phone is dialled for.

        ``ringing`` and ``verdict`` write an event; they raise Unavailable if the database is
        down. ``arrival``: the agent's; if the agent does not come, the dial is cancelled.
        """
        self._dial = dial
        self._watch = watch
        self._ringing = ringing
        self._verdict = verdict
        self._arrival = arrival

    async def run(self) -> DialOutcome | None:
        """Return the outcome once it is written and the agent has joined; close the dial.

        None: the phone was answered after the call had ended, and was hung up.
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
        while (status := await self._dial.call_status()) == "dialing":  # noqa: ASYNC110 (LiveKit does not notify)
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
