"""Answers with yes or no, in words and by keys."""

from __future__ import annotations

import pytest

from worker.voice.yes_no import by_key, by_words

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("said", "language", "answer"),
    [
        ("Yes.", "en", "yes"),
        ("Oh yes, put them through!", "en-US", "yes"),
        ("I agree.", "en", "yes"),
        ("No.", "en", "no"),
        ("Yes, but not now", "en", "no"),
        ("I don't agree", "en", "no"),
        ("I don\u2019t think that is okay", "en", "no"),
        ("Noon, yesterday", "en", None),
        ("", "en", None),
        ("Ja, gerne", "de", "yes"),
        ("Nein danke", "de", "no"),
        ("Ich bin nicht einverstanden", "de-CH", "no"),
        ("Sí.", "es", "yes"),
        ("No estoy de acuerdo", "es", "no"),
        ("Oui, d'accord", "fr", "yes"),
        ("Je ne suis pas d'accord", "fr-CA", "no"),
        ("Sì, va bene", "it", "yes"),
        ("Non sono d'accordo", "it", "no"),
        ("Ja hoor", "nl", "yes"),
        ("Ik ga niet akkoord", "nl", "no"),
        ("Sim, concordo", "pt-BR", "yes"),
        ("Não concordo", "pt", "no"),
        ("yes", "pl", "yes"),
        ("tak", "pl", None),
    ],
)
def test_words(said: str, language: str, answer: str | None) -> None:
    assert by_words(said, language) == answer


def test_keys() -> None:
    assert [by_key(key) for key in "123#"] == ["yes", "no", None, None]
