"""How a call rings, and how it is interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from dev.standins.twilio.call import Call, Order
from dev.standins.twilio.callees import Answer, Busy, Callee, RingOut


async def ring(call: Call, callee: Callee, timeout_s: float) -> str | None:
    """Ring until the callee answers (None), or the call ends with the returned status."""
    call.become("ringing")
    call.progress.fire("ringing", call.form())
    try:
        async with asyncio.timeout(timeout_s):
            if isinstance(callee, Answer) and callee.after_ms is None:
                await call.picked_up()
            else:
                await asyncio.sleep((callee.after_ms or 0) / 1000)
    except TimeoutError:
        return "no-answer"
    match callee:
        case Answer():
            return None
        case Busy():
            return "busy"
        case RingOut():
            return "no-answer"
    return "failed"


async def interruptible(call: Call, work: Coroutine[Any, Any, Order]) -> Order:
    """Do the work, unless an order comes first. Return its result, or the order."""
    doing, order = asyncio.ensure_future(work), asyncio.ensure_future(call.ordered())
    try:
        await asyncio.wait({doing, order}, return_when=asyncio.FIRST_COMPLETED)
        return order.result() if order.done() else doing.result()
    finally:
        order.cancel()
        doing.cancel()
        await asyncio.gather(doing, order, return_exceptions=True)
