"""worker.streams.playout step by step, with literal bytes."""

from __future__ import annotations

from collections import deque

import pytest

from worker.streams.playout import (
    STALLED_S,
    Clear,
    Finished,
    Mark,
    Playout,
    Progressed,
    Report,
    Send,
    Started,
    Write,
)

pytestmark = pytest.mark.unit

FRAME = 160
SILENCE = b"\xff"


def ulaw(*, echoes: bool = True) -> Playout:
    playout = Playout(8000, SILENCE, echoes=echoes)
    playout.attach(0.0)
    return playout


def frames(count: float, sample: bytes = b"a") -> bytes:
    return sample * round(FRAME * count)


def marks(writes: list[Write]) -> list[str]:
    return [write.name for write in writes if isinstance(write, Mark)]


def sent(writes: list[Write]) -> list[float]:
    """Return the frames of each chunk."""
    return [len(write.audio) / FRAME for write in writes if isinstance(write, Send)]


def finished(reports: list[Report]) -> list[Finished]:
    return [report for report in reports if isinstance(report, Finished)]


def test_a_short_speech_byte_by_byte() -> None:
    playout = ulaw()
    playout.push(b"hello")
    assert playout.due(0.0) == [] and playout.next_at(0.0) is None
    playout.flush()
    assert playout.due(0.0) == [Send(b"hello" + SILENCE * 155), Mark("g0.1")]
    assert playout.reports(0.0) == [Started(0.0)]
    assert playout.due(0.02) == [] and not playout.idle
    assert playout.echoed("g0.1", 0.03)
    assert playout.idle
    # The echo shows that the frame was over at 0.03; the word of 5 bytes is at its beginning.
    progressed, done = playout.reports(0.03)
    assert done == Finished(heard_s=5 / 8000, interrupted=False)
    assert isinstance(progressed, Progressed)
    assert progressed.started_at == pytest.approx(0.01)
    assert (progressed.offset_s, progressed.duration_s) == (0.0, 5 / 8000)


def test_pcm_is_padded_with_its_own_silence() -> None:
    playout = Playout(32000, b"\0\0", echoes=True)
    playout.attach(0.0)
    playout.push(b"\1\2\3\4")
    playout.flush()
    assert playout.due(0.0) == [Send(b"\1\2\3\4" + b"\0" * 636), Mark("g0.1")]


def test_a_frame_is_sent_as_soon_as_it_is_there_and_a_part_waits() -> None:
    playout = ulaw()
    playout.push(frames(0.9))
    assert playout.due(0.0) == []
    playout.push(frames(0.3))
    assert sent(playout.due(0.0)) == [1]
    playout.push(frames(1.8))
    assert sent(playout.due(0.0)) == [2]


def test_chunks_of_100_ms_up_to_the_lead() -> None:
    playout = ulaw()
    playout.push(frames(100))
    writes = playout.due(0.0)
    assert sent(writes) == [5, 5, 5] and marks(writes) == ["g0.1", "g0.2", "g0.3"]
    assert playout.next_at(0.0) == 0.0 and playout.reports(0.0) == [Started(0.0)]
    assert playout.next_at(0.0) == pytest.approx(0.1)
    assert playout.due(0.099) == []
    assert sent(playout.due(0.1)) == [5]
    # The clock does not pass a mark whose echo is missing.
    assert playout.next_at(0.1) is None
    assert playout.due(5.0) == [] and playout.heard_s(5.0) == pytest.approx(0.1)
    playout.echoed("g0.1", 5.0)
    assert playout.next_at(5.0) == pytest.approx(5.1)
    assert playout.heard_s(5.05) == pytest.approx(0.15)


def test_an_echo_includes_the_marks_before_it() -> None:
    playout = ulaw()
    playout.push(frames(15))
    playout.due(0.0)
    assert playout.echoed("g0.2", 0.2)
    assert playout.heard_s(0.2) == pytest.approx(0.2)
    assert not playout.echoed("g0.1", 0.2)


