"""Secret digits: where their placeholder is replaced, and what of them a text may not show."""

from __future__ import annotations

import pytest

from worker.privacy.secrets import Secrets

pytestmark = pytest.mark.unit

CARD = "4111111111111111"


@pytest.fixture
def secrets() -> Secrets:
    secrets = Secrets()
    assert secrets.keep(CARD) == "{{digits_1}}"
    assert secrets.keep("123") == "{{digits_2}}"
    return secrets


def test_arguments_get_the_digits_at_any_depth(secrets: Secrets) -> None:
    arguments = {
        "card": {"number": "{{digits_1}}", "codes": ["{{ digits_2 }}", 5, None]},
        "note": "cvc {{digits_2}} of {{digits_1}}",
        "other": "{{digits_3}} {{name}}",
    }
    assert secrets.reveal(arguments) == {
        "card": {"number": CARD, "codes": ["123", 5, None]},
        "note": f"cvc 123 of {CARD}",
        "other": "{{digits_3}} {{name}}",
    }
    assert arguments["note"] == "cvc {{digits_2}} of {{digits_1}}"
    assert secrets.mentioned(arguments)
    assert not secrets.mentioned({"a": "{{digits_3}}", "b": [1]})


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        (f"charged {CARD}.", "charged {{digits_1}}."),
        (f'{{"n": {CARD}}}', '{"n": {{digits_1}}}'),
        ("4111 1111 1111 1111", "{{digits_1}}"),
        ("4111-1111-1111-1111", "{{digits_1}}"),
        (f"x{CARD}00", "x{{digits_1}}00"),
        ("code 123, 1234 left", "code {{digits_2}}, 1234 left"),
        ("{{digits_1}} and {{digits_2}}", "{{digits_1}} and {{digits_2}}"),
    ],
)
def test_a_text_is_scrubbed(secrets: Secrets, text: str, scrubbed: str) -> None:
    assert secrets.scrub(text) == scrubbed


def test_a_single_digit_does_not_spoil_placeholders(secrets: Secrets) -> None:
    assert secrets.keep("1") == "{{digits_3}}"
    assert secrets.scrub("{{digits_1}}, 1 of 10") == "{{digits_1}}, {{digits_3}} of 10"


def test_nothing_kept_changes_nothing() -> None:
    secrets = Secrets()
    assert secrets.scrub("1 2 {{digits_1}}") == "1 2 {{digits_1}}"
    assert secrets.reveal({"a": "{{digits_1}}"}) == {"a": "{{digits_1}}"}


def test_a_log_of_it_shows_no_digits(secrets: Secrets) -> None:
    assert CARD not in repr(secrets) and "123" not in f"{secrets}"
