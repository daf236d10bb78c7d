"""Until when a recording may be written, and what of it is silenced."""

from __future__ import annotations

import pytest

from worker.privacy.silencer import LAG_MS, MARGIN_MS, MOST_MS, Silencer

pytestmark = pytest.mark.unit

BEFORE_MS = 1000
"""Speech may begin so much before it is reported."""


class Call:
    def __init__(self) -> None:
        self.now_ms = 0
        self.silencer = Silencer(lambda: self.now_ms)

    def busy(self, at_ms: int, who: str, busy: bool) -> None:
        self.now_ms = at_ms
        self.silencer.busy(who, busy)

    def known(self, at_ms: int) -> int:
        self.now_ms = at_ms
        return self.silencer.known_ms()


def test_in_silence_the_recording_is_a_little_late() -> None:
    call = Call()
    call.busy(0, "webhook", True)
    assert [call.known(at) for at in (0, LAG_MS, LAG_MS + 500)] == [0, 0, 500]


def test_a_long_turn_is_not_written_before_it_is_judged() -> None:
    call = Call()
    call.busy(20_000, "caller", True)
    call.busy(80_000, "caller", False)
    call.busy(80_300, "caller", True)
    call.busy(140_000, "caller", False)
    assert call.known(140_500) == 20_000 - BEFORE_MS
    call.silencer.told(140_000)
    assert call.known(140_600) == 140_600 - LAG_MS


def test_a_turn_that_is_posted_again_does_not_end_the_next() -> None:
    call = Call()
    call.busy(20_000, "caller", True)
    call.silencer.told(19_000)
    assert call.known(60_000) == 20_000 - BEFORE_MS


def test_a_turn_that_has_begun_when_the_last_one_is_judged_is_not_written() -> None:
    call = Call()
    call.busy(20_000, "caller", True)
    call.silencer.told(25_000)
    call.busy(40_000, "caller", False)
    assert call.known(44_000) == 25_000 - BEFORE_MS
    call.silencer.told(40_000)
    assert call.known(44_000) == 44_000 - LAG_MS


def test_a_noise_holds_nothing_up_for_long() -> None:
    call = Call()
    call.busy(20_000, "caller", True)
    call.busy(21_000, "caller", False)
    assert call.known(21_000 + LAG_MS) == 20_000 - BEFORE_MS
    assert call.known(21_001 + LAG_MS) == 21_001


def test_a_long_speech_of_the_agent_is_not_written_before_it_is_judged() -> None:
    call = Call()
    call.busy(20_000, "agent", True)
    call.busy(140_000, "agent", False)
    call.busy(150_000, "agent", True)
    assert call.known(140_000 + LAG_MS) == 20_000 - BEFORE_MS
    assert call.known(140_001 + LAG_MS) == 140_001
    assert call.known(200_000) == 150_000 - BEFORE_MS


def test_what_waits_too_long_is_silenced() -> None:
    call = Call()
    call.busy(20_000, "caller", True)
    for at in range(MOST_MS, MOST_MS + 60_001, 1000):
        call.known(at)
    assert call.known(MOST_MS + 60_000) == 60_000
    assert list(call.silencer.spans()) == [(20_000 - BEFORE_MS, 60_000)]


def test_what_nobody_has_judged_at_the_end_is_silenced() -> None:
    call = Call()
    call.busy(20_000, "caller", True)
    call.busy(24_000, "caller", False)
    call.silencer.told(25_000)
    call.busy(40_000, "caller", True)
    call.busy(41_000, "caller", False)
    call.now_ms = 45_000
    call.silencer.close()
    assert list(call.silencer.spans()) == [(40_000 - BEFORE_MS, 41_000)]
    call.busy(46_000, "caller", True)
    call.now_ms = 47_000
    call.silencer.close()
    assert list(call.silencer.spans()) == [(40_000 - BEFORE_MS, 47_000)]


def test_words_are_silenced_with_a_margin() -> None:
    call = Call()
    call.silencer.silence(50, 400)
    call.silencer.silence(1000, 2000)
    call.silencer.silence(1000, 1500)
    assert list(call.silencer.spans()) == [
        (0, 400 + MARGIN_MS),
        (1000 - MARGIN_MS, 2000 + MARGIN_MS),
    ]
