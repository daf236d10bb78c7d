"""Many calls at once: none is lost or dialled twice, and every refusal has a Retry-After."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from google.protobuf.message import Message
from livekit.api import LiveKitAPI
from livekit.protocol.room import ListRoomsRequest
from livekit.protocol.sip import CreateSIPParticipantRequest

from core.models import new_id, now, rfc3339
from dev.standins.trunk import FixedReply, Trunk
from tests.conftest import ACME, Gateway
from tests.support.inprocess import Running
from tests.support.livekit_stub import LiveKitStub, Refusal, running_with

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

# Fewer on the wire than in the benchmark gateway-load, to be done in a few seconds.
DIALLED, STUBBED, CONCURRENCY = 80, 200, 40
# A busy livekit-sip refused this many of 200 dials with "cpu exhausted".
OVERLOADED = 112
WITHIN_S = 45.0  # a deadline, not an expectation


async def place_all(
    http: aiohttp.ClientSession, count: int, room: str, address: str
) -> dict[str, tuple[int, dict[str, Any], str | None]]:
    """Place the calls; return the status, the body and Retry-After, by called number."""
    answers: dict[str, tuple[int, dict[str, Any], str | None]] = {}
    waiting = (f"+1510{2_000_000 + n}" for n in range(count))

    async def placing(numbers: Iterator[str]) -> None:
        for number in numbers:
            body = {
                "room_name": f"{room}-{number}",
                "participant_name": "John Doe",
                "participant_identity": "phone",
                "from_phone_number": "+15105550123",
                "to_phone_number": number,
                "agent": None,
                "sip": {"outbound_address": address},
            }
            async with http.post("/sip/call", json=body, headers=ACME) as answer:
                retry_after = answer.headers.get("Retry-After")
                answers[number] = answer.status, await answer.json(), retry_after

    await asyncio.gather(*(placing(waiting) for _ in range(CONCURRENCY)))
    return answers


async def records(http: aiohttp.ClientSession, since: datetime) -> list[dict[str, Any]]:
    """Return the records of the calls made since then, newest first."""
    found: list[dict[str, Any]] = []
    while True:
        query: dict[str, str | int] = {"limit": 100, "offset": len(found), "since": rfc3339(since)}
        async with http.get("/v1/calls", params=query, headers=ACME) as answer:
            assert answer.status == 200
            page = (await answer.json())["data"]
        found += page
        if len(page) < 100:
            return found


async def over(http: aiohttp.ClientSession, since: datetime) -> list[dict[str, Any]]:
    """Return the records once all of them have ended."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            found = await records(http, since)
            if all(each["endedAt"] is not None for each in found):
                return found
            await asyncio.sleep(0.2)


async def test_each_is_dialled_once(gateway: Gateway, livekit: LiveKitAPI) -> None:
    began, room = now(), new_id("load")
    async with Trunk(mode=FixedReply(486)) as trunk, asyncio.timeout(WITHIN_S):
        answers = await place_all(gateway.session, DIALLED, room, trunk.address)
        kept = await over(gateway.session, began)
        dialled = Counter(trunk.seen.called)
    placed = [number for number, (status, _, _) in answers.items() if status == 200]
    refused = [answer for answer in answers.values() if answer[0] != 200]
    assert len(answers) == DIALLED and placed
    for status, body, retry_after in refused:
        assert status in {429, 503} and body["code"] and int(retry_after or 0) > 0
    # No refused number was dialled. Every accepted one was dialled once, unless the SIP service
    # could not keep up; then the record says so.
    assert dialled and set(dialled.values()) == {1} and set(dialled) <= set(placed)
    ends = {each["id"]: each["disconnectionReason"] for each in kept}
    for number in placed:
        reason = ends[answers[number][1]["call_id"]]
        assert reason == ("dial_busy" if number in dialled else "dial_failed"), number
    async with asyncio.timeout(WITHIN_S):
        while any(each.startswith(room) for each in await rooms(livekit)):  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.2)


async def rooms(livekit: LiveKitAPI) -> list[str]:
    return [room.name for room in (await livekit.room.list_rooms(ListRoomsRequest())).rooms]


class Overloaded(LiveKitStub):
    """Accepts the first dials and refuses the others as a full livekit-sip does."""

    def dial(self, asked: CreateSIPParticipantRequest) -> Message:
        if len(self.dialled) >= STUBBED - OVERLOADED:
            raise Refusal("unavailable")
        return super().dial(asked)


@pytest.fixture
async def overloaded(tmp_path: Path) -> AsyncIterator[tuple[Overloaded, Running]]:
    livekit = Overloaded()
    async with running_with(livekit, tmp_path, sip_allow_private=True) as running:
        yield livekit, running


async def test_what_an_overloaded_sip_service_refuses(
    overloaded: tuple[Overloaded, Running],
) -> None:
    began, (livekit, running) = now(), overloaded
    answers = await place_all(running.http, STUBBED, "load", "127.0.0.1:9")
    refused = {number: answer for number, answer in answers.items() if answer[0] != 200}
    assert len(answers) == STUBBED and len(refused) == OVERLOADED
    assert {(status, body["code"], after) for status, body, after in refused.values()} == {
        (503, "SIP_OVERLOADED", "2")
    }
    assert Counter(each.sip_call_to for each in livekit.dialled) == Counter(
        set(answers) - set(refused)
    )
    # Each refused call has a record that says so, and leaves no room behind.
    kept = [each for each in await records(running.http, began) if each["endedAt"] is not None]
    assert {each["toNumber"] for each in kept} == set(refused)
    assert {each["disconnectionReason"] for each in kept} == {"dial_failed"}
    assert set(livekit.rooms) == {f"load-{number}" for number in set(answers) - set(refused)}
