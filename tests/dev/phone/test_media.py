"""dev.phone.media with simulated counters, which no real call shows on demand."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
from baresip import AudioStats
from baresip.audio import CallAudio

from dev.phone.media import CallMedia
from dev.phone.tracks import FRAME

pytestmark = pytest.mark.unit

_IDLE_LOOK = 5  # ticks

NOTHING_YET = AudioStats(
    tx_silence_frames=0,
    tx_starved_frames=0,
    tx_rejected_bytes=0,
    tx_flushed_bytes=0,
    tx_buffered=0,
    tx_high_water=0,
    rx_dropped_bytes=0,
    rx_discarded_bytes=0,
    rx_buffered=0,
    rx_high_water=0,
)


class Streams:
    """The part of baresip's streams that an idle phone uses."""

    def __init__(self) -> None:
        self.counters = NOTHING_YET

    def read(self, _: int) -> bytes:
        return b""

    def stats(self) -> AudioStats:
        return self.counters


@pytest.fixture
def streams() -> Streams:
    return Streams()


@pytest.fixture
def media(streams: Streams) -> CallMedia:
    return CallMedia(cast(CallAudio, streams), 0.0)


def look(media: CallMedia, now: float) -> None:
    for _ in range(_IDLE_LOOK):
        media.tick(now)


def test_silence_is_counted(streams: Streams, media: CallMedia) -> None:
    streams.counters = replace(NOTHING_YET, tx_silence_frames=50)
    look(media, 1.0)
    assert len(media.sent) == 50 * FRAME


def test_new_streams_that_only_the_counters_tell_of(streams: Streams, media: CallMedia) -> None:
    """The phone goes on if a re-INVITE comes between reading the audio and the counters."""
    streams.counters = replace(NOTHING_YET, tx_silence_frames=50, rx_dropped_bytes=320)
    look(media, 1.0)
    streams.counters = replace(NOTHING_YET, tx_silence_frames=2)
    look(media, 1.2)
    assert len(media.sent) == 59 * FRAME, "the time between is silence"
    look(media, 1.24)
    assert len(media.sent) == 61 * FRAME, "and the new streams' count begins at none"
    streams.counters = replace(NOTHING_YET, tx_silence_frames=4)
    look(media, 1.28)
    assert len(media.sent) == 63 * FRAME
