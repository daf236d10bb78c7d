"""Gaps: stretches in which something was owed."""

from __future__ import annotations

import pytest

from tests.gateway.diagnosis.timelines import (
    ANSWERED,
    DIALLED,
    STREAMS,
    TALKS,
    Told,
    completed,
    diagnosed,
    failed,
    gateway,
    over,
    turn,
    worker,
)

pytestmark = pytest.mark.unit

GAPS: list[tuple[str, list[Told], tuple[str, int, bool]]] = [
    (
        "the far end says nothing",
        [*DIALLED, worker(1, "agent.joined"), over(32.1, "gateway", "no-answer", "dial_no_answer"),
         worker(32.2, "agent.left", cause="not_answered")],
        ("a response of the far end", 32_000, False),
    ),
    (
        "the far end is slow",
        [*DIALLED, worker(1, "agent.joined"), over(8.1, "gateway", "busy", "dial_busy",
         sip_status_code=486), worker(8.2, "agent.left", cause="not_answered")],
        ("a response of the far end", 8000, True),
    ),
    (
        "no agent",
        [*DIALLED, gateway(1, "call.ringing"), over(15, "gateway", "failed", "agent_unavailable")],
        ("an agent", 15_000, False),
    ),
    (
        "an agent that is not ready",
        [*DIALLED, worker(1, "agent.joined"), gateway(3, "call.answered"),
         worker(9, "agent.ready"), *completed()],
        ("the agent's voice", 6000, True),
    ),
    (
        "a late answer",
        [*TALKS, turn(10, "hi", "yes", responseStartMs=15_000), *completed()],
        ("the agent's answer", 8000, True),
    ),
    (
        "no answer, then the caller speaks again",
        [*TALKS, turn(10, "hi"), turn(20, "hi", "yes", startMs=16_000), *completed()],
        ("the agent's answer", 9000, False),
    ),
    (
        "no answer at all",
        [*TALKS, turn(10, "hi"), *completed(30)],
        ("the agent's answer", 20_000, False),
    ),
    (
        "no socket",
        [*STREAMS, worker(9, "stream.lost"), *failed(39, "leg_lost")],
        ("the client's socket", 30_000, False),
    ),
    (
        "a transfer without outcome",
        [*TALKS, gateway(10, "transfer.started", mode="cold"), *completed(30)],
        ("the transfer's outcome", 20_000, False),
    ),
    (
        "another agent",
        [*TALKS, gateway(10, "agent.lost"), gateway(12.5, "agent.resumed"), *completed()],
        ("another agent", 2500, True),
    ),
    (
        "a worker that is gone",
        [*TALKS, over(90, "reconciler", "failed", "agent_error",
                      note="no agent in the room any more")],
        ("the worker's events", 84_000, False),
    ),
    (
        "a recording that is not stored",
        [*TALKS, worker(3, "recording.started", format="wav"),
         worker(30, "recording.stopped", reason="call_ended"), *completed()],
        ("the recording's upload", 3_570_000, False),
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("events", "wanted"), [pytest.param(*case, id=name) for name, *case in GAPS]
)
def test_a_gap(events: list[Told], wanted: tuple[str, int, bool]) -> None:
    type = "stream" if events[0] is STREAMS[0] and events[1] is STREAMS[1] else "pstn"
    found = diagnosed(events, type=type)  # type: ignore[arg-type]
    assert [(gap.owed, gap.ms, gap.came) for gap in found.gaps] == [wanted]


@pytest.mark.parametrize(
    "events",
    [
        [*TALKS, turn(10, "hi", "yes"), *completed()],
        [*TALKS, turn(29.5, "bye"), *completed(30)],
        [*TALKS, turn(10, "hi", masked=True), *completed(30)],
        [*TALKS, worker(3, "recording.started", format="wav"),
         worker(30, "recording.stored", durationMs=1), *completed()],
        [*TALKS, gateway(10, "transfer.started", mode="warm"), gateway(25, "transfer.failed",
         reason="declined"), *completed()],
    ],
)  # fmt: skip
def test_none(events: list[Told]) -> None:
    assert diagnosed(events).gaps == []


def test_gaps_are_in_order_of_time() -> None:
    found = diagnosed(
        [*TALKS, worker(9, "audio.missing"), turn(12, "hi"), turn(25, "hi"), *completed(40)]
    )
    assert [gap.since for gap in found.gaps] == sorted(gap.since for gap in found.gaps)
    assert len(found.gaps) == 3
    assert ANSWERED < (found.gaps[0].since - found.timeline[0].at).total_seconds()
