"""Broken streams that Twilio does not bring back by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.keys import call_services
from gateway.numbers.twilio import TwilioAccount
from tests.support.twilio_calls import (
    CALL_SID,
    CONNECTED,
    STREAM_URL,
    StreamRig,
    Twiml,
    form,
    signature,
    start,
    stream_rig,
)

pytestmark = pytest.mark.store

SIGNED = {"X-Twilio-Signature": signature(STREAM_URL)}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[StreamRig]:
    async with stream_rig(tmp_path) as rig:
        call_services(rig.own.app).twilio_sessions._comes_back_s = 0
        yield rig


@pytest.fixture
def redirected(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The calls that Twilio is told to redirect, and where to."""
    asked: list[tuple[str, str]] = []

    async def redirect(_account: TwilioAccount, call_sid: str, url: str) -> None:
        asked.append((call_sid, url))

    monkeypatch.setattr(TwilioAccount, "redirect", redirect)
    return asked


async def broken(rig: StreamRig, *, connected: bool = False, event: str = "stream-error") -> Twiml:
    """Open a stream and report an error about it; return the call's TwiML."""
    answer = await rig.create(await rig.agent())
    twiml = Twiml.of(answer["twiml"])
    async with rig.stream(CONNECTED, start(twiml.token), headers=SIGNED) as socket:
        session = await rig.worker_session(answer["sessionId"])
        if not connected:
            await socket.close(code=4999)
            await session.closes.get()
            async with asyncio.timeout(10):
                streams = call_services(rig.own.app).stream_sessions
                while streams.is_connected(answer["sessionId"]):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        status, _ = await rig.post(twiml.status or "", form(StreamEvent=event))
        assert status == 204
        await asyncio.gather(*call_services(rig.own.app).twilio_sessions._tasks)
    return twiml


async def test_it_is_brought_back_by_the_rest_api(
    rig: StreamRig, redirected: list[tuple[str, str]]
) -> None:
    await rig.credential()
    twiml = await broken(rig)
    assert redirected == [(CALL_SID, twiml.resume)]


async def test_not_without_the_accounts_credential(
    rig: StreamRig, redirected: list[tuple[str, str]]
) -> None:
    await broken(rig)
    assert not redirected


async def test_an_error_that_did_not_end_the_stream(
    rig: StreamRig, redirected: list[tuple[str, str]]
) -> None:
    await rig.credential()
    await broken(rig, connected=True)
    assert not redirected


async def test_a_stream_that_just_stopped(
    rig: StreamRig, redirected: list[tuple[str, str]]
) -> None:
    await rig.credential()
    await broken(rig, event="stream-stopped")
    assert not redirected


async def test_twilio_asked_by_itself(rig: StreamRig, redirected: list[tuple[str, str]]) -> None:
    await rig.credential()
    twilio = call_services(rig.own.app).twilio_sessions
    answer = await rig.create(await rig.agent())
    twiml = Twiml.of(answer["twiml"])
    async with rig.stream(CONNECTED, start(twiml.token), headers=SIGNED) as socket:
        await rig.worker_session(answer["sessionId"])
        await socket.close(code=4999)
    twilio._comes_back_s = 3600
    assert (await rig.post(twiml.status or "", form(StreamEvent="stream-error")))[0] == 204
    (waiting,) = twilio._tasks
    waiting.cancel()
    session = await twilio._sessions.find(answer["sessionId"])
    call = await rig.record(answer["sessionId"])
    assert session is not None
    assert (await rig.post(twiml.resume or "", form()))[0] == 200
    twilio._comes_back_s = 0
    twilio.bring_back(call, session)
    await asyncio.gather(*twilio._tasks, return_exceptions=True)
    assert not redirected
