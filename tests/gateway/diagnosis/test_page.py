"""The diagnosis in the terminal, and the exit status of its command."""

from __future__ import annotations

import asyncio
import io
import sqlite3
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from core.events import ended
from core.models import CallEvent
from core.settings import Settings
from gateway.__main__ import main
from gateway.diagnosis.page import page
from tests.gateway.diagnosis.timelines import (
    DIALLED,
    RINGS,
    STREAMS,
    TALKS,
    completed,
    diagnosed,
    failed,
    gateway,
    over,
    turn,
    worker,
)
from tests.support.inprocess import running, settings_in

pytestmark = pytest.mark.unit


def test_a_failed_dial() -> None:
    end = over(
        7.45,
        "gateway",
        "failed",
        "dial_rejected",
        sip_reason="Authentication failed",
        problem="authentication",
    )
    assert page(diagnosed([*DIALLED, end])) == (
        """\
call_1  failed, dial_rejected  (SIP Authentication failed)

Cause       The trunk refused the call because its user name or password is wrong or missing.
            [trunk_password]
Evidence        +0.100 s  INVITE sent
                +7.450 s  failed, dial_rejected; problem authentication
What to do  Compare the trunk's user name and password (the request's sip, the number's credential,
            or SIP_OUTBOUND_AUTH_USERNAME and _PASSWORD) with the provider's. Some providers know
            you by your IP address instead: then register it there.
Not known   The SIP service does not report the trunk's final status.

      +0.000 s  http       request accepted, record created
  ....  7.5 s from 2026-03-01T12:00:00.000Z: an agent did not come
*     +0.100 s  sip        INVITE sent
  ....  7.3 s from 2026-03-01T12:00:00.100Z: a response of the far end came late
*     +7.450 s  sip        failed, dial_rejected; problem authentication
"""
    )


def test_a_good_call() -> None:
    text = page(diagnosed([*TALKS, turn(8, "hi", "yes"), *completed()]))
    assert "Cause       Nothing went wrong.\n" in text
    assert "What to do" not in text and "...." not in text
    for line in (
        "180 or 183: it rings",
        "200: answered",
        "agent ready (stt deepgram/nova-3, llm openai/gpt-x, tts cartesia/sonic-3)",
        "the caller spoke, the agent answered after 600 ms",
        "BYE received; completed, user_hangup; cause caller_hung_up",
    ):
        assert line in text


def test_what_else_went_wrong() -> None:
    tool = worker(9, "tool.called", name="book", ok=False, durationMs=10)
    text = page(diagnosed([*STREAMS, tool, *failed(20, "worker_stopped")], type="stream"))
    assert "[worker_stopped]" in text and "Also        A tool failed: book" in text


@pytest.mark.parametrize(
    ("events", "direction", "words"),
    [
        ([*RINGS, over(2, "gateway", "busy", "dial_busy", sip_status_code=486,
                       sip_reason="Busy Here")], "outbound", "486 Busy Here; busy, dial_busy"),
        ([*RINGS, over(2, "gateway", "canceled", "canceled")], "outbound", "CANCEL sent"),
        ([*RINGS[:1], over(2, "gateway", "canceled", "canceled")], "outbound", "  canceled"),
        ([*TALKS, *completed(reason="agent_hangup")], "outbound", "BYE sent"),
        ([gateway(0, "call.queued"), gateway(0, "call.ringing"),
          over(2, "worker", "canceled", "user_hangup")], "inbound", "CANCEL received"),
        ([gateway(0, "call.queued"), gateway(0, "call.ringing"), worker(1, "call.answered"),
          *completed()], "inbound", "200 sent: answered"),
    ],
)  # fmt: skip
def test_sip_methods(events: Any, direction: str, words: str) -> None:
    assert words in page(diagnosed(events, direction))


class TestTheCommand:
    """``python -m gateway explain``."""

    @pytest.fixture
    def settings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
        settings = settings_in(tmp_path)
        monkeypatch.setattr("gateway.__main__.settings.load", lambda: settings)
        monkeypatch.setattr("gateway.__main__.logs.configure", lambda *_: None)
        return settings

    @staticmethod
    def run(*arguments: str) -> tuple[int, str, str]:
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            status = main(["explain", *arguments])
        return status, out.getvalue(), err.getvalue()

    async def store(self, settings: Settings, *data: dict[str, Any]) -> str:
        async with running(settings) as own:
            call = await own.call()
            for each in data:
                await own.store.append(
                    call.id, [CallEvent(type="call.ended", data=each)], "gateway"
                )
            return call.id

    def test_a_call_that_failed(self, settings: Settings) -> None:
        busy = ended("busy", "dial_busy", sip_status_code=486, sip_reason="Busy Here")
        call_id = asyncio.run(self.store(settings, busy))
        status, out, err = self.run(call_id)
        assert (status, err) == (1, "")
        assert f"{call_id}  busy, dial_busy  (SIP 486 Busy Here)\n" in out
        assert "The callee was busy" in out

    def test_a_good_one(self, settings: Settings) -> None:
        call_id = asyncio.run(self.store(settings, ended("completed", "user_hangup")))
        status, out, _ = self.run(call_id)
        assert status == 0 and "Nothing went wrong." in out

    def test_none(self, settings: Settings) -> None:
        assert self.run("call_0") == (2, "", "gateway: no such call\n")

    @pytest.mark.parametrize("arguments", [(), ("call_1", "call_2")])
    def test_wrong_usage(self, settings: Settings, arguments: tuple[str, ...]) -> None:
        status, out, err = self.run(*arguments)
        assert (status, out) == (2, "") and "usage" in err

    def test_a_database_is_left_as_it_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It may be that of an older gateway, which still runs."""
        (tmp_path / "test.db").touch()
        settings = settings_in(tmp_path)
        monkeypatch.setattr("gateway.__main__.settings.load", lambda: settings)
        monkeypatch.setattr("gateway.__main__.logs.configure", lambda *_: None)
        status, out, err = self.run("call_1")
        assert (status, out) == (2, "") and "database" in err
        with closing(sqlite3.connect(tmp_path / "test.db")) as database:
            assert database.execute("SELECT name FROM sqlite_master").fetchall() == []

    def test_a_database_that_cannot_be_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "test.db").write_bytes(b"this is no database" * 100)
        settings = settings_in(tmp_path)
        monkeypatch.setattr("gateway.__main__.settings.load", lambda: settings)
        monkeypatch.setattr("gateway.__main__.logs.configure", lambda *_: None)
        status, out, err = self.run("call_1")
        assert (status, out) == (2, "") and "database" in err
