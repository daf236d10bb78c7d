"""Where a channel's pieces are put."""

from __future__ import annotations

import numpy as np
import pytest

from core.audio import Pcm
from worker.recording.track import Track

pytestmark = pytest.mark.unit

FRAME = 320
VOICE = np.full(FRAME, 3000, np.int16)
QUIET = np.full(FRAME, 7, np.int16)


def runs(pcm: Pcm) -> list[tuple[int, int]]:
    """Return where something is, as positions from and to."""
    edges = np.diff(np.concatenate(([0], (pcm != 0).astype(int), [0])))
    return list(
        zip(np.flatnonzero(edges > 0).tolist(), np.flatnonzero(edges < 0).tolist(), strict=True)
    )


def test_pieces_follow_each_other_without_a_break() -> None:
    track = Track()
    track.follow(1000, VOICE)
    track.follow(1000 + FRAME + 20, VOICE)  # as exactly as an arrival can be known
    assert runs(track.take(3000)) == [(1000, 1000 + 2 * FRAME)]


def test_what_was_lost_is_a_gap_of_its_length() -> None:
    track = Track()
    track.follow(0, VOICE)
    track.follow(5 * FRAME, VOICE)
    assert runs(track.take(3000)) == [(0, FRAME), (5 * FRAME, 6 * FRAME)]


@pytest.mark.parametrize(("drift", "piece"), [(+200, VOICE), (-200, VOICE), (200, QUIET)])
def test_a_clock_that_drifts_is_followed_by_single_samples(drift: int, piece: Pcm) -> None:
    track = Track()
    count = 30_000  # 10 minutes: the clocks are 120 ms apart at the end
    furthest = 0
    for index in range(count):
        wanted = round(index * FRAME * (1 + drift / 1e6))
        track.follow(wanted, piece)
        assert track._end is not None
        furthest = max(furthest, abs(track._end - FRAME - wanted))
        if index % 50 == 0:
            track.take(max(track.start, wanted - FRAME))
    assert furthest <= 16 * 3  # 3 ms


def test_voice_loses_a_sample_at_a_time() -> None:
    track = Track()
    track.follow(0, VOICE)
    track.follow(FRAME - 200, VOICE)
    assert runs(track.take(3000)) == [(0, 2 * FRAME - 1)]


@pytest.mark.parametrize("slip", [320, -320])
def test_what_slips_by_a_packet_is_put_where_it_belongs_at_once(slip: int) -> None:
    track = Track()
    piece = np.full(5 * FRAME, 3000, np.int16)
    track.follow(0, piece)
    track.follow(len(piece) + slip, piece)
    assert track._end == 2 * len(piece) + slip


def test_what_comes_too_late_is_left_out_and_what_follows_stays() -> None:
    track = Track()
    track.take(1000)
    track.follow(900, VOICE)
    assert runs(track.take(2000)) == [(0, FRAME - 100)]


def test_a_stretch_begins_where_it_belongs_unless_the_last_one_is_there() -> None:
    track = Track()
    track.follow(0, VOICE, anew=True)
    track.follow(FRAME + 100, VOICE, anew=True)
    track.follow(2 * FRAME, VOICE, anew=True)
    assert runs(track.take(3000)) == [(0, FRAME), (FRAME + 100, 3 * FRAME + 100)]
