"""Tells the gateway that an agent is lost: for a job that died, and for one that gives up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from core.models import now
from core.recovery import Lost, Why
from core.tokens import TokenIssuer
from worker.link.backoff import Backoff
from worker.link.client import Gateway, Refused, Unavailable
from worker.link.reporter import sweep_call
from worker.pulse.beat import Beat

log = logging.getLogger(__name__)

_WITHIN_S = 30.0
"""For a job that died. After that the reconciler ends the call."""
_ITSELF_WITHIN_S = 3.0
"""For a job that gives up. Its caller waits meanwhile."""
_LONGEST_PAUSE_S = 1.0


async def report_dead(
    gateway: Gateway, directory: Path, tokens: TokenIssuer, beat: Beat, why: Why, detail: str
) -> None:
    """Report the agent of a job whose process is dead. Raises nothing.

    First deliver what the process has kept in ``directory``, so that the next agent knows it. Both
    is tried for half a minute.
    """
    if beat.call_id is None:
        # The gateway sends another agent to a caller's room that nobody has joined.
        return log.warning("lost before its call was known", extra={"job_id": beat.job_id})
    token = tokens.for_call(beat.call_id, beat.epoch)
    seen_at = datetime.fromtimestamp(beat.seen_at, UTC)
    lost = Lost(why=why, seen_at=seen_at, detail=detail)

    async def deliver() -> bool:
        assert beat.call_id is not None
        try:
            await sweep_call(gateway, directory, beat.call_id)
        except OSError as error:
            log.error("cannot read the spool", extra={"error": str(error)})
        return await gateway.lost(beat.call_id, token, lost)

    await _insist(deliver, beat.call_id, _WITHIN_S)


async def report_itself(gateway: Gateway, call_id: str, token: str, why: Why, detail: str) -> bool:
    """Report the present process's own agent; return True if another one takes over the call.

    Returns within three seconds, also if the gateway is away. Raises nothing.
    """
    lost = Lost(why=why, seen_at=now(), detail=detail[:200])
    report = partial(gateway.lost, call_id, token, lost)
    return await _insist(report, call_id, _ITSELF_WITHIN_S)


async def _insist(
    report: Callable[[], Coroutine[Any, Any, bool]], call_id: str, within_s: float
) -> bool:
    backoff = Backoff(longest=_LONGEST_PAUSE_S)
    try:
        async with asyncio.timeout(within_s):
            while True:
                try:
                    comes = await report()
                except Unavailable as error:
                    if not backoff.failing:
                        log.warning("a loss is not reported", extra={"error": str(error)})
                    await backoff.wait()
                else:
                    log.info("loss reported", extra={"call_id": call_id, "comes": comes})
                    return comes
    except Refused as error:
        log.warning("a loss was refused", extra={"call_id": call_id, "error": str(error)})
    except TimeoutError:
        log.error("a loss was not reported", extra={"call_id": call_id})
    return False
