"""A call's record and events, as the rules read them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import cached_property

from core.models import CallEvent, Turn
from gateway.store.call_rows import in_spoken_order
from gateway.store.call_status import RANK, Call, StoredEvent


def text(event: CallEvent | None, name: str) -> str | None:
    """Return the event's field if it is text that is not empty."""
    value = event.data.get(name) if event is not None else None
    return value if isinstance(value, str) and value else None


def number(event: CallEvent | None, name: str) -> float | None:
    value = event.data.get(name) if event is not None else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


class Facts:
    """``events`` come in any order; ``now`` closes what is still open."""

    def __init__(self, call: Call, events: Iterable[StoredEvent], now: datetime) -> None:
        self.call = call
        self.events = sorted(events, key=lambda event: (event.at, event.seq))
        self.now = now
        self.until = call.ended_at or now

    def all(self, *types: str) -> list[StoredEvent]:
        return [event for event in self.events if event.type in types]

    def first(self, *types: str) -> StoredEvent | None:
        return next((event for event in self.events if event.type in types), None)

    def last(self, *types: str) -> StoredEvent | None:
        return next((event for event in reversed(self.events) if event.type in types), None)

    def after(self, event: StoredEvent, *types: str) -> StoredEvent | None:
        """Return the first of these that comes after ``event``."""
        place = self.events.index(event)
        return next((other for other in self.events[place + 1 :] if other.type in types), None)

    # --- how it ended

    @cached_property
    def ended(self) -> StoredEvent | None:
        """The ``call.ended`` whose reason the record has, by the source that knows best."""
        told = self.all("call.ended")
        call = self.call
        fitting = [
            event
            for event in told
            if (text(event, "status"), text(event, "reason"))
            == (call.status, call.disconnection_reason)
        ]
        return max(fitting or told, key=lambda event: RANK[event.source], default=None)

    def ends_with(self, name: str, *values: str) -> StoredEvent | None:
        """Return the end if its field ``name`` is one of these."""
        return self.ended if text(self.ended, name) in values else None

    @property
    def answered(self) -> bool:
        return self.call.answered_at is not None

    @property
    def on_phone(self) -> bool:
        """True if the far end is reached by SIP."""
        return self.call.type == "pstn"

    @cached_property
    def unanswered_dial(self) -> StoredEvent | None:
        """The end of a call that was placed and not answered; None for other calls."""
        placed = self.call.direction == "outbound" and not self.answered
        return self.ended if placed else None

    @property
    def sip_status(self) -> int | None:
        return self.call.sip_status_code

    @property
    def sip(self) -> str:
        """The far end's final response, as ``486 Busy Here``."""
        return " ".join(str(part) for part in (self.sip_status, self.call.sip_reason) if part)

    # --- the conversation

    @cached_property
    def no_sound(self) -> StoredEvent | None:
        """``audio.missing``, if no sound came later either.

        None for a client on a socket that wrote instead of speaking.
        """
        wrote = not self.on_phone and any(turn.transcript for turn in self.turns)
        missing = self.first("audio.missing")
        return None if wrote or self.first("audio.received") else missing

    @cached_property
    def turns(self) -> list[Turn]:
        return in_spoken_order([event.data for event in self.all("turn")])

    def told_once(self) -> list[StoredEvent]:
        """Return all events; of a turn, which is reported until it is complete, the newest."""
        newest = {event.data.get("id"): event.id for event in self.all("turn")}
        return [
            event
            for event in self.events
            if event.type != "turn" or newest[event.data.get("id")] == event.id
        ]

    def event_of(self, turn: Turn) -> StoredEvent:
        """Return the turn's newest event."""
        return next(e for e in reversed(self.all("turn")) if e.data.get("id") == turn.id)

    @cached_property
    def providers(self) -> dict[str, str]:
        """The providers' names by stage, as far as the agent told them."""
        ready = self.first("agent.ready")
        found = {stage: text(ready, stage) for stage in ("stt", "llm", "tts")}
        return {stage: name for stage, name in found.items() if name is not None}

    def moment(self, ms: int) -> datetime | None:
        """Return the time of a position in the conversation, which counts from the answer."""
        answered_at = self.call.answered_at
        return None if answered_at is None else answered_at + timedelta(milliseconds=ms)

    def talked_s(self) -> float:
        answered_at = self.call.answered_at
        return 0.0 if answered_at is None else (self.until - answered_at).total_seconds()
