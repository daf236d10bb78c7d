"""dev.phone.tracks: a received stream keeps in step with the clock, on simulated arrivals."""

from collections.abc import Iterable

import numpy as np
import pytest

from core.audio import Pcm
from dev.phone.tracks import FRAME, SAMPLE_RATE, ReceivedTrack, SentTrack

pytestmark = pytest.mark.unit

PACKET_S = FRAME / SAMPLE_RATE
START = 1000.0  # a time.monotonic() far from zero


def packet(number: int) -> bytes:
    """Return a packet that differs from every other and from silence."""
    return np.full(FRAME, number + 1, np.int16).tobytes()


def receive(arrivals: Iterable[tuple[int, float]], until_s: float) -> ReceivedTrack:
    """Feed packets (number, seconds after START) as a pump that looks every 10 ms does."""
    track = ReceivedTrack()
    waiting = sorted(arrivals, key=lambda arrival: arrival[1])
    ticks = round(until_s / 0.010)
    for tick in range(ticks + 1):
        now = tick * 0.010 + 1e-6
        data = b""
        while waiting and waiting[0][1] <= now:
            data += packet(waiting.pop(0)[0])
        if data:
            track.arrived(data, START + now)
    assert not waiting
    return track


def steady(first: int, count: int, begin_s: float) -> list[tuple[int, float]]:
    return [(first + i, begin_s + i * PACKET_S) for i in range(count)]


