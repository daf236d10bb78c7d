"""A transfer's steps on its call's timeline, each under an id derived from the transfer's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from core.events import ended
from core.models import Agent, CallEvent, DisconnectionReason
from core.transfers import Outcome, TransferResult, failure, human_identity
from gateway.calls.timeline import Timeline
from gateway.store.call_status import Call
from gateway.store.calls import Store

_TOLD = ("transfer.started", "transfer.answered", "transfer.failed", "call.transferred")
# By the reason that a failed dial of a call would have.
_OUTCOMES: Mapping[str | None, Outcome] = {
    "dial_busy": "busy",
    "dial_no_answer": "no_answer",
    "dial_rejected": "rejected",
    "invalid_destination": "invalid_destination",
}
_TOLD_OUTCOMES: Mapping[object, Outcome] = {
    outcome: outcome for outcome in (*_OUTCOMES.values(), "not_allowed", "not_supported")
}


@dataclass(frozen=True, slots=True)
class Order:
    """A transfer that may be carried out."""

    id: str
    call: Call
    agent: Agent
    to: str
    left_s: int
    """The call's remaining time."""

    @property
    def human(self) -> str:
        """The human's identity in the room (warm)."""
        return human_identity(self.id)

    @property
    def cold(self) -> bool:
        return self.agent.config.transfer_mode == "cold"

    @property
    def ringing_s(self) -> int:
        return math.ceil(self.agent.config.transfer_ringing_ms / 1000)

    @property
    def facts(self) -> dict[str, Any]:
        return {"to": self.to, "mode": self.agent.config.transfer_mode}


class Steps:
    """Writes each step once, even if repeated. Raises Unavailable (the database)."""

    def __init__(self, store: Store, timeline: Timeline) -> None:
        self._store = store
        self._timeline = timeline

    async def begin(self, order: Order) -> bool:
        """Record the start; False: the transfer had started already."""
        return await self._tell(order, _event(order, "transfer.started", order.facts))

    async def ringing(self, order: Order) -> None:
        await self._tell(order, _event(order, "transfer.ringing"))

    async def result(self, order: Order, result: TransferResult) -> None:
        match result.outcome:
            case "answered":
                await self._tell(order, _event(order, "transfer.answered"))
            case "transferred":
                # Append it with the call's end: LiveKit only reports that a participant left.
                over = _event(order, "call.ended", ended("completed", "call_transfer"))
                await self._tell(order, _event(order, "call.transferred", order.facts), over)
            case reason:
                facts = failure(
                    reason, sip_status_code=result.sip_status_code, sip_reason=result.sip_reason
                )
                await self._tell(order, _event(order, "transfer.failed", facts))

    async def known(self, order: Order) -> tuple[datetime | None, TransferResult | None]:
        """Return the transfer's start and outcome from the timeline; None: not recorded."""
        told = {
            item.type: item
            for item in await self._store.events(order.call.id, types=_TOLD)
            if item.id.startswith(order.id)
        }
        started = told.get("transfer.started")
        return (None if started is None else started.at), _known(order, told)

    async def _tell(self, order: Order, *events: CallEvent) -> bool:
        return bool(await self._timeline.append(order.call.id, events, "gateway"))


def refused(
    reason: DisconnectionReason | None, sip_status_code: int | None, sip_reason: str | None
) -> TransferResult:
    """Return the result if the human's phone did not answer, or a REFER was refused."""
    return TransferResult(
        outcome=_OUTCOMES.get(reason, "failed"),
        sip_status_code=sip_status_code,
        sip_reason=sip_reason,
    )


def _known(order: Order, told: dict[str, Any]) -> TransferResult | None:
    if (failed := told.get("transfer.failed")) is not None:
        return TransferResult(outcome=_TOLD_OUTCOMES.get(failed.data.get("reason"), "failed"))
    if "call.transferred" in told and order.cold:
        return TransferResult(outcome="transferred")
    if "transfer.answered" in told:
        return TransferResult(outcome="answered", identity=order.human)
    return None


def _event(order: Order, type: str, data: dict[str, Any] | None = None) -> CallEvent:
    return CallEvent(id=f"{order.id}_{type}", type=type, data=data or {})
