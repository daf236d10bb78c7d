"""What the next agent is told of a call: literal timelines, also late, twice and out of order."""

from __future__ import annotations

import itertools
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core.models import Turn
from core.recovery import OpenTransfer, Recovered
from gateway.calls.recovery.recovered import MOST_AGENTS, crashes, is_hopeless, recovered
from gateway.store.call_status import Call, StoredEvent

pytestmark = pytest.mark.unit

T0 = datetime(2026, 1, 31, 12, tzinfo=UTC)
SEQ = itertools.count(1)
TRANSFER = "trf_0123456789abcdef01234567"


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def told(seconds: float, type_: str, id: str | None = None, **data: Any) -> StoredEvent:
    seq = next(SEQ)
    return StoredEvent(
        id=id or f"evt_{seq}",
        type=type_,
        at=at(seconds),
        data=data,
        call_id="call_1",
        seq=seq,
        source="worker",
    )


def turn(seconds: float, transcript: str, response: str = "", id: str | None = None) -> StoredEvent:
    told_turn = Turn(
        id=id or f"turn_{transcript or response}",
        transcript=transcript,
        response=response,
        start_ms=int(seconds * 1000) if transcript else None,
        response_start_ms=int(seconds * 1000) if response else None,
        created_at=at(seconds),
    )
    return told(seconds, "turn").model_copy(update={"data": told_turn.wire()})


def lost(seconds: float, epoch: int = 0, why: str = "killed") -> StoredEvent:
    seen_at = at(seconds - 1).isoformat().replace("+00:00", "Z")
    return told(seconds, "agent.lost", f"call_1_lost_{epoch}", epoch=epoch, why=why, seenAt=seen_at)


def call(epoch: int = 1, **changes: Any) -> Call:
    values: dict[str, Any] = {
        "id": "call_1",
        "direction": "outbound",
        "room_name": "room",
        "participant_identity": "caller",
        "created_at": T0,
        "answered_at": at(5),
        "agent_epoch": epoch,
    }
    return Call(**{**values, **changes})


def of(*events: StoredEvent, **changes: Any) -> Recovered:
    found = recovered(call(**changes), events)
    assert found is not None
    return found


def test_the_first_agent_is_told_nothing() -> None:
    assert recovered(call(epoch=0), [turn(6, "hello")]) is None


def test_a_conversation() -> None:
    found = of(
        told(1, "agent.joined", worker="w", epoch=0),
        turn(6, "", "Welcome"),
        turn(8, "two of us", "For when?"),
        turn(12, "tonight"),
        lost(14),
    )
    assert [(one.transcript, one.response) for one in found.turns] == [
        ("", "Welcome"),
        ("two of us", "For when?"),
        ("tonight", ""),
    ]
    assert (found.epoch, found.lost_at, found.answered_at) == (1, at(13), at(5))
    assert found.unanswered is not None and found.unanswered.transcript == "tonight"
    assert not found.give_up


def test_the_newest_version_of_a_turn_counts_also_if_it_comes_late() -> None:
    """The worker's main process ships a dead agent's spool; a duplicate is not stored."""
    found = of(
        turn(8, "two", id="t"),
        lost(14),
        turn(8, "two", "For when?", id="t"),
    )
    (only,) = found.turns
    assert (only.response, found.unanswered) == ("For when?", None)


def test_the_order_of_arrival_changes_only_which_version_of_a_turn_is_newest() -> None:
    events = [
        turn(6, "", "Welcome"),
        told(7, "dtmf.received", digit="9"),
        turn(8, "hello", "Yes?"),
        told(15, "silence.prompted", text="Still there?"),
        told(18, "dtmf.received", digit="4"),
        told(19, "silence.prompted", text="Still there?"),
        told(19.5, "dtmf.received", digit="2"),
        told(20, "silence.prompted", text="Still there?"),
        told(21, "recording.paused", by="api", recording="paused"),
        lost(22),
    ]
    expected = of(*events)
    assert (expected.keys, expected.silence_prompts, expected.paused) == ("42", 1, True)
    shuffled = random.Random(19)
    for _ in range(50):
        shuffled.shuffle(events)
        assert of(*events) == expected


class TestKeys:
    def test_what_a_turn_a_tool_or_the_opening_took_is_gone(self) -> None:
        pressed = told(9, "dtmf.received", digit="7")
        for taker in (
            turn(10, "[The caller pressed 7]"),
            told(10, "tool.called", name="collect_digits", ok=True),
            told(10, "consent.granted", by="key"),
        ):
            assert of(pressed, taker, lost(12)).keys == ""
        assert of(pressed, told(10, "tool.called", name="book", ok=True), lost(12)).keys == "7"

    def test_those_pressed_during_an_answer_stay_when_it_ends(self) -> None:
        """The turn is told again, but it is older than the key."""
        found = of(
            turn(8, "hello", id="t"),
            told(9, "dtmf.received", digit="1"),
            turn(8, "hello", "Please type your number.", id="t"),
            lost(12),
        )
        assert found.keys == "1"


