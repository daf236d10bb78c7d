"""All calls of the server: those that come in, and those that the REST API places."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from dev.standins.twilio.call import Call, Document, End, Fetch, Order
from dev.standins.twilio.callees import Answer, Callee, answered_by
from dev.standins.twilio.outbox import Progress
from dev.standins.twilio.ringing import interruptible, ring
from dev.standins.twilio.script import Script
from dev.standins.twilio.services import Services


@dataclass(frozen=True)
class Placed:
    """An outbound call as the REST API was asked for it."""

    first: Fetch | Document
    timeout_s: int = 60
    machine_detection: str | None = None
    async_amd: bool = False
    async_callback: str | None = None


class Exchange:
    """Owns the tasks of the calls, from ``start`` to ``stop``."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._ticking = asyncio.ensure_future(services.ticker.run())
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: list[BaseException] = []

    async def stop(self) -> None:
        """End all calls. Raises what went wrong inside the simulator."""
        tasks = [*self._tasks, self._ticking]
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in [*self._failed, *results]:
            if isinstance(result, Exception):
                raise result

    def receive(self, call: Call, number: Mapping[str, Any]) -> None:
        """A caller calls a number: its voice URL is asked what to do."""
        call.progress = Progress(
            call.outbox, number["status_callback"], number["status_callback_method"]
        )
        call.become("ringing")
        if number["voice_fallback_url"]:
            call.fallback = Fetch(number["voice_fallback_url"], number["voice_fallback_method"])
        first = Fetch(number["voice_url"], number["voice_method"])
        self._start(self._live(call, Script(call, self._services).run(first)))

    def place(self, call: Call, placed: Placed) -> None:
        """Call a number for the REST API."""
        self._start(self._live(call, self._outbound(call, placed)))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed.append(error)

    async def _live(self, call: Call, life: Coroutine[Any, Any, str]) -> None:
        """Live a call to its end, and deliver its callbacks."""
        delivering = asyncio.ensure_future(call.outbox.run())
        try:
            call.become(await life)
            duration_s = call.duration_s
            form = {**call.form(), "CallDuration": str(duration_s)}
            form["Duration"] = str(-(-duration_s // 60))  # begun minutes
            call.progress.fire("completed", form)
            await call.outbox.delivered()
        finally:
            if not call.over:
                call.become("failed")
            delivering.cancel()
            await asyncio.gather(delivering, return_exceptions=True)

    async def _outbound(self, call: Call, placed: Placed) -> str:
        call.progress.fire("initiated", {**call.form(), "CallStatus": "initiated"})
        callee = self._services.callees.next(call.to)
        order = await interruptible(call, self._rung(call, callee, placed))
        if isinstance(order, End):
            return order.status
        call.answer()
        call.progress.fire("answered", call.form())
        if placed.machine_detection is not None and isinstance(callee, Answer):
            by = answered_by(callee, placed.machine_detection)
            detected = self._detected(call, callee.detection_ms, by, placed)
            if placed.async_amd:
                self._start(self._told_later(detected))
            else:
                order = await interruptible(call, detected)
        return await Script(call, self._services).run(order)

    async def _rung(self, call: Call, callee: Callee, placed: Placed) -> Order:
        refused = await ring(call, callee, placed.timeout_s)
        return placed.first if refused is None else End(refused)

    async def _detected(self, call: Call, after_ms: float, by: str, placed: Placed) -> Order:
        await asyncio.sleep(after_ms / 1000)
        call.answered_by = by
        if placed.async_amd and placed.async_callback is not None and not call.over:
            form = {**call.form(), "MachineDetectionDuration": str(round(after_ms))}
            call.outbox.post(placed.async_callback, form)
        return placed.first

    async def _told_later(self, detected: Coroutine[Any, Any, Order]) -> None:
        await detected
