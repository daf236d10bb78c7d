"""The queue in the SIP stack that only counters show."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from sip.bridge.stack.to_wire import PACKET_S, USUAL_S, ToWire

pytestmark = pytest.mark.unit


@dataclass
class Stack:
    """Takes a frame every 20 ms, and sends it ``takes_s`` later. Keys are packets besides."""

    takes_s: float
    keys: int = 0
    anew: int = 0
    found: ToWire = field(default_factory=ToWire)

    def frames(self, now: float) -> int:
        return int(now / PACKET_S) - self.anew

    def report(self, now: float) -> float:
        """Look every 10.3 ms for a second; then the far end reports. Return what is known."""
        for number in range(100):
            at = now - (100 - number) * 0.0103
            self.found.taken(self.frames(at), at)
        packets = int((now - self.takes_s) / PACKET_S) + self.keys
        self.found.counted(self.frames(now), packets, now)
        return self.found.seconds


def test_the_usual_time_serves_until_it_was_counted() -> None:
    stack = Stack(0.05)
    stack.found.counted(8, 7, 0.16)
    assert stack.found.seconds == USUAL_S
    assert stack.report(5.0) == pytest.approx(0.05, abs=0.0121)


@pytest.mark.parametrize("takes_s", [0.001, 0.019, 0.024, 0.063])
def test_reports_at_different_moments_find_it_exactly(takes_s: float) -> None:
    stack = Stack(takes_s)
    for number in range(1, 11):
        stack.report(5.0 * number + 0.0021 * number)
    assert stack.found.seconds == pytest.approx(takes_s, abs=0.005)


def test_a_queue_that_gets_longer_is_followed_once_it_was_counted_twice() -> None:
    stack = Stack(0.024)
    for number in range(1, 6):
        stack.report(5.0 * number + 0.003 * number)
    stack.takes_s += 2 * PACKET_S
    assert stack.report(30.007) == pytest.approx(0.024, abs=0.005)
    assert stack.report(35.002) == pytest.approx(0.064, abs=0.005)


def test_counters_that_began_anew_or_counted_keys_change_nothing() -> None:
    stack = Stack(0.024)
    for number in range(1, 6):
        stack.report(5.0 * number + 0.003 * number)
    stack.keys += 11
    stack.found.anew()
    assert stack.report(30.0) == pytest.approx(0.024, abs=0.005)
    stack.anew = 1500
    assert stack.report(35.0) == pytest.approx(0.024, abs=0.005)
    stack.takes_s += PACKET_S
    for at in (40.0, 45.0):
        stack.report(at)
    assert stack.found.seconds == pytest.approx(0.044, abs=0.005)
