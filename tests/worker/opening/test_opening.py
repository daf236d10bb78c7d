"""The opening of a call with a speaker that a test controls: no session, no line, no waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from core.jobs import CallBrief
from core.models import Agent, AgentConfig, CallEvent, Turn
from core.recordings.config import Consent, ConsentMode, Disclosure
from core.recordings.plan import RecordingPlan
from core.recovery import Recovered
from worker.opening import opening as module
from worker.opening import texts
from worker.opening.opening import Opening
from worker.opening.resumption import resumption_of
from worker.privacy.gate import Gate
from worker.voice.failures import reentry
from worker.voice.prepared import PreparedSpeech

pytestmark = pytest.mark.unit

QUESTION = "May we?"
HELD = "Recorded."


def brief(
    mode: ConsentMode = "none", *, recorded: bool = True, language: str = "en", **config: Any
) -> CallBrief:
    agent = AgentConfig(name="Ann", language=language, **config)
    return CallBrief(
        call_id="call_1",
        direction="inbound",
        participant_identity="caller",
        from_number=None,
        to_number=None,
        metadata={},
        max_duration_ms=1000,
        agent=Agent(id="a", version=1, config=agent),
        recording=RecordingPlan(key="k") if recorded else None,
        consent=mode,
    )


class Rig:
    """An opening. Each speech lasts until the test calls ``spoken``, or it is stopped."""

    def __init__(self, brief: CallBrief) -> None:
        self.did: list[str] = []
        self.turns: Callable[[str], None] | None = None
        self.silenced = False
        self._begun: asyncio.Queue[str] = asyncio.Queue()
        self._over: asyncio.Future[bool] = asyncio.Future()
        self.gate = Gate(self._post, lambda: 0)
        self.opening = Opening(
            brief,
            gate=self.gate,
            post=self._post,
            end=self.did.append,
            on_busy=lambda busy: self.did.append(f"busy {busy}"),
            resumption=resumption_of(brief),
        )

    def _post(self, type: str, data: dict[str, Any]) -> CallEvent:
        self.did.append(" ".join([type, *data.values()]))
        return CallEvent(type=type, data=data)

    # The speaker

    def divert(self, turns: Callable[[str], None] | None) -> None:
        self.turns = turns

    async def announce(self, speech: PreparedSpeech, *, attentive: bool) -> bool:
        if self.silenced:
            return False
        self._over = asyncio.Future()
        self._begun.put_nowait(speech.text)
        return await self._over

    async def hush(self) -> None:
        self._over.set_result(False)

    async def synthesise(self, speech: PreparedSpeech) -> bool:
        return True

    def greet(self, line: PreparedSpeech | None = None, owed: Turn | None = None) -> None:
        if line is not None:
            self.did.append(f"say {line.text}")
        self.did.append("greet")
        if owed is not None:
            self.did.append(f"answer {owed.transcript}")

    # The test

    async def says(self, text: str) -> None:
        """Wait until the agent begins to say ``text``."""
        assert await asyncio.wait_for(self._begun.get(), 5) == text

    async def spoken(self, text: str) -> None:
        """Let the agent say ``text`` to its end."""
        await self.says(text)
        self._over.set_result(True)
        for _ in range(20):  # until the opening waits for an answer
            await asyncio.sleep(0)

    def caller_says(self, text: str) -> None:
        assert self.turns is not None
        self.turns(text)

    def silence(self) -> None:
        """Let the time for an answer pass."""
        assert self.opening._patience is not None
        self.opening._patience.reschedule(0)

    def events(self) -> list[str]:
        return [one for one in self.did if "." in one]


@asynccontextmanager
async def run(given: CallBrief) -> AsyncIterator[Rig]:
    """Run the opening; it must be over at the end of the block."""
    rig = Rig(given)
    running = asyncio.create_task(rig.opening.run(rig))
    try:
        yield rig
        await asyncio.wait_for(running, 5)
    finally:
        running.cancel()


def opt_in(**consent: Any) -> CallBrief:
    return brief("opt_in", consent=Consent(mode="opt_in", question=QUESTION, **consent))


async def test_nothing_to_say() -> None:
    async with run(brief()) as rig:
        pass
    assert rig.did == ["greet"]
    assert rig.gate.is_open and rig.opening.speeches == []
    assert not rig.opening.pressed("1") and not rig.opening.typed("yes")


@pytest.mark.parametrize("mode", ["none", "announcement"])
async def test_a_disclosure_comes_before_the_greeting(mode: ConsentMode) -> None:
    async with run(brief(mode, disclosure=Disclosure(text=HELD))) as rig:
        await rig.says(HELD)
        assert rig.did == [] and rig.gate.is_open
        rig._over.set_result(True)
    assert rig.did == ["disclosure.spoken", "greet"]


async def test_a_disclosure_that_was_stopped_was_not_heard() -> None:
    async with run(brief(disclosure=Disclosure(text=HELD))) as rig:
        await rig.says(HELD)
        await rig.hush()
    assert rig.did == []


@pytest.mark.parametrize(
    ("recorded", "language", "text"),
    [
        (True, "en", "This call is recorded."),
        (False, "en-GB", "A transcript of this call is kept."),
        (True, "de-AT", "Dieser Anruf wird aufgezeichnet."),
        (True, "pl", "This call is recorded."),
    ],
)
def test_an_announcement_without_a_text(recorded: bool, language: str, text: str) -> None:
    assert texts.disclosure(brief("announcement", recorded=recorded, language=language)) == text


def test_only_an_announcement_has_a_default_disclosure() -> None:
    assert texts.disclosure(brief("none")) is None
    assert texts.disclosure(brief("opt_in")) is None


@pytest.mark.parametrize("language", ["en", "de", "fr", "es", "it", "pt", "nl"])
@pytest.mark.parametrize("recorded", [True, False])
def test_every_language_has_a_question_that_names_words_and_keys(
    language: str, recorded: bool
) -> None:
    asked = texts.question(brief("opt_in", recorded=recorded, language=language))
    assert asked is not None and "1" in asked and "2" in asked
    english = texts.question(brief("opt_in", recorded=recorded))
    assert (asked == english) == (language == "en")
    assert (texts.goodbye(brief(language=language)) == texts.goodbye(brief())) == (language == "en")


@pytest.mark.parametrize(
    ("said", "outcome"), [("Yes.", "granted"), ("no", "refused"), ("yes, no", "refused")]
)
async def test_words_answer_the_question(said: str, outcome: str) -> None:
    async with run(opt_in()) as rig:
        assert not rig.gate.is_open, "from before the answer on"
        await rig.spoken(QUESTION)
        rig.caller_says(said)
    assert rig.events() == ["consent.asked", f"consent.{outcome} words"]
    assert rig.did[-1] == "greet"
    assert rig.gate.is_open == (outcome == "granted")
    assert rig.turns is None, "the next turn is the brain's"
    assert not rig.opening.pressed("1"), "the next key, too"


@pytest.mark.parametrize(("key", "outcome"), [("1", "granted"), ("2", "refused")])
async def test_a_key_counts_during_the_question(key: str, outcome: str) -> None:
    async with run(opt_in()) as rig:
        await rig.says(QUESTION)
        assert rig.opening.pressed("7"), "no other key is anybody's"
        assert rig.opening.pressed(key)
    assert rig.events() == ["consent.asked", f"consent.{outcome} key"]
    assert rig.did[-1] == "greet"


async def test_written_words_count_as_keys_do() -> None:
    async with run(opt_in()) as rig:
        assert rig.opening.typed("yes"), "before the question it is nobody's"
        await rig.says(QUESTION)
        assert rig.opening.typed("hello")
        for _ in range(20):
            await asyncio.sleep(0)
        assert not rig._over.done(), "it does not stop the question"
        assert rig.opening.typed("Yes, I agree")
    assert rig.events() == ["consent.asked", "consent.granted words"]


async def test_words_before_the_end_of_the_question_are_no_answer() -> None:
    """A callee who picks up with "Yes?" has agreed to nothing."""
    async with run(
        brief("opt_in", disclosure=Disclosure(text=HELD), consent=Consent(question=QUESTION))
    ) as rig:
        await rig.says(HELD)
        rig.caller_says("yes")
        assert rig.opening.pressed("1")
        rig._over.set_result(True)
        await rig.says(QUESTION)
        rig.caller_says("yes")
        assert rig.events() == ["disclosure.spoken", "consent.asked"]
        assert rig.opening.pressed("2")
    assert rig.events()[2:] == ["consent.refused key"]


@pytest.mark.parametrize("unclear", ["what", "yes?", "", None])
async def test_it_is_asked_again_once(unclear: str | None) -> None:
    async with run(opt_in()) as rig:
        for _ in range(2):
            await rig.spoken(QUESTION)
            rig.silence() if unclear is None else rig.caller_says(unclear)
    assert rig.events() == ["consent.asked", "consent.asked", "consent.refused silence"]
    assert not rig.gate.is_open


async def test_the_second_question_may_be_answered() -> None:
    async with run(opt_in()) as rig:
        await rig.spoken(QUESTION)
        rig.silence()
        await rig.spoken(QUESTION)
        rig.caller_says("yes")
    assert rig.events()[-1] == "consent.granted words"


async def test_a_refusal_may_end_the_call() -> None:
    given = opt_in(on_refused="hang_up")
    async with run(given) as rig:
        await rig.spoken(QUESTION)
        rig.caller_says("no")
        await rig.spoken(texts.goodbye(given))
    assert rig.did[-2:] == ["consent.refused words", "consent_refused"]
    assert "greet" not in rig.did and not rig.gate.is_open


@pytest.mark.parametrize("speaking", [True, False])
async def test_a_machine_consents_to_nothing(speaking: bool) -> None:
    async with run(opt_in(on_refused="hang_up")) as rig:
        if speaking:
            await rig.says(QUESTION)
            rig.silenced = True
            await rig.hush()
        else:
            await rig.spoken(QUESTION)
            rig.silenced = True
            rig.silence()
    assert rig.events() == ["consent.asked"]
    assert "greet" not in rig.did and not rig.gate.is_open


async def test_the_silence_clock_stands_still_meanwhile() -> None:
    async with run(opt_in()) as rig:
        await rig.spoken(QUESTION)
        assert rig.did == ["busy True", "consent.asked"]
        rig.caller_says("yes")
    assert rig.did[2:] == ["consent.granted words", "busy False", "greet"]


async def test_a_caller_who_begins_to_answer_may_finish() -> None:
    async with run(opt_in()) as rig:
        await rig.spoken(QUESTION)
        patience = rig.opening._patience
        assert patience is not None
        until = patience.when()
        assert until is not None
        patience.reschedule(until - module.ANSWER_WITHIN_S + 0.01)
        rig.opening.busy("caller", True)
        extended = patience.when()
        assert extended is not None and extended > until
        for _ in range(100):
            rig.opening.busy("caller", True)
        assert (patience.when() or 0) < until + 15, "not for ever"
        rig.caller_says("yes")
    assert rig.events()[-1] == "consent.granted words"


# An agent that takes over

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
LINE = "Where were we?"
ASKED = Turn(id="t1", transcript="when do you open?", start_ms=2000)


def taken_over(given: CallBrief, **so_far: Any) -> CallBrief:
    config = given.agent.config.model_copy(update={"reentry_message": LINE})
    values: dict[str, Any] = {"epoch": 1, "lost_at": NOON, "answered_at": NOON}
    return given.model_copy(
        update={
            "recovered": Recovered(**(values | so_far)),
            "agent": given.agent.model_copy(update={"config": config}),
        }
    )


async def test_it_says_the_reentry_line_and_answers_the_last_turn() -> None:
    said = taken_over(brief(disclosure=Disclosure(text=HELD)), disclosed=True, turns=[ASKED])
    async with run(said) as rig:
        assert [speech.text for speech in rig.opening.speeches] == [LINE]
    assert rig.did == [f"say {LINE}", "greet", "answer when do you open?"]


async def test_who_has_heard_nothing_is_met_as_by_the_first() -> None:
    async with run(taken_over(brief(disclosure=Disclosure(text=HELD)))) as rig:
        await rig.spoken(HELD)
    assert rig.did == ["disclosure.spoken", "greet"]


async def test_an_open_question_is_asked_again_with_the_gate_shut() -> None:
    async with run(taken_over(opt_in(), consent="asked")) as rig:
        assert not rig.gate.is_open
        await rig.spoken(LINE)
        await rig.says(QUESTION)
        rig.opening.pressed("1")
    assert rig.events() == ["consent.asked", "consent.granted key"]
    assert rig.gate.is_open and rig.did[-1] == "greet"


async def test_who_had_agreed_is_not_asked_again() -> None:
    async with run(taken_over(opt_in(), consent="granted", greeted=True)) as rig:
        assert rig.gate.is_open
    assert rig.did == [f"say {LINE}", "greet"]


async def test_a_refusal_keeps_the_gate_shut() -> None:
    given = taken_over(opt_in(on_refused="continue"), consent="refused", greeted=True)
    async with run(given) as rig:
        pass
    assert rig.did == [f"say {LINE}", "greet"]
    assert rig.gate.is_shut_for("consent")


async def test_a_goodbye_after_a_refusal_is_said_again() -> None:
    given = taken_over(opt_in(on_refused="hang_up"), consent="refused")
    async with run(given) as rig:
        await rig.spoken(texts.goodbye(given))
    assert rig.did == ["consent_refused"]
    assert rig.gate.is_shut_for("consent")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "Sorry, I lost you for a moment."),
        ({"language": "de-CH"}, "Entschuldigung, ich war einen Moment weg."),
        ({"language": "pl"}, None),
        ({"reentry_message": " "}, None),
        ({"reentry_message": LINE, "language": "pl"}, LINE),
    ],
)
def test_the_reentry_line(changes: dict[str, Any], line: str | None) -> None:
    assert reentry(AgentConfig(name="Ann", **changes)) == line


UNFINISHED = ASKED.model_copy(update={"response": "Let me look."})


@pytest.mark.parametrize(
    ("so_far", "mode", "owed"),
    [
        ({"turns": [ASKED]}, "webhook", True),
        ({"turns": [ASKED], "keys": "4"}, "hosted", False),
        ({"turns": [UNFINISHED], "unfinished": True}, "hosted", True),
        ({"turns": [UNFINISHED], "unfinished": True}, "webhook", False),
        ({"turns": [UNFINISHED]}, "hosted", False),
        ({"turns": [Turn(id="t", response="Hello.")], "unfinished": True}, "hosted", False),
        ({"turns": [ASKED], "give_up": True}, "hosted", False),
        ({"turns": [ASKED], "machine": "voicemail"}, "hosted", False),
    ],
)
def test_the_turn_that_is_owed_an_answer(so_far: Any, mode: Any, owed: bool) -> None:
    found = resumption_of(taken_over(brief(voice_mode=mode), **so_far))
    assert found is not None and (found.owed is not None) is owed


def test_a_call_that_nobody_had_answered_begins_anew() -> None:
    assert resumption_of(taken_over(brief(), answered_at=None)) is None
    assert resumption_of(brief()) is None
