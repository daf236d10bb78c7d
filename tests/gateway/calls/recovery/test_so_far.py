"""What the next agent is told of a call: a pure function of its timeline."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core.models import Turn
from core.recovery import OpenTransfer, Recovered
from gateway.calls.recovery.recovered import recovered
from gateway.store.call_status import Call, StoredEvent

pytestmark = pytest.mark.unit

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def of(*told: tuple[str, dict[str, Any]] | str, epoch: int = 1, **call: Any) -> Recovered:
    """Return it after these events, a second apart."""
    events = [
        StoredEvent(
            id=data.pop("event", f"evt_{number}"),
            type=type,
            at=NOON + timedelta(seconds=number),
            data=data,
            call_id="call_1",
            seq=number,
            source="worker",
        )
        for number, (type, data) in enumerate(
            (one, {}) if isinstance(one, str) else (one[0], dict(one[1])) for one in told
        )
    ]
    record = Call(
        id="call_1",
        direction="outbound",
        room_name="call_1",
        participant_identity="phone",
        created_at=NOON,
        agent_epoch=epoch,
        **call,
    )
    found = recovered(record, events)
    assert found is not None
    return found


def turn(id: str, transcript: str = "", response: str = "", **more: Any) -> tuple[str, Any]:
    return "turn", Turn(id=id, transcript=transcript, response=response, **more).wire()


GREETING = turn("t0", "", "Hello.", response_start_ms=0)


def test_the_first_agent_is_told_nothing() -> None:
    call = Call(
        id="call_1",
        direction="web",
        room_name="r",
        participant_identity="p",
        created_at=NOON,
    )
    assert recovered(call, []) is None


def test_the_loss() -> None:
    seen_at = NOON - timedelta(seconds=3)
    found = of(("agent.lost", {"epoch": 0, "seenAt": seen_at.isoformat()}))
    assert (found.epoch, found.lost_at, found.give_up) == (1, seen_at, False)


def test_turns_in_spoken_order_and_the_one_that_waits() -> None:
    asked = turn("t1", "when do you open?", start_ms=2000)
    found = of(asked, GREETING)
    assert [each.id for each in found.turns] == ["t0", "t1"]
    assert found.unanswered is not None and found.unanswered.id == "t1"
    assert of(GREETING, asked, turn("t1", "when do you open?", "At five.")).unanswered is None


def test_the_greeting_was_heard_if_it_began_or_the_two_have_talked() -> None:
    assert not of(turn("t0", "", "This call is recorded."), "disclosure.spoken").greeted
    assert not of(turn("t0", "hello?")).greeted
    assert of("greeting.started").greeted
    assert of(turn("t0", "hello?", "Hi.")).greeted


@pytest.mark.parametrize(
    ("told", "unfinished"),
    [
        ([turn("t1", "a table", "Let me look."), ("tool.called", {"name": "find"})], True),
        ([("tool.called", {"name": "find"}), turn("t1", "a table", "At eight.")], False),
        (
            [
                turn("t1", "a human", "One moment."),
                ("transfer.started", {"event": "trf_1_transfer.started", "mode": "warm"}),
            ],
            True,
        ),
        ([turn("t1", "a table", "Let me look.")], False),
    ],
)
def test_an_answer_goes_on_after_a_tool(told: list[Any], unfinished: bool) -> None:
    assert of(*told).unfinished is unfinished


def test_prompts_since_the_caller_was_heard() -> None:
    prompted = ("silence.prompted", {"text": "Hello?"})
    assert of(prompted, ("dtmf.received", {"digit": "1"}), prompted, prompted).silence_prompts == 2


def test_pauses() -> None:
    assert of("recording.paused").paused
    assert not of("recording.paused", "recording.resumed").paused


def test_machines() -> None:
    assert of(("machine.detected", {"kind": "ivr"})).machine == "ivr"
    found = of(("machine.detected", {"kind": "voicemail"}), "voicemail.left")
    assert (found.machine, found.voicemail_left) == ("voicemail", True)


def test_an_open_transfer() -> None:
    begun = ("transfer.started", {"event": "trf_1_transfer.started", "mode": "warm"})
    assert of(begun, "transfer.ringing").transfer == OpenTransfer(transfer_id="trf_1", mode="warm")
    assert of(begun, ("transfer.failed", {"event": "trf_1_transfer.failed"})).transfer is None
    assert of(begun, "transfer.accepted", "call.transferred").transfer is None
    again = ("transfer.started", {"event": "trf_2_transfer.started", "mode": "cold"})
    found = of(begun, ("transfer.failed", {"event": "trf_1_transfer.failed"}), again).transfer
    assert found == OpenTransfer(transfer_id="trf_2", mode="cold")