def test_unknown_repeated_and_older_marks_count_for_nothing() -> None:
    playout = ulaw()
    assert not playout.echoed("g0.1", 0.0)
    playout.push(frames(15))
    playout.due(0.0)
    assert not playout.echoed("g0.4", 0.0)
    assert playout.echoed("g0.1", 0.1) and not playout.echoed("g0.1", 0.1)
    playout.pause(0.15)
    assert not playout.echoed("g0.2", 0.15) and playout.heard_s(0.2) == pytest.approx(0.15)
    playout.resume(0.3)
    assert marks(playout.due(0.3)) == ["g1.4", "g1.5"]
    assert not playout.echoed("g0.3", 0.3) and playout.heard_s(0.3) == pytest.approx(0.15)


def test_a_pause_takes_back_what_was_not_heard() -> None:
    playout = ulaw()
    playout.push(bytes(range(250)) * 8)
    playout.flush()
    playout.due(0.0)
    playout.pause(0.05)
    assert playout.due(0.05) == [Clear(heard_s=0.05)]
    assert playout.reports(0.05) == [
        Started(0.0),
        Progressed(started_at=0.0, offset_s=0.0, duration_s=0.05),
    ]
    assert playout.next_at(0.05) is None
    playout.pause(1.0)
    assert playout.due(1.0) == []
    playout.resume(2.0)
    (send, *_) = playout.due(2.0)
    assert send == Send((bytes(range(250)) * 8)[400 : 400 + 800])


def test_an_interruption_after_a_pause_clears_the_queue_once() -> None:
    playout = ulaw()
    playout.push(frames(20))
    playout.flush()
    playout.due(0.0)
    playout.pause(0.05)
    assert playout.due(0.05) == [Clear(heard_s=0.05)]
    playout.clear(1.0)
    assert playout.due(1.0) == []
    assert playout.reports(1.0)[-1] == Finished(heard_s=0.05, interrupted=True)


def test_what_is_sent_after_a_pause_is_cleared_again() -> None:
    playout = ulaw()
    playout.push(frames(20))
    playout.due(0.0)
    playout.pause(0.05)
    playout.due(0.05)
    playout.resume(1.0)
    playout.due(1.0)
    playout.clear(1.05)
    assert playout.due(1.05) == [Clear(heard_s=0.1)]


def test_a_clear_ends_the_speech_where_it_was_heard() -> None:
    playout = ulaw()
    playout.push(frames(20))
    playout.flush()
    playout.due(0.0)
    playout.reports(0.0)
    playout.clear(0.08)
    assert playout.due(0.08) == [Clear(heard_s=0.08)]
    assert playout.reports(0.08) == [
        Progressed(started_at=0.0, offset_s=0.0, duration_s=0.08),
        Finished(heard_s=0.08, interrupted=True),
    ]
    assert playout.idle
    playout.clear(0.1)
    assert playout.due(0.1) == [] and playout.reports(0.1) == []


def test_the_rest_of_a_cleared_speech_is_dropped_until_its_flush() -> None:
    playout = ulaw()
    playout.push(frames(5))
    playout.due(0.0)
    playout.clear(0.02)
    playout.push(frames(5))
    assert playout.idle
    playout.flush()
    playout.push(frames(1, b"b"))
    assert playout.due(0.1)[-2:] == [Send(frames(1, b"b")), Mark("g1.2")]


def test_clearing_a_speech_that_was_not_sent_needs_no_message() -> None:
    playout = ulaw()
    playout.pause(0.0)
    playout.push(frames(5))
    playout.flush()
    playout.clear(0.1)
    assert playout.due(0.1) == []
    assert playout.reports(0.1) == [Finished(heard_s=0.0, interrupted=True)]


def test_a_speech_waits_for_the_one_before_it() -> None:
    playout = ulaw()
    for sample in (b"a", b"b"):
        playout.push(frames(2, sample))
        playout.flush()
    assert playout.due(0.0) == [Send(frames(2)), Mark("g0.1")]
    assert playout.due(0.1) == []
    playout.echoed("g0.1", 0.1)
    assert playout.due(0.1) == [Send(frames(2, b"b")), Mark("g0.2")]
    playout.clear(0.12)
    assert finished(playout.reports(0.12)) == [Finished(0.04, False), Finished(0.02, True)]


