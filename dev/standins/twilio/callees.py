"""The people that are called, and whether they answer: the test decides it by number."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Answer:
    """Answers after ringing for ``after_ms``; None: when the test says ``call.pick_up()``."""

    after_ms: float | None = 0
    by: str = "human"
    """``human``, ``machine``, or one of Twilio's own AnsweredBy values."""
    detection_ms: float = 20
    """How long the detection of machines takes."""


@dataclass(frozen=True)
class Busy:
    after_ms: float = 0


@dataclass(frozen=True)
class RingOut:
    """Nobody answers. It rings for ``after_ms``, but no longer than the call's Timeout."""

    after_ms: float = 0


@dataclass(frozen=True)
class Unreachable:
    """The call fails: the number cannot be reached."""

    after_ms: float = 0


Callee: TypeAlias = Answer | Busy | RingOut | Unreachable


class Callees:
    """What happens when a number is called. Unknown numbers answer at once."""

    def __init__(self) -> None:
        self._of: dict[str, deque[Callee]] = {}

    def set(self, number: str, *callees: Callee) -> None:
        """The n-th call to the number meets the n-th callee; the last one stays."""
        self._of[number] = deque(callees)

    def next(self, number: str) -> Callee:
        waiting = self._of.get(number)
        if not waiting:
            return Answer()
        return waiting.popleft() if len(waiting) > 1 else waiting[0]


def answered_by(callee: Answer, detection: str) -> str:
    """Return Twilio's AnsweredBy for ``MachineDetection``."""
    if callee.by != "machine":
        return callee.by
    return "machine_start" if detection == "Enable" else "machine_end_beep"
