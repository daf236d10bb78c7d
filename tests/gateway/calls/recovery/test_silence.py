"""Workers whose heartbeats have stopped, by the clock of the gateway that looks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.calls.recovery.silence import Silence

pytestmark = pytest.mark.unit

T0 = datetime(2026, 1, 31, 12, tzinfo=UTC)
EVERY_S = 0.5


def beat(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


class Watched:
    """Looks twice a second, and keeps what was found."""

    def __init__(self) -> None:
        self.silence = Silence(2.5)
        self.moment = 1000.0

    def look(self, **beats: datetime | None) -> list[str]:
        self.moment += EVERY_S
        return self.silence.look(beats, self.moment)


def test_a_worker_that_stops_is_found_after_the_time() -> None:
    watched = Watched()
    found = [watched.look(w=beat(0)) for _ in range(6)]
    assert found == [[]] * 5 + [["w"]]
    assert watched.look(w=beat(3)) == [], "it is heard again"


def test_one_that_beats_is_not_found_whatever_the_clocks_of_the_gateways_say() -> None:
    """Heartbeats of one worker are taken by gateways whose clocks are an hour apart."""
    watched = Watched()
    for second in range(10):
        behind = timedelta(hours=second % 2)
        for _ in range(2):
            assert watched.look(w=beat(second) - behind) == []


def test_one_that_never_sent_a_heartbeat() -> None:
    watched = Watched()
    assert [watched.look(w=None) for _ in range(6)][-1] == ["w"]


def test_after_a_time_without_looks_everybody_gets_the_whole_time_again() -> None:
    """This gateway was frozen, or the database away: heartbeats may have been lost, too."""
    watched = Watched()
    for _ in range(4):
        watched.look(w=beat(0), v=beat(0))
    watched.moment += 30
    assert [watched.look(w=beat(0), v=beat(0)) for _ in range(5)] == [[]] * 5
    assert watched.look(w=beat(0), v=beat(32)) == ["w"]


def test_one_without_calls_is_forgotten() -> None:
    watched = Watched()
    for _ in range(4):
        watched.look(w=beat(0))
    watched.look()
    assert [watched.look(w=beat(0)) for _ in range(5)] == [[]] * 5