def test_clear_finishes_every_speech() -> None:
    playout = ulaw()
    for _ in range(3):
        playout.push(frames(5))
        playout.flush()
    playout.due(0.0)
    playout.clear(0.06)
    assert finished(playout.reports(0.06)) == [
        Finished(0.06, True), Finished(0.0, True), Finished(0.0, True)
    ]  # fmt: skip


def test_an_empty_speech_finishes_at_once() -> None:
    playout = ulaw()
    playout.flush()
    assert playout.reports(0.0) == []
    playout.push(b"")
    playout.flush()
    assert playout.next_at(0.0) == 0.0 and playout.reports(0.0) == [Finished(0.0, False)]


def test_a_far_end_that_never_echoes_is_paced_by_the_clock() -> None:
    playout = ulaw(echoes=False)
    playout.push(frames(30))
    playout.flush()
    assert sent(playout.due(0.0)) == [5, 5, 5]
    assert sent(playout.due(0.2)) == [5, 5]
    assert sent(playout.due(0.3)) == [5]
    assert not playout.stalled(60.0) and playout.reports(0.3)
    assert playout.next_at(0.3) == pytest.approx(0.6)
    assert finished(playout.reports(0.599)) == []
    assert finished(playout.reports(0.6)) == [Finished(0.6, False)]


def test_the_first_echo_shows_that_the_far_end_echoes() -> None:
    playout = ulaw(echoes=False)
    playout.push(frames(30))
    playout.due(0.0)
    assert playout.heard_s(0.25) == pytest.approx(0.25)
    assert playout.echoed("g0.1", 0.25) and playout.echoes
    # The position does not go back, but the lead counts from where the far end really is.
    assert playout.heard_s(0.3) == pytest.approx(0.25)
    assert sent(playout.due(0.3)) == [5]
    assert playout.due(0.34) == []
    playout.echoed("g0.2", 0.35)
    assert sent(playout.due(0.35)) == [5]
    assert playout.heard_s(0.4) == pytest.approx(0.25)
    playout.echoed("g0.3", 0.45)
    assert playout.heard_s(0.45) == pytest.approx(0.3)


def test_a_far_end_that_stops_echoing_has_stalled() -> None:
    playout = ulaw()
    assert not playout.stalled(100.0)
    playout.push(frames(10))
    playout.due(0.0)
    assert not playout.stalled(STALLED_S) and playout.stalled(STALLED_S + 0.1)
    assert playout.stalled(0.3, after_s=0.2)
    playout.echoed("g0.2", 0.3)
    assert not playout.stalled(100.0)


def test_a_lost_socket_is_a_pause_without_a_message() -> None:
    playout = ulaw()
    playout.push(frames(20))
    playout.due(0.0)
    playout.detach(0.06)
    assert playout.due(0.06) == [] and playout.reports(0.06)
    assert playout.next_at(0.06) is None
    assert not playout.stalled(20.0) and not playout.echoed("g0.1", 1.0)
    playout.attach(10.0)
    writes = playout.due(10.0)
    assert sent(writes) == [5, 5, 5] and marks(writes)[0] == "g1.4"
    assert playout.heard_s(10.0) == pytest.approx(0.06)


def test_a_newer_socket_takes_over() -> None:
    playout = ulaw()
    playout.push(frames(20))
    playout.due(0.0)
    playout.pause(0.05)
    playout.resume(0.05)
    playout.attach(0.05)
    writes = playout.due(0.05)  # no Clear for a queue that is empty
    assert sent(writes) == [5, 5, 5] and isinstance(writes[0], Send)
    assert playout.heard_s(0.05) == pytest.approx(0.05)


def test_nothing_is_sent_before_a_socket_is_there() -> None:
    playout = Playout(8000, SILENCE, echoes=True)
    playout.push(frames(5))
    assert playout.due(0.0) == []
    playout.attach(1.0)
    assert sent(playout.due(1.0)) == [5]
    assert playout.reports(1.0) == [Started(1.0)]


def test_a_clear_without_a_socket_still_finishes_the_speech() -> None:
    playout = ulaw()
    playout.push(frames(20))
    playout.due(0.0)
    playout.detach(0.06)
    playout.clear(1.0)
    assert finished(playout.reports(1.0)) == [Finished(0.06, True)]
    playout.attach(2.0)
    assert playout.due(2.0) == []


