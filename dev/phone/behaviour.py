"""A phone's reactions to an incoming call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """Ring, then answer."""

    after_s: float = 0.0


@dataclass(frozen=True)
class Reject:
    """Refuse with a SIP status; ring for ``after_s`` first if that is above zero."""

    status: int = 486
    reason: str | None = None
    after_s: float = 0.0
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class RingOut:
    """Ring until the caller gives up, or until the test calls ``answer`` or ``hangup``."""


Behaviour = Answer | Reject | RingOut

AT_ONCE = Answer()
