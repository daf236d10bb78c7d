"""The call's clock with delays and times that are given."""

from __future__ import annotations

import pytest

from worker.timing.call_clock import CallClock

pytestmark = pytest.mark.unit


class Line:
    """A line whose delay a test sets."""

    delay_ms: float | None = None
    usual_delay_ms = 0.0
    hidden_delay_ms = 0.0, 0.0

    def clock(self, now: float = 1000.0) -> CallClock:
        return CallClock(self, clock=lambda: now)


def test_before_the_answer_nothing_was_said_or_heard() -> None:
    clock = Line().clock()
    assert clock.now_ms() == 0
    assert clock.said_ms(1000.0) is None
    assert clock.heard_ms(1000.0) is None


def test_it_counts_from_the_answer() -> None:
    clock = Line().clock(now=1001.25)
    clock.answered(1000.0)
    assert clock.now_ms() == 1250


def test_half_of_the_delay_is_between_the_worker_and_the_far_end() -> None:
    line = Line()
    clock = line.clock()
    clock.answered(1000.0)
    line.delay_ms = 80.0
    assert clock.said_ms(1002.0) == 1960
    assert clock.heard_ms(1002.0) == 2040
    assert clock.said_ms(1000.01) == 0


def test_the_usual_delay_serves_until_one_is_measured() -> None:
    line = Line()
    line.usual_delay_ms = 60.0
    clock = line.clock()
    clock.answered(1000.0)
    assert clock.heard_ms(1002.0) == 2030
    assert clock.both_ways_ms is None
    line.delay_ms = 100.0
    assert clock.heard_ms(1002.0) == 2050


def test_what_no_statistic_has_is_added_to_each_way() -> None:
    line = Line()
    line.delay_ms, line.hidden_delay_ms = 80.0, (10.0, 30.0)
    clock = line.clock()
    clock.answered(1000.0)
    assert (clock.said_ms(1002.0), clock.heard_ms(1002.0)) == (1950, 2070)
    assert clock.both_ways_ms == pytest.approx(120.0)


def test_delays_that_were_measured_count() -> None:
    line = Line()
    line.delay_ms, line.hidden_delay_ms = 80.0, (10.0, 30.0)
    clock = line.clock()
    clock.answered(1000.0)
    clock.measured(0.045, 0.110)
    assert (clock.said_ms(1002.0), clock.heard_ms(1002.0)) == (1955, 2110)
    assert (clock.said_delay_s, clock.heard_delay_s) == (0.045, 0.110)
    assert clock.both_ways_ms == pytest.approx(155.0)


def test_a_single_stall_does_not_move_it() -> None:
    line = Line()
    clock = line.clock()
    clock.answered(1000.0)
    heard = []
    for line.delay_ms in (80.0, 84.0, 82.0, 900.0, 81.0):
        heard.append(clock.heard_ms(1002.0))
    assert heard[-1] == 2041
