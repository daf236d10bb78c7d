"""Tests of worker.link.recordings: what became of a recording reaches the gateway, or waits."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from core.models import CallEvent
from core.tokens import TokenIssuer
from recordings.upload import Later, Never
from worker.link.client import Refused, Unavailable
from worker.link.recordings import RecordingReport

pytestmark = pytest.mark.unit

EVENT = CallEvent(id="call_1_recording.stored", type="recording.stored")
TOKENS = TokenIssuer("secret")


class FakeGateway:
    def __init__(self) -> None:
        self.answers: list[Exception | None] = []
        self.posts: list[tuple[str, str, list[CallEvent]]] = []

    async def post_events(self, call_id: str, token: str, events: list[CallEvent]) -> bool:
        self.posts.append((call_id, token, events))
        if (answer := self.answers.pop(0)) is not None:
            raise answer
        return True


class CountedTokens:
    def __init__(self) -> None:
        self.issued = 0

    def for_call(self, call_id: str) -> str:
        self.issued += 1
        return f"{call_id} {self.issued}"


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


async def test_events_are_posted_with_a_new_token_of_their_call(gateway: FakeGateway) -> None:
    gateway.answers = [None]
    report = RecordingReport(gateway, TOKENS)  # type: ignore[arg-type]
    await report("call_1", EVENT)
    [(call_id, token, events)] = gateway.posts
    assert (call_id, events) == ("call_1", [EVENT])
    assert TOKENS.verify(token, "switchroom:call") == "call_1"
    assert (datetime.now(UTC) - TOKENS.call_token_made(token)).total_seconds() < 5


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Unavailable("HTTP 503"), Later),
        (Refused("HTTP 401", 401), Later),
        (Refused("HTTP 404", 404), Never),
        (Refused("HTTP 422", 422), Never),
    ],
)
async def test_it_says_whether_a_failed_report_may_succeed_later(
    gateway: FakeGateway, answer: Exception, expected: type[Exception]
) -> None:
    gateway.answers = [answer]
    with pytest.raises(expected):
        await RecordingReport(gateway, TOKENS)("call_1", EVENT)  # type: ignore[arg-type]


async def test_a_token_is_used_until_there_is_an_answer(gateway: FakeGateway) -> None:
    """The gateway answers "not yet" to a new token of a call that it does not know."""
    tokens: Any = CountedTokens()
    report = RecordingReport(gateway, tokens)  # type: ignore[arg-type]
    gateway.answers = [
        Unavailable("HTTP 425"),
        Unavailable("HTTP 425"),
        Refused("HTTP 401", 401),
        None,
        None,
    ]
    for _ in range(3):
        with pytest.raises(Later):
            await report("call_1", EVENT)
    await report("call_1", EVENT)
    await report("call_1", EVENT)
    used = [token for _, token, _ in gateway.posts]
    assert used == ["call_1 1", "call_1 1", "call_1 1", "call_1 2", "call_1 3"]
