"""Calls by Twilio's REST API, through the real library, against a local server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from core.errors import Unavailable, Unprocessable
from dev.standins.twilio import Answer, TwilioServer
from gateway.numbers.twilio import TwilioHttp
from gateway.numbers.twilio_calls import CallOver, InvalidDestination, TwilioCalls
from gateway.store.credentials import TwilioSecret

pytestmark = pytest.mark.unit

ACCOUNT, TOKEN = "AC" + "1" * 32, "the-auth-token"
FROM, TO = "+14155550123", "+15551230077"
PLACE = r"POST .*/Calls\.json"


@pytest.fixture
async def twilio() -> AsyncIterator[TwilioServer]:
    async with TwilioServer({ACCOUNT: TOKEN}) as twilio:
        twilio.give(ACCOUNT, FROM)
        twilio.callee(TO, Answer(after_ms=None))
        yield twilio
        twilio.take_alerts()


@pytest.fixture
async def calls(twilio: TwilioServer) -> AsyncIterator[TwilioCalls]:
    http = TwilioHttp(twilio.url)
    secret = TwilioSecret(account_sid=ACCOUNT, auth_token=SecretStr(TOKEN))
    yield TwilioCalls(secret, http)
    await http.close()


def wanted(**changes: Any) -> dict[str, Any]:
    ours = "http://127.0.0.1:9/"
    values = {"to": TO, "from_": FROM, "url": ours, "fallback_url": ours, "status_url": ours}
    return {**values, "ringing_s": 30, "machine_url": None, **changes}


async def test_placed_and_found_again(twilio: TwilioServer, calls: TwilioCalls) -> None:
    asked_at = datetime.now(UTC) - timedelta(seconds=2)
    placed = await calls.place_call(**wanted())
    assert placed.sid in twilio.calls
    again = await calls.call(placed.sid)
    assert again is not None and again.status in ("queued", "ringing")
    assert await calls.call("CA" + "0" * 32) is None
    found = await calls.calls(to=TO, from_=FROM, since=asked_at)
    assert [call.sid for call in found] == [placed.sid]
    assert await calls.calls(to="+15551230078", from_=FROM, since=asked_at) == []
    assert await calls.calls(to=TO, from_=FROM, since=asked_at + timedelta(hours=1)) == []


async def test_hung_up_while_it_rings(twilio: TwilioServer, calls: TwilioCalls) -> None:
    placed = await calls.place_call(**wanted())
    await calls.hang_up(placed.sid)
    assert await twilio.calls[placed.sid].ended() == "canceled"
    # One that is over, and one that the account does not have.
    await calls.hang_up(placed.sid)
    await calls.hang_up("CA" + "0" * 32)


async def test_a_call_that_does_not_talk_follows_nothing(
    twilio: TwilioServer, calls: TwilioCalls
) -> None:
    placed = await calls.place_call(**wanted())
    with pytest.raises(CallOver):
        await calls.run_twiml(placed.sid, "<Response><Hangup/></Response>")


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, 21211, InvalidDestination),
        (400, 21215, Unprocessable),
        (401, 20003, Unprocessable),
        (429, 20429, Unavailable),
        (503, 20503, Unavailable),
    ],
)
async def test_refusals(
    twilio: TwilioServer,
    calls: TwilioCalls,
    status: int,
    code: int,
    error: type[Exception],
) -> None:
    twilio.fail(PLACE, status=status, code=code)
    with pytest.raises(error):
        await calls.place_call(**wanted())


@pytest.mark.parametrize("machine_url", [None, "http://127.0.0.1:9/amd"])
async def test_machines_are_detected_beside_the_call(
    twilio: TwilioServer, calls: TwilioCalls, machine_url: str | None
) -> None:
    """The call must not wait for the result."""
    twilio.callee(TO, Answer(by="machine", detection_ms=0))
    placed = await calls.place_call(**wanted(machine_url=machine_url))
    await twilio.calls[placed.sid].ended()
    sent = [each.url for each in twilio.webhooks.sent]
    assert ("http://127.0.0.1:9/amd" in sent) is (machine_url is not None)
    twilio.take_alerts()
