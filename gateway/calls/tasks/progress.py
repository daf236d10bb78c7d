"""What Twilio says about a task's call, as events of the call's timeline.

Each event has an id of the call's own, so it is stored once, however often and by whomever it is
reported: by a status callback, or by Twilio's API when the callbacks are missing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from core.events import ended
from core.models import CallEvent
from gateway.calls.timeline import Timeline
from gateway.http.metrics import Metrics
from gateway.store.call_status import Call
from sip.dial import ANSWERED, DialOutcome, by_sip_status

# https://www.twilio.com/docs/voice/api/call-resource#call-status-values; a status callback also
# says "initiated".
LIVE = frozenset({"queued", "initiated", "ringing", "in-progress"})
_UNANSWERED = {
    "busy": DialOutcome(status="busy", reason="dial_busy"),
    "no-answer": DialOutcome(status="no-answer", reason="dial_no_answer"),
    "failed": DialOutcome(status="failed", reason="dial_failed"),
    "canceled": DialOutcome(status="canceled", reason="canceled"),
}
FINAL = frozenset({"completed", *_UNANSWERED})

NEVER_PLACED = DialOutcome(status="failed", reason="dial_failed")


@dataclass(frozen=True, slots=True)
class News:
    """One report on a call of Twilio's. An unknown ``status`` changes nothing."""

    call_sid: str
    status: str = ""
    sip_status_code: int | None = None
    answered_by: str | None = None
    """Twilio's AnsweredBy; None: it does not say."""
    answered_by_after_ms: int | None = None


class Progress:
    """Writes the events. Raises Unavailable (the database)."""

    def __init__(self, timeline: Timeline, metrics: Metrics) -> None:
        self._timeline = timeline
        self._metrics = metrics

    async def write(self, call: Call, news: News, *, streamed: bool) -> None:
        """Write what is new. ``streamed``: a worker has the call, and reports how it ends."""
        events = _events(call, news, streamed=streamed)
        outcome = _outcome(news)
        if call.ended:
            # Only what came too late to be acted on is still a fact worth knowing.
            events = [event for event in events if event.type == "call.answered_by"]
        stored = await self._append(call, events)
        told = {event.type for event in stored}
        if outcome is not None and told & {"call.answered", "call.ended"}:
            self._metrics.dialled(outcome)

    async def never_placed(self, call: Call, outcome: DialOutcome, note: str) -> None:
        """End a call that Twilio did not place."""
        data = _ended(outcome, note=note)
        if await self._append(call, [_event(call, "call.ended", data)]):
            self._metrics.dialled(outcome)

    async def canceled(self, call: Call) -> None:
        """End a call that the API canceled before it was answered."""
        data = ended("canceled", "canceled", by="api")
        await self._append(call, [_event(call, "call.ended", data)])

    async def left(self, call: Call) -> None:
        """End a call that is over for Twilio, and of which its worker has not reported the end."""
        data = ended("completed", "user_hangup", note="found gone")
        over = [_event(call, "call.ended", data)]
        await self._timeline.append(call.id, over, "reconciler")

    async def _append(self, call: Call, events: list[CallEvent]) -> list[CallEvent]:
        if not events:
            return []
        return list(await self._timeline.append(call.id, events, "gateway") or [])


def _outcome(news: News) -> DialOutcome | None:
    """Return the dial's outcome; None: still open."""
    if news.status in ("in-progress", "completed"):
        return ANSWERED
    outcome, code = _UNANSWERED.get(news.status), news.sip_status_code
    if outcome is None or code is None:
        return outcome
    if outcome.status == "failed" and by_sip_status(code)[0] == "failed":
        outcome = replace(outcome, reason=by_sip_status(code)[1])
    return replace(outcome, sip_status_code=code)


def _events(call: Call, news: News, *, streamed: bool) -> list[CallEvent]:
    events = []
    if news.status in LIVE or news.status in FINAL:
        events.append(_event(call, "call.dialing", {"callSid": news.call_sid}))
    if news.status == "ringing":
        events.append(_event(call, "call.ringing"))
    if news.answered_by is not None:
        facts: dict[str, Any] = {"answeredBy": news.answered_by}
        if news.answered_by_after_ms is not None:
            facts["afterMs"] = news.answered_by_after_ms
        events.append(_event(call, "call.answered_by", facts))
    outcome = _outcome(news)
    if outcome is None:
        return events
    if not outcome.answered:
        events.append(_event(call, "call.ended", _ended(outcome)))
        return events
    if not streamed:
        # Afterwards the worker writes it, when it hears the callee.
        events.append(_event(call, "call.answered"))
        if news.status == "completed":
            data = ended("completed", "user_hangup", note="before the stream began")
            events.append(_event(call, "call.ended", data))
    return events


def _ended(outcome: DialOutcome, **facts: Any) -> dict[str, Any]:
    return ended(
        outcome.status or "failed",
        outcome.reason or "dial_failed",
        sip_status_code=outcome.sip_status_code,
        **facts,
    )


def _event(call: Call, type: str, data: dict[str, Any] | None = None) -> CallEvent:
    return CallEvent(id=f"{call.id}_{type}", type=type, data=data or {})
