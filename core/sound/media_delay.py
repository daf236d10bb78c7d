"""The delay of a room's audio, computed from WebRTC statistics.

Names are those of the W3C's "Identifiers for WebRTC's Statistics API". The worker and the bridge
each have their own peer connections to LiveKit, and neither sees the other's statistics. So the
bridge publishes its delay as an attribute of its participant.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

ATTRIBUTE: Final = "switchroom.mediaDelayMs"
"""The delay that the bridge adds between the phone and LiveKit, both directions, in ms."""

POLL_S: Final = 10.0
"""Interval between two reads of the statistics; each read costs about a millisecond."""

FIRST_POLL_S: Final = 2.0
"""First read, after the answer: the jitter buffer has settled, and the first turn is not over."""


class RoomDelay:
    """The audio delay between LiveKit and this process, in ``ms``: half a round trip for each
    direction, plus the jitter buffer; None before the first ``update``."""

    def __init__(self) -> None:
        self.ms: float | None = None
        self._waited_s = 0.0
        self._emitted = 0

    def update(self, stats: Iterable[Any]) -> None:
        """Compute ``ms`` from livekit's RtcStats of both peer connections of a room with audio."""
        trips_s: list[float] = []
        waited_s, emitted = 0.0, 0
        for entry in stats:
            kind = entry.WhichOneof("stats")
            if kind == "candidate_pair" and entry.candidate_pair.candidate_pair.nominated:
                trips_s.append(entry.candidate_pair.candidate_pair.current_round_trip_time)
            elif kind == "inbound_rtp" and entry.inbound_rtp.stream.kind == "audio":
                waited_s += entry.inbound_rtp.inbound.jitter_buffer_delay
                emitted += entry.inbound_rtp.inbound.jitter_buffer_emitted_count
        # Both are cumulative; they shrink only when a track is gone.
        samples = emitted - self._emitted
        jitter_s = max(0.0, waited_s - self._waited_s) / samples if samples > 0 else 0.0
        self._waited_s, self._emitted = waited_s, emitted
        trip_s = sum(trips_s) / len(trips_s) if trips_s else 0.0
        self.ms = (jitter_s + trip_s) * 1000