class TestSilence:
    def test_a_turn_that_is_told_again_is_not_the_callers_voice(self) -> None:
        again = turn(8, "hello", "Yes?", id="t").model_copy(update={"at": at(16)})
        prompted = told(15, "silence.prompted", text="Hello?")
        assert of(turn(8, "hello", id="t"), prompted, again, lost(18)).silence_prompts == 1
        assert of(prompted, turn(17, "here I am"), lost(18)).silence_prompts == 0
        assert of(prompted, turn(17, "", "I am here."), lost(18)).silence_prompts == 1


class TestTransfer:
    STARTED = told(8, "transfer.started", f"{TRANSFER}_transfer.started", mode="warm", to="+1555")

    def test_an_open_one(self) -> None:
        ringing = told(9, "transfer.ringing", f"{TRANSFER}_transfer.ringing")
        found = of(self.STARTED, ringing, lost(10)).transfer
        assert found == OpenTransfer(transfer_id=TRANSFER, mode="warm", answered=False)
        answered = told(9, "transfer.answered", f"{TRANSFER}_transfer.answered")
        found = of(self.STARTED, ringing, answered, lost(10)).transfer
        assert found is not None and found.answered

    def test_one_with_an_outcome(self) -> None:
        failed = told(9, "transfer.failed", f"{TRANSFER}_transfer.failed", reason="busy")
        assert of(self.STARTED, failed, lost(10)).transfer is None
        assert of(self.STARTED, told(9, "call.transferred"), lost(10)).transfer is None

    def test_only_the_last_one_can_be_open(self) -> None:
        other = "trf_ffffffffffffffffffffffff"
        failed = told(9, "transfer.failed", f"{TRANSFER}_transfer.failed", reason="busy")
        again = told(10, "transfer.started", f"{other}_transfer.started", mode="cold", to="+1555")
        found = of(self.STARTED, failed, again, lost(11)).transfer
        assert found == OpenTransfer(transfer_id=other, mode="cold", answered=False)


class TestPrivacy:
    def test_a_mask_of_the_api_ends_by_itself(self) -> None:
        masked = told(9, "recording.masked", by="api")
        masked = masked.model_copy(update={"data": {"by": "api", "seconds": 51}})
        found = of(masked, lost(10))
        assert (found.masked_until, found.typing_secretly, found.paused) == (at(60), False, False)
        found = of(masked, told(9.5, "recording.unmasked"), lost(10))
        assert (found.masked_until, found.typing_secretly) == (None, False)

    def test_a_caller_who_types_in_secret(self) -> None:
        found = of(told(9, "recording.masked", by="agent", recording="masked"), lost(10))
        assert (found.masked_until, found.typing_secretly) == (None, True)

    def test_a_pause_goes_on_below_a_mask(self) -> None:
        events = [
            told(8, "recording.paused", by="agent"),
            told(9, "recording.masked", by="agent"),
            told(9.5, "recording.unmasked"),
        ]
        assert of(*events, lost(10)).paused
        assert not of(*events, told(9.7, "recording.resumed", by="api"), lost(10)).paused

    @pytest.mark.parametrize("status", [None, "asked", "granted", "refused"])
    def test_consent_is_the_records(self, status: Any) -> None:
        assert of(lost(10), consent_status=status).consent == status


def test_a_tool_that_nobody_told_of() -> None:
    ran = told(9, "tool.called", name="book", ok=True)
    assert of(turn(8, "book it", "One moment."), ran, lost(10)).unfinished
    assert not of(ran, turn(9.5, "book it", "Done."), lost(10)).unfinished


def test_who_was_heard() -> None:
    assert of(lost(10)).untouched
    assert not of(told(5.2, "greeting.started"), lost(10)).untouched
    assert of(turn(6, "hello", "Hello!"), lost(10)).greeted


def test_machines_and_the_disclosure() -> None:
    found = of(
        told(6, "disclosure.spoken"),
        told(8, "machine.detected", kind="voicemail"),
        told(9, "voicemail.left", durationMs=4000),
        lost(10),
    )
    assert (found.disclosed, found.machine, found.voicemail_left) == (True, "voicemail", True)


class TestPoison:
    def test_after_three_crashes_the_next_agent_gives_up(self) -> None:
        losses = [lost(10 + epoch, epoch) for epoch in range(3)]
        assert not of(*losses[:2], epoch=2).give_up
        assert of(*losses, epoch=3).give_up
        assert of(*losses, epoch=3).lost_at == at(11)

    def test_planned_stops_are_no_crashes_but_do_not_go_on_for_ever(self) -> None:
        stops = [lost(10 + epoch, epoch, "stopped") for epoch in range(MOST_AGENTS - 1)]
        assert not of(*stops[:5], epoch=5).give_up
        assert of(*stops, epoch=MOST_AGENTS - 1).give_up
        assert crashes([*stops, lost(99, 7, "failed")]) == 1

    def test_who_is_not_replaced(self) -> None:
        assert [is_hopeless(epoch, epoch + 1) for epoch in range(4)] == [False, False, False, True]
        assert not is_hopeless(MOST_AGENTS - 2, 0)
        assert is_hopeless(MOST_AGENTS - 1, 0)
