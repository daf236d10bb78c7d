"""What a stream's line needs of its WebSocket's protocol, whichever it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from core.streams.messages import Attach
from worker.line import Rates
from worker.streams.playout import Write

Frame: TypeAlias = str | bytes
"""A WebSocket's text or binary message."""


class FarEnd(Protocol):
    """Receives what the far end sends."""

    def heard(self, pcm: bytes) -> None:
        """16-bit samples at the wire's ``rates.speech``, in order and without gaps."""

    def echoed(self, mark: str) -> None:
        """The far end has played everything before this mark."""

    def key(self, key: str) -> None:
        """The far end pressed one of worker.line.KEYS."""

    def typed(self, text: str) -> None:
        """The far end wrote instead of speaking."""

    def interrupted(self) -> None:
        """The far end asks the agent to stop speaking."""

    def hung_up(self, detail: str) -> None:
        """The far end ended the call."""

    def tell(self, type: str, **data: Any) -> None:
        """The far end asked for this event."""


class Wire(Protocol):
    """One session's protocol. It outlives its sockets."""

    rates: Rates
    echoes: bool
    """The far end is known to echo marks."""
    silence: bytes
    """One sample of silence for the far end."""
    transfers: bool
    """The far end can be referred elsewhere, by way of the gateway."""
    captions: bool
    """The far end is told what is said while it is said."""
    plays_keys: bool
    """The far end takes keys as tones."""

    def attached(self, attach: Attach) -> Sequence[Frame]:
        """Begin on a new socket; return the first frames for it."""

    def receive(self, frame: Frame, far: FarEnd) -> None:
        """Pass on what a frame says. Raises Malformed (worker.streams.messages)."""

    def encode(self, pcm: bytes | memoryview) -> bytes:
        """Return the wire's encoding of 16-bit samples at ``rates.voice``."""

    def media(self, write: Write, said: str) -> Frame:
        """Return the frame of a step of the playout; ``said``: the current speech as heard."""

    def event(self, type: str, data: dict[str, Any]) -> Frame | None:
        """Return the frame that tells the far end of an event; None if the protocol has none."""
