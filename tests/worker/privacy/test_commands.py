"""Commands in a room: only the gateway's own, for this call, once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from core import tokens
from core.recordings.command import Command
from core.tokens import TokenIssuer
from worker.privacy.commands import Commands

pytestmark = pytest.mark.unit

SECRET = "a-livekit-secret-of-32-bytes-at-least"
GATEWAY = TokenIssuer(SECRET)
PAUSE = Command(id="cmd_1", action="pause")


@pytest.fixture
def commands() -> Commands:
    return Commands("call_1", GATEWAY)


def test_the_gateways_counts_once(commands: Commands) -> None:
    token = GATEWAY.for_command("call_1", PAUSE.wire()).encode()
    assert commands.read(token) == PAUSE
    assert commands.read(token) is None


def test_an_old_one_does_not_count(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "COMMAND_TOKEN_TTL", timedelta(seconds=-1))
    assert commands.read(GATEWAY.for_command("call_1", PAUSE.wire()).encode()) is None


@pytest.mark.parametrize(
    "token",
    [
        GATEWAY.for_command("call_2", PAUSE.wire()),
        TokenIssuer("another-secret-of-32-bytes-at-least!").for_command("call_1", PAUSE.wire()),
        GATEWAY.for_call("call_1"),
        GATEWAY.for_stream("call_1"),
        PAUSE.model_dump_json(),
        "",
    ],
)
def test_nobody_elses(commands: Commands, token: str) -> None:
    assert commands.read(token.encode()) is None


@pytest.mark.parametrize(
    "body",
    [{}, None, [], {"id": "a", "action": "record"}, {"id": "a", "action": "mask", "seconds": 301}],
)
def test_other_commands(commands: Commands, body: Any) -> None:
    assert commands.read(GATEWAY.for_command("call_1", body).encode()) is None
    assert commands.read(b"\xff\x00") is None
