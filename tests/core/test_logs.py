"""Tests of core.logs: the content of log lines, at every level and in both formats."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from core import logs
from dev.stack.environment import GivenSettings

pytestmark = pytest.mark.unit

LEVELS = ["DEBUG", "INFO", "WARNING", "ERROR"]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


def configure(**values: Any) -> None:
    logs.configure(GivenSettings(**{"log_format": "json", **values}), "gateway")


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


FACTS = {
    "password": "s3cret",
    "Authorization": "Bearer s3cret",
    "access_token": "s3cret",
    "trunk": {"auth_password": "s3cret", "hosts": [{"token": "s3cret", "to": "+15551234567"}]},
    "to_number": "+15551234567",
    "caller": 15551234567,
    "transcript": "my card is 4111",
    "lk.pii.user_text": "my card is 4111",
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_numbers_and_speech_are_redacted(
    capsys: pytest.CaptureFixture[str], level: str, form: str
) -> None:
    configure(log_format=form, log_level="DEBUG")
    logging.getLogger("x").log(getattr(logging, level), "call answered", extra=FACTS)
    text = capsys.readouterr().err
    assert "call answered" in text
    for private in ("s3cret", "5551234", "4111"):
        assert private not in text


def test_without_redaction_secrets_still_are(capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_redact=False)
    logging.getLogger("x").info("m", extra=FACTS)
    (line,) = lines(capsys)
    assert line["to_number"] == "+15551234567"
    assert line["transcript"] == "my card is 4111"
    assert "s3cret" not in str(line)


def test_what_is_left_of_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    logging.getLogger("x").info("m", extra={"to": "+15551234567", "caller": "911", "called": None})
    (line,) = lines(capsys)
    assert (line["to"], line["caller"], line["called"]) == ("…567", "…", None)


@pytest.mark.parametrize("name", ["room", "room_name", "identity", "participant", "Room"])
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("in_+15105550123_Qx7-a9_bY2", "in_…123_Qx7-a9_bY2"),
        ("in_15105550123_Qx7", "in_…123_Qx7"),
        ("sip_+15105550123", "sip_…123"),
        ("Phone +15105550123", "Phone …123"),
        ("in_+15105550123_+15105550188", "in_…123_…188"),
        ("agent-in_+15105550123_Qx7", "agent-in_…123_Qx7"),
        ("agent-call_5f0c1e2d3b4a59687766aabb", "agent-call_5f0c1e2d3b4a59687766aabb"),
        ("room_4269caad6655fc1bf929e670", "room_4269caad6655fc1bf929e670"),
    ],
)
def test_numbers_in_names(
    capsys: pytest.CaptureFixture[str], name: str, value: str, shown: str
) -> None:
    configure()
    logging.getLogger("x").info("m", extra={name: value, "facts": {name: [value]}})
    (line,) = lines(capsys)
    assert line[name] == shown
    configure(log_redact=False)
    logging.getLogger("x").info("m", extra={name: value})
    assert lines(capsys)[0][name] == value


def test_one_line_per_record(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    log = logging.getLogger("x")
    log.info("two\nlines\r\u2028 and %s", "an argument", extra={"odd": object(), "n": "a\nb"})
    log.warning("no exception", exc_info=True, stack_info=True)
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.exception("failed")
    first, _, third = (json.loads(line) for line in capsys.readouterr().err.split("\n")[:-1])
    assert first["event"] == "two\nlines\r\u2028 and an argument"
    assert (first["service"], first["level"], first["logger"]) == ("gateway", "info", "x")
    assert "ValueError: first\nsecond" in third["exception"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_no_variables(capsys: pytest.CaptureFixture[str], form: str) -> None:
    configure(log_format=form)
    password = "".join(["s3c", "ret"])
    try:
        raise ValueError(len(password))
    except ValueError:
        logging.getLogger("x").exception("failed")
    text = capsys.readouterr().err
    assert "ValueError" in text
    assert "s3cret" not in text


def test_the_level_counts(capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_level="error")
    logging.getLogger("x").warning("no")
    logging.getLogger("x").error("yes")
    assert [line["event"] for line in lines(capsys)] == ["yes"]


@pytest.mark.parametrize("name", ["aiohttp.access", "sqlalchemy.engine", "aiosqlite"])
def test_chatty_libraries_stay_quiet(capsys: pytest.CaptureFixture[str], name: str) -> None:
    configure(log_level="DEBUG")
    logging.getLogger(name).info("SELECT 's3cret'")
    assert lines(capsys) == []
