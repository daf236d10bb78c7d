"""A finding: one fault, the events that show it, and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

from gateway.diagnosis.facts import Facts
from gateway.store.call_status import StoredEvent


class Weight(IntEnum):
    """The effect of a fault on the call. The heaviest finding is the call's cause."""

    HURT = 1
    """The call survived it."""
    CLOSED = 2
    """A person, a machine or a limit ended the call; nothing broke."""
    RUINED = 3
    """The call went on, but not as a conversation."""
    ENDED = 4
    """The call ended by it, or never began."""


@dataclass(frozen=True, slots=True)
class Finding:
    code: str
    weight: Weight
    cause: str
    """A sentence."""
    advice: str
    evidence: tuple[StoredEvent, ...]
    unknown: str | None = None
    """A sentence on what the timeline does not say; None: nothing is missing."""


Rule = Callable[[Facts], Finding | None]


def evidence(*events: StoredEvent | None) -> tuple[StoredEvent, ...]:
    """Return those that exist, each once, in order of time."""
    found = {event.id: event for event in events if event is not None}
    return tuple(sorted(found.values(), key=lambda event: (event.at, event.seq)))


def judge(facts: Facts, rules: Iterable[Rule]) -> list[Finding]:
    """Return all findings, the one that mattered most first; of equal ones the earlier rule's."""
    found = [finding for rule in rules if (finding := rule(facts)) is not None]
    return sorted(found, key=lambda finding: -finding.weight)