def frames(track: ReceivedTrack) -> Pcm:
    """Return one value per 20 ms: the packet's number plus one, or 0 for silence."""
    return track.timeline()[FRAME // 2 :: FRAME]


def at(track: ReceivedTrack, number: int) -> float:
    """Return a packet's place, in seconds after START."""
    index = int(np.flatnonzero(track.view() == number + 1)[0])
    time = track.time_of(index)
    assert time is not None
    # The timeline and the index agree.
    assert track.origin is not None
    place = int(np.flatnonzero(track.timeline() == number + 1)[0])
    assert place == round((time - track.origin) * SAMPLE_RATE)
    assert track.index_at(time) == index
    return time - START


def test_a_steady_stream_is_kept_as_it_is() -> None:
    track = receive(steady(0, 100, 0.5), until_s=2.5)
    assert frames(track).tolist() == list(range(1, 101))
    assert at(track, 0) == pytest.approx(0.5, abs=0.011)
    assert at(track, 99) == pytest.approx(0.5 + 99 * PACKET_S, abs=0.011)
    assert track.hole_samples == 0


def test_jitter_neither_adds_nor_takes_anything() -> None:
    rng = np.random.default_rng(7)
    arrivals = [(i, 0.5 + i * PACKET_S + float(rng.uniform(0, 0.060))) for i in range(200)]
    arrivals = [(i, max(t, arrivals[i - 1][1] if i else t)) for i, t in arrivals]
    track = receive(sorted(arrivals), until_s=4.6)
    assert sorted(set(frames(track).tolist())) == list(range(1, 201))
    assert track.hole_samples == 0
    assert len(track) == 200 * FRAME


def test_a_pause_of_the_stream_is_silence_of_the_same_length() -> None:
    track = receive([*steady(0, 50, 0.0), *steady(50, 50, 3.0)], until_s=4.0)
    assert at(track, 49) == pytest.approx(49 * PACKET_S, abs=0.011)
    assert at(track, 50) == pytest.approx(3.0, abs=0.011)
    assert at(track, 99) == pytest.approx(3.0 + 49 * PACKET_S, abs=0.011)
    assert track.hole_samples / SAMPLE_RATE == pytest.approx(2.0, abs=0.011)


def test_how_long_nothing_has_come_is_known() -> None:
    track = receive(steady(0, 50, 0.0), until_s=1.0)
    assert track.idle_s(START + 5.0) == pytest.approx(5.0 - 49 * PACKET_S, abs=0.011)
    assert ReceivedTrack().idle_s(START) == 0.0


def test_packets_held_up_and_sent_at_once_leave_no_hole() -> None:
    # The far end stalls for 300 ms, then sends the overdue 15 packets in 12 ms.
    burst = [(50 + i, 1.284 + i * 0.0008) for i in range(15)]
    track = receive([*steady(0, 50, 0.0), *burst, *steady(65, 100, 1.3)], until_s=3.3)
    assert track.hole_samples == 0
    assert frames(track).tolist() == list(range(1, 166))
    assert at(track, 164) == pytest.approx(164 * PACKET_S, abs=0.021)


def test_lost_packets_leave_a_hole_of_their_length_where_they_were() -> None:
    arrivals = [a for a in steady(0, 400, 0.0) if not 250 <= a[0] < 254]
    track = receive(arrivals, until_s=8.0)
    assert at(track, 249) == pytest.approx(249 * PACKET_S, abs=0.011)
    assert at(track, 254) == pytest.approx(254 * PACKET_S, abs=0.021)
    assert at(track, 399) == pytest.approx(399 * PACKET_S, abs=0.021)
    assert track.hole_samples == pytest.approx(4 * FRAME, abs=FRAME)


def test_a_burst_at_the_start_does_not_date_the_rest_too_early() -> None:
    # Five packets at once, then the rest each 100 ms later than the burst promised.
    track = receive([*((i, 0.0) for i in range(5)), *steady(5, 300, 0.2)], until_s=6.2)
    assert at(track, 304) == pytest.approx(0.2 + 299 * PACKET_S, abs=0.021)
    assert sorted(set(frames(track).tolist()) - {0}) == list(range(1, 306))


def test_audio_dropped_before_we_took_it_keeps_its_room() -> None:
    track = ReceivedTrack()
    track.arrived(packet(0), START)
    track.lost(3 * FRAME)
    track.arrived(packet(4), START + 4 * PACKET_S)
    assert frames(track).tolist() == [1, 0, 0, 0, 5]
    assert track.hole_samples == 3 * FRAME


def test_silence_before_the_first_packet_is_not_invented() -> None:
    track = receive([], until_s=1.0)
    assert len(track) == 0
    assert track.origin is None
    assert track.time_of(0) is None
    assert track.index_at(START) == 0


def test_a_stream_that_recovers_slowly_from_a_stall_keeps_no_hole() -> None:
    """The stream falls half a second behind at once and needs 2 s to catch up. This counts as
    a hole at first, and then no longer."""
    arrivals = []
    for number in range(500):
        due = number * PACKET_S
        late = 0.0 if due < 4.0 else max(0.0, 0.5 - (due - 4.0) * 0.25)
        arrivals.append((number, due + late))
    track = receive(arrivals, until_s=11.0)
    assert track.hole_samples == 0
    assert frames(track).tolist() == list(range(1, 501))
    assert at(track, 499) == pytest.approx(499 * PACKET_S, abs=0.011)


def test_where_the_holes_are() -> None:
    track = receive([*steady(0, 50, 0.0), *steady(50, 50, 3.0)], until_s=4.0)
    resumed = 50 * FRAME
    assert track.hole_ms(0, resumed) == 0
    assert track.hole_ms(resumed, resumed + FRAME) == pytest.approx(2000, abs=11)
    assert track.index_at(START + 2.0) == resumed


class TestSentTrack:
    def test_the_earliest_sighting_dates_it(self) -> None:
        track = SentTrack()
        assert track.time_of(0) is None
        track.silence(4 * FRAME)
        track.left(FRAME - 1, START)
        assert track.time_of(0) is None
        track.left(FRAME, START + 0.009)
        track.left(2 * FRAME, START + PACKET_S + 0.001)
        track.left(3 * FRAME, START + 2 * PACKET_S + 0.015)
        assert track.time_of(FRAME) == pytest.approx(START + PACKET_S + 0.001)

    def test_what_was_discarded_is_taken_back(self) -> None:
        track = SentTrack()
        track.append(np.arange(1, 7, dtype=np.int16).tobytes())
        track.remove(2)
        track.silence(1)
        track.remove(0)
        assert track.view().tolist() == [1, 2, 3, 4, 0]
        assert track.view(1, 3).tolist() == [2, 3]
        assert len(track) == 5
