"""Lost audio that is found by when the rest arrives."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from sip.audio.lost import LostAudio

pytestmark = pytest.mark.unit

RATE, PACKET = 8000, 160
POLL_S = 0.01


def found(
    arrivals: Iterable[tuple[int, float]], *, filled_at: int | None = None, filled: int = 0
) -> list[tuple[int, int]]:
    """Return the number of each packet at whose arrival a loss was found, and the packets.

    ``arrivals``: the packets' numbers and times, which are read at the next poll.
    """
    lost = LostAudio(RATE, PACKET)
    result = []
    polls: dict[int, list[int]] = {}
    for number, at in arrivals:
        polls.setdefault(int(np.ceil(at / POLL_S)), []).append(number)
    for poll in sorted(polls):
        numbers = polls[poll]
        if filled_at in numbers:
            lost.filled(filled)
        missing = lost.missing(len(numbers) * PACKET, poll * POLL_S)
        if missing:
            assert missing % PACKET == 0
            result.append((numbers[-1], missing // PACKET))
    return result


def sent(
    count: int, lost: Iterable[int] = (), *, jitter_s: float = 0.002, drift: float = 0.0
) -> list[tuple[int, float]]:
    random = np.random.default_rng(3)
    gone = set(lost)
    return [
        (number, number * 0.02 * (1 + drift) + random.uniform(0.0, jitter_s))
        for number in range(count)
        if number not in gone
    ]


def test_each_lost_packet_is_found_within_80_ms() -> None:
    lost = (60, 110, 162, 400)
    hits = found(sent(500, lost))
    assert [n for _, n in hits] == [1] * 4
    assert all(0 < at - gone <= 4 for (at, _), gone in zip(hits, lost, strict=True))


def test_several_lost_packets_are_found_whether_together_or_close() -> None:
    assert sum(n for _, n in found(sent(300, (100, 101, 102)))) == 3
    assert sum(n for _, n in found(sent(300, (100, 103, 105)))) == 3


@pytest.mark.parametrize(("jitter_s", "drift"), [(0.0, 2e-4), (0.0, -2e-4), (0.015, 0), (0.03, 0)])
def test_jitter_and_drift_are_no_loss(jitter_s: float, drift: float) -> None:
    assert found(sent(6000, jitter_s=jitter_s, drift=drift)) == []


def test_what_waited_and_came_in_a_burst_was_not_lost() -> None:
    arrivals = [(number, max(at, 2.31) if 2.0 <= at < 2.31 else at) for number, at in sent(300)]
    assert found(arrivals) == []


def test_a_pause_of_the_phone_is_filled_to_its_length() -> None:
    """The leg has filled it but for the 100 ms that it waited for."""
    arrivals = sent(300, range(100, 150))
    hits = found(arrivals, filled_at=150, filled=45 * PACKET)
    assert sum(n for _, n in hits) == 5