def test_speech_that_comes_too_slowly_is_reported_as_two_stretches() -> None:
    playout = ulaw()
    playout.push(frames(1))
    playout.due(0.0)
    playout.echoed("g0.1", 0.02)
    playout.push(frames(1))
    playout.due(0.5)
    playout.flush()
    playout.echoed("g0.2", 0.52)
    started, first, second, done = playout.reports(0.52)
    assert (started, first) == (Started(0.0), Progressed(0.0, 0.0, 0.02, echoed=True))
    assert isinstance(second, Progressed) and second.started_at == pytest.approx(0.5)
    assert (second.offset_s, second.duration_s) == (0.02, 0.02)
    assert done == Finished(0.04, interrupted=False)


def test_an_echo_that_waited_on_its_way_moves_nothing() -> None:
    playout = ulaw()
    playout.push(frames(15))
    playout.flush()
    playout.due(0.0)
    playout.echoed("g0.1", 0.14)
    playout.echoed("g0.2", 0.35)
    assert progress(playout, 0.35) == pytest.approx((0.04, 0.0, 0.2))
    playout.echoed("g0.3", 0.38)
    _, progressed, _ = playout.reports(0.38)
    assert isinstance(progressed, Progressed)
    assert (progressed.started_at, progressed.duration_s) == pytest.approx((0.04, 0.3))


def progress(playout: Playout, now: float) -> tuple[float, float, float]:
    """Return when the current stretch began, its offset and its duration, by echoes."""
    run = playout.playing(now)
    assert run is not None and run.echoed
    return run.started_at, run.offset_s, run.duration_s


def stretch(playout: Playout, at: float, *late_s: float) -> None:
    """Play chunks without a break from ``at`` on. Each one's echo is late by so much."""
    playout.push(frames(5 * len(late_s)))
    echoes = deque((at + 0.1 * number, late) for number, late in enumerate(late_s, 1))
    names = deque(marks(playout.due(at)))
    while echoes:
        heard_at, late = echoes.popleft()
        playout.echoed(names.popleft(), heard_at + late)
        names.extend(marks(playout.due(heard_at + late)))


def test_a_far_end_that_paused_goes_on_later() -> None:
    """Its queue was empty, and the next chunk on its way, when the last echo came."""
    playout = ulaw()
    stretch(playout, 0.0, 0.0, 0.0, 0.15, 0.15)
    assert progress(playout, 0.55) == pytest.approx((0.0, 0.0, 0.4))
    playout = ulaw()
    stretch(playout, 0.0, 0.0, 0.0, 0.15, 0.15, 0.15)
    assert progress(playout, 0.65) == pytest.approx((0.15, 0.0, 0.5))


def test_the_delay_is_the_least_of_a_stretch() -> None:
    playout = ulaw()
    assert playout.trip_s is None
    stretch(playout, 0.0, 0.09, 0.05, 0.08)
    assert playout.trip_s == pytest.approx(0.05)


def test_the_delay_stands_until_it_is_wrong_by_more_than_a_frame() -> None:
    playout = ulaw()
    found = []
    for number, late_s in enumerate((0.05, 0.065, 0.035, 0.5, 0.09, 0.09, 0.09, 0.04)):
        stretch(playout, 10.0 * number, late_s)
        found.append(playout.trip_s)
    # A stall is one measurement. A delay that grew counts when three have shown it.
    assert found == [pytest.approx(ms / 1000) for ms in (50, 50, 50, 50, 50, 90, 90, 40)]


def test_what_was_heard_is_not_kept() -> None:
    playout = ulaw(echoes=False)
    for second in range(600):
        playout.push(frames(50))
        for step in range(10):
            playout.due(second + step / 10)
    (speech,) = playout._speeches
    assert len(speech.unheard) <= 8000 and len(speech.marks) <= 64


def test_a_resumed_speech_is_padded_anew() -> None:
    playout = ulaw()
    playout.push(frames(6.25))
    playout.flush()
    assert sent(playout.due(0.0)) == [5, 2]
    playout.pause(0.05)
    playout.resume(0.05)
    (_, send, _) = playout.due(0.05)
    assert send == Send(frames(3.75) + SILENCE * 40)
