"""The state machine of consent."""

from __future__ import annotations

import pytest

from core.recordings.consent import ConsentBy
from worker.opening.consent import Consent
from worker.voice.yes_no import Answer

pytestmark = pytest.mark.unit


def asked(times: int = 1) -> Consent:
    consent = Consent()
    for _ in range(times):
        consent.ask()
    return consent


@pytest.mark.parametrize(("answer", "status"), [("yes", "granted"), ("no", "refused")])
@pytest.mark.parametrize("by", ["key", "words"])
@pytest.mark.parametrize("times", [1, 2])
def test_an_answer_settles_it(answer: Answer, status: str, by: ConsentBy, times: int) -> None:
    consent = asked(times)
    consent.answer(answer, by)
    assert (consent.status, consent.by, consent.settled) == (status, by, True)


def test_an_answer_before_the_question_is_none() -> None:
    consent = Consent()
    consent.answer("yes", "key")
    assert (consent.status, consent.by, consent.settled) == ("not_asked", None, False)


@pytest.mark.parametrize(("first", "status"), [("yes", "granted"), ("no", "refused")])
def test_the_first_answer_counts(first: Answer, status: str) -> None:
    consent = asked()
    consent.answer(first, "key")
    consent.answer("no" if first == "yes" else "yes", "words")
    consent.ask()
    consent.no_answer()
    assert (consent.status, consent.by) == (status, "key")


def test_silence_refuses_the_second_time() -> None:
    consent = asked()
    consent.no_answer()
    assert consent.status == "asked"
    consent.ask()
    consent.no_answer()
    assert (consent.status, consent.by) == ("refused", "silence")
