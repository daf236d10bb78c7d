"""The history that an agent begins with when it takes over a call."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core.models import Turn
from core.recovery import Recovered
from core.tools.memory import ToolAnswered, ToolCalled, ToolRun
from worker.voice.earlier.history import history
from worker.voice.keys import DIGITS, pressed
from worker.voice.transcript import spoken_text, turn_id_of

pytestmark = pytest.mark.unit

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def so_far(*turns: Turn, **more: Any) -> Recovered:
    return Recovered(epoch=1, lost_at=NOON, answered_at=NOON, turns=list(turns), **more)


def test_it_is_empty_for_the_first_agent() -> None:
    assert history(None).items == []


def test_what_both_said_and_when() -> None:
    turns = [
        Turn(id="t0", response="Hello.", response_start_ms=100),
        Turn(
            id="t1",
            transcript="Where are you?",
            start_ms=2000,
            confidence=0.9,
            interrupted=True,
            response="In the old",
            response_start_ms=3000,
        ),
        Turn(id="t2", masked=True),
        Turn(id="t3", transcript="Thanks.", created_at=NOON + timedelta(seconds=9)),
    ]
    said = history(so_far(*turns)).messages()
    assert [(one.role, one.text_content) for one in said] == [
        ("assistant", "Hello."),
        ("user", "Where are you?"),
        ("assistant", "In the old"),
        ("user", "Thanks."),
    ]
    assert [one.interrupted for one in said] == [False, False, True, False]
    assert [one.created_at - NOON.timestamp() for one in said] == pytest.approx([0.1, 2, 3, 9])
    assert said[1].transcript_confidence == 0.9


def test_keys_stay_keys() -> None:
    (message,) = history(so_far(Turn(id="t", transcript=spoken_text(pressed("4*#"))))).messages()
    assert message.extra == {DIGITS: "4*#"}


def test_nothing_of_it_is_later_than_what_comes_now() -> None:
    ahead = Turn(id="t", transcript="Hi.", created_at=datetime.now(UTC) + timedelta(hours=1))
    (message,) = history(so_far(ahead)).messages()
    assert message.created_at <= time.time()


def test_tools_are_where_they_ran() -> None:
    turns = [
        Turn(id="t0", response="Hello.", response_start_ms=100, response_end_ms=500),
        Turn(id="turn_1", transcript="Book it.", start_ms=2000),
    ]
    called = ToolCalled(id="call_a", name="book", arguments={"n": 4}, turn="turn_1", at_ms=2500)
    answered = ToolAnswered(id="call_a", ok=True, result="booked", at_ms=2900)
    items = history(so_far(*turns, tools=[ToolRun(called=called, answered=answered)])).items
    assert [item.type for item in items] == [
        "message",
        "message",
        "function_call",
        "function_call_output",
    ]
    asked = items[1]
    assert asked.type == "message" and turn_id_of(asked) == "turn_1"
    assert [item.created_at for item in items] == sorted(item.created_at for item in items)
