"""Whether an agent is still its call's, or another one has taken over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus

from worker.endings import ENDINGS, REPLACED, Cause, Ending
from worker.link.backoff import Backoff
from worker.link.client import Gateway, Refused, Unavailable
from worker.link.reporter import Reporter
from worker.pulse.report import report_itself

log = logging.getLogger(__name__)

_KNOWN_WITHIN_S = 3.0


class Standing:
    """A process that stood still learns from the gateway what it missed.

    Until then it must not hang up: its timers, which are all due at once, would end a call that
    another agent serves.
    """

    def __init__(
        self, gateway: Gateway, reporter: Reporter, on_replaced: Callable[[Cause, str], None]
    ) -> None:
        self._gateway = gateway
        self._reporter = reporter
        self._on_replaced = on_replaced
        self._asking: asyncio.Task[None] | None = None
        self._replaced = False

    def woke(self, stood_still_s: float) -> None:
        """Ask the gateway, after the event loop stood still for so many seconds."""
        if self._reporter.owner is not None and (self._asking is None or self._asking.done()):
            detail = f"stood still for {stood_still_s:.1f} s"
            self._asking = asyncio.create_task(self._ask(detail), name="standing")

    async def ending(self, cause: Cause, detail: str) -> Ending:
        """Return what the cause means, after giving the call to another agent if that suffices."""
        ending, owner = ENDINGS[cause], self._reporter.owner
        if self._asking is not None:
            await asyncio.wait({self._asking})
        if ending.lost is not None and owner is not None and not self._replaced:
            self._replaced = await report_itself(
                self._gateway, owner.call_id, owner.token, ending.lost, detail
            )
        return REPLACED if self._replaced else ending

    async def _ask(self, detail: str) -> None:
        owner, backoff = self._reporter.owner, Backoff()
        assert owner is not None
        try:
            async with asyncio.timeout(_KNOWN_WITHIN_S):
                while True:
                    try:
                        await self._gateway.brief(owner.call_id, owner.token)
                    except Unavailable:
                        await backoff.wait()
                    else:
                        return log.info("still this call's agent")
        except TimeoutError:
            log.warning("not known whether another agent has taken over")
        except Refused as error:
            if error.status == HTTPStatus.GONE:
                self._replaced = True
                self._on_replaced("agent_replaced", detail)
