"""What WebRTC's statistics tell of the delay of a room's audio.

Names are those of the W3C's "Identifiers for WebRTC's Statistics API". Both ends of a call's
audio that are ours, the worker and the bridge, have a peer connection to LiveKit each; neither
sees the other's, so the bridge tells its own as an attribute of its participant.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

ATTRIBUTE: Final = "switchroom.mediaDelayMs"
"""What the bridge adds between the phone's packets and LiveKit, both directions, in ms."""

POLL_S: Final = 10.0
"""How often the statistics are asked for; each time costs about a millisecond."""

FIRST_POLL_S: Final = 2.0
"""After the answer: the jitter buffer has left its start behind, the first turn is not over."""


class RoomDelay:
    """``ms`` is what the way between LiveKit and this process takes, both directions together:
    half a round trip each, and the jitter buffer. None before the first ``update``."""

    def __init__(self) -> None:
        self.ms: float | None = None
        self._waited_s = 0.0
        self._emitted = 0

    def update(self, stats: Iterable[Any]) -> None:
        """``stats``: livekit's RtcStats of both peer connections, of a room with audio."""
        trips_s: list[float] = []
        waited_s, emitted = 0.0, 0
        for entry in stats:
            kind = entry.WhichOneof("stats")
            if kind == "candidate_pair" and entry.candidate_pair.candidate_pair.nominated:
                trips_s.append(entry.candidate_pair.candidate_pair.current_round_trip_time)
            elif kind == "inbound_rtp" and entry.inbound_rtp.stream.kind == "audio":
                waited_s += entry.inbound_rtp.inbound.jitter_buffer_delay
                emitted += entry.inbound_rtp.inbound.jitter_buffer_emitted_count
        # Both only ever grow, unless a track has gone.
        samples = emitted - self._emitted
        jitter_s = max(0.0, waited_s - self._waited_s) / samples if samples > 0 else 0.0
        self._waited_s, self._emitted = waited_s, emitted
        trip_s = sum(trips_s) / len(trips_s) if trips_s else 0.0
        self.ms = (jitter_s + trip_s) * 1000
