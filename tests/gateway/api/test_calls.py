"""GET /v1/calls, /v1/calls/{id} and its event stream, over HTTP; more in test_waiting."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from core.events import ended
from core.models import CallEvent, Turn, new_id, now, rfc3339
from gateway.http.pace import Pace
from gateway.keys import STOPPING, TIMELINE
from gateway.store.calls import Store
from gateway.store.database import Database
from tests.conftest import ACME, RIVAL, operator
from tests.support.inprocess import Running, running, settings_in

pytestmark = pytest.mark.store


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_in(tmp_path)) as started:
        yield started


async def fetch(
    gateway: Running, path: str, headers: Mapping[str, str] = ACME, **params: Any
) -> tuple[int, Any]:
    async with gateway.http.get(path, headers=headers, params=params) as response:
        return response.status, await response.json()


def over() -> CallEvent:
    return CallEvent(type="call.ended", data=ended("completed", "user_hangup"))


class TestList:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("limit", "0"),
            ("limit", "101"),
            ("limit", "-1"),
            ("limit", "ten"),
            ("limit", ""),
            ("limit", "9" * 400),
            ("offset", "-1"),
            ("offset", "1000001"),
            ("offset", "x"),
            ("status", "finished"),
            ("status", ""),
            ("direction", "sideways"),
            ("since", "2026-01-31T12:00:00"),
            ("since", "yesterday"),
            ("until", "2026-13-31T12:00:00Z"),
            ("agentId", ""),
            ("agentId", "a\x00b"),
            ("agentId", "x" * 65),
            ("numberId", ""),
            ("type", "fax"),
            ("search", ""),
            ("search", " "),
            ("search", "5" * 65),
            ("colour", "red"),
            ("x" * 300, "1"),
        ],
    )
    async def test_a_bad_parameter_is_named(self, gateway: Running, name: str, value: str) -> None:
        status, body = await fetch(gateway, "/v1/calls", ACME, **{name: value})
        assert status == 422
        assert body["error"]["code"] == "VALIDATION_ERROR"
        assert body["error"]["type"] == "validation_error"
        assert body["error"]["details"][0]["field"] == name[:64]

    async def test_a_repeated_parameter_is_refused(self, gateway: Running) -> None:
        status, body = await fetch(gateway, "/v1/calls?limit=1&limit=2")
        assert (status, body["error"]["details"][0]["field"]) == (422, "limit")

    @pytest.mark.parametrize("limit", ["1", "100"])
    async def test_the_bounds_are_allowed(self, gateway: Running, limit: str) -> None:
        assert await fetch(gateway, "/v1/calls", limit=limit) == (
            200,
            {"data": [], "hasMore": False, "total": 0},
        )

    async def test_pages_newest_first(self, gateway: Running) -> None:
        start = now() - timedelta(hours=1)
        ids = []
        for minute in range(5):
            queued = CallEvent(type="call.queued", at=start + timedelta(minutes=minute))
            ids.append((await gateway.call(queued=queued)).id)
        seen: list[str] = []
        for offset, more in ((0, True), (2, True), (4, False)):
            _, page = await fetch(gateway, "/v1/calls", limit="2", offset=str(offset))
            assert (page["hasMore"], page["total"]) == (more, 5)
            seen += [call["id"] for call in page["data"]]
        assert seen == ids[::-1]
        _, beyond = await fetch(gateway, "/v1/calls", offset="99")
        assert (beyond["data"], beyond["hasMore"], beyond["total"]) == ([], False, 5)
        _, some = await fetch(
            gateway,
            "/v1/calls",
            since=rfc3339(start + timedelta(minutes=1)),
            until=rfc3339(start + timedelta(minutes=3)),
            status="queued",
            direction="outbound",
            agentId="greeter",
        )
        assert [call["id"] for call in some["data"]] == [ids[2], ids[1]]
        for odd in ({"direction": "inbound"}, {"agentId": "none"}, {"status": "busy"}):
            assert (await fetch(gateway, "/v1/calls", ACME, **odd))[1]["total"] == 0

    async def test_a_tenant_sees_its_own(self, gateway: Running) -> None:
        call = await gateway.call()
        assert (await fetch(gateway, "/v1/calls", RIVAL))[1]["total"] == 0
        assert (await fetch(gateway, "/v1/calls", operator()))[1]["total"] == 1
        for path in (f"/v1/calls/{call.id}", f"/v1/calls/{call.id}/events"):
            theirs = await fetch(gateway, path, RIVAL)
            nobodys = await fetch(gateway, path.replace(call.id, "call_nope"), RIVAL)
            assert theirs == nobodys
            assert theirs[0] == 404
            assert theirs[1]["error"]["code"] == "CALL_NOT_FOUND"

    @pytest.mark.parametrize("path", ["/v1/calls", "/v1/calls/x", "/v1/calls/x/events"])
    async def test_a_token_is_asked_for(self, gateway: Running, path: str) -> None:
        status, body = await fetch(gateway, path, {})
        assert (status, body["error"]["code"]) == (401, "MISSING_AUTH_HEADER")


class TestShow:
    async def test_the_record_and_its_transcript(self, gateway: Running) -> None:
        call = await gateway.call()
        turn = Turn(id="t1", transcript="Grüezi", response="Hello", start_ms=10)
        await gateway.store.append(call.id, [CallEvent(type="turn", data=turn.wire())], "worker")
        status, body = await fetch(gateway, f"/v1/calls/{call.id}")
        assert status == 200
        assert [t["transcript"] for t in body["transcripts"]] == ["Grüezi"]
        assert body["metadata"] == {"lead": 882}
        assert body["createdAt"] == rfc3339(call.created_at)
        assert body["durationSeconds"] is None
        assert "authId" not in body

    @pytest.mark.parametrize(
        ("query", "accept", "kind", "begins"),
        [
            ("", "*/*", "application/json", '{"callId"'),
            ("", "text/vtt", "text/vtt", "WEBVTT\n\n00:00:00.010 --> "),
            ("", "text/plain", "text/plain", "00:00 Caller: Grüezi\n"),
            ("?format=vtt", "application/json", "text/vtt", "WEBVTT\n"),
            ("?format=txt", "text/vtt", "text/plain", "00:00 Caller"),
            ("?format=json", "text/vtt", "application/json", '{"callId"'),
        ],
    )
    async def test_the_transcript_in_the_wanted_format(
        self, gateway: Running, query: str, accept: str, kind: str, begins: str
    ) -> None:
        call = await gateway.call()
        turn = Turn(id="t1", transcript="Grüezi", start_ms=10, end_ms=20)
        await gateway.store.append(call.id, [CallEvent(type="turn", data=turn.wire())], "worker")
        path, headers = f"/v1/calls/{call.id}/transcript{query}", {**ACME, "Accept": accept}
        async with gateway.http.get(path, headers=headers) as response:
            text = await response.text()
        assert (response.status, response.content_type) == (200, kind)
        assert response.headers["Vary"] == "Accept"
        assert text.startswith(begins)

    async def test_an_unknown_format_of_a_transcript(self, gateway: Running) -> None:
        call = await gateway.call()
        status, body = await fetch(gateway, f"/v1/calls/{call.id}/transcript", format="srt")
        assert (status, body["error"]["code"]) == (422, "VALIDATION_ERROR")

    @pytest.mark.parametrize("odd", ["%00", "..%2f", "x" * 2000, "'; --", "%F0%9F%98%80"])
    async def test_an_odd_id_is_not_found(self, gateway: Running, odd: str) -> None:
        status, body = await fetch(gateway, f"/v1/calls/{odd}")
        assert (status, body["error"]["type"]) == (404, "not_found_error")


async def stream(
    gateway: Running, call_id: str, headers: dict[str, str] | None = None, timeout: float = 10
) -> str:
    async with (
        asyncio.timeout(timeout),
        gateway.http.get(
            f"/v1/calls/{call_id}/events", headers={**ACME, **(headers or {})}
        ) as response,
    ):
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        return await response.text()


def types(text: str) -> list[str]:
    return [
        line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")
    ]


async def listening(gateway: Running, call_id: str, wanted: int) -> None:
    """Wait until the call has that many listeners."""
    async with asyncio.timeout(10):
        while gateway.app[TIMELINE].listeners(call_id) != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class TestEvents:
    async def test_replay_then_the_end(self, gateway: Running) -> None:
        call = await gateway.call()
        await gateway.store.append(call.id, [CallEvent(type="call.answered"), over()], "gateway")
        text = await stream(gateway, call.id)
        assert types(text) == ["call.queued", "call.answered", "call.ended", "ended"]
        assert text.endswith('event: ended\ndata: {"status": "completed"}\n\n')

    @pytest.mark.parametrize("given", ["", "x", "-1", "1.5", "٣", "9" * 400, "0"])
    async def test_an_unusable_last_event_id_replays_all(
        self, gateway: Running, given: str
    ) -> None:
        call = await gateway.call()
        await gateway.store.append(call.id, [over()], "gateway")
        assert len(types(await stream(gateway, call.id, {"Last-Event-ID": given}))) == 3

    async def test_last_event_id_resumes(self, gateway: Running) -> None:
        call = await gateway.call()
        await gateway.store.append(call.id, [over()], "gateway")
        first = (await gateway.store.events(call.id))[0]
        text = await stream(gateway, call.id, {"Last-Event-ID": str(first.seq)})
        assert types(text) == ["call.ended", "ended"]
        beyond = await stream(gateway, call.id, {"Last-Event-ID": "9" * 18})
        assert types(beyond) == ["ended"]

    async def test_many_readers_see_it_live(self, gateway: Running) -> None:
        call = await gateway.call()
        readers = [asyncio.create_task(stream(gateway, call.id)) for _ in range(20)]
        await listening(gateway, call.id, 20)
        for event in (CallEvent(type="call.ringing"), CallEvent(type="call.answered"), over()):
            await gateway.app[TIMELINE].append(call.id, [event], "gateway")
        wanted = ["call.queued", "call.ringing", "call.answered", "call.ended", "ended"]
        assert [types(text) for text in await asyncio.gather(*readers)] == [wanted] * 20
        await listening(gateway, call.id, 0)

    async def test_another_gateways_events_are_seen(self, gateway: Running, tmp_path: Path) -> None:
        call = await gateway.call()
        reader = asyncio.create_task(stream(gateway, call.id))
        await listening(gateway, call.id, 1)
        other = await Database.open(settings_in(tmp_path).database_url)
        await Store(other).append(call.id, [over()], "gateway")
        await other.close()
        assert types(await reader) == ["call.queued", "call.ended", "ended"]

    async def test_silence_is_filled(self, tmp_path: Path) -> None:
        pace = Pace(heartbeat_s=0.05)
        async with asyncio.timeout(10), running(settings_in(tmp_path), pace=pace) as gateway:
            call = await gateway.call()
            async with gateway.http.get(f"/v1/calls/{call.id}/events", headers=ACME) as response:
                assert await response.content.readuntil(b": heartbeat\n\n")

    async def test_a_reader_that_leaves_is_forgotten(
        self, gateway: Running, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        call = await gateway.call()
        response = await gateway.http.get(f"/v1/calls/{call.id}/events", headers=ACME)
        await listening(gateway, call.id, 1)
        response.close()
        await listening(gateway, call.id, 0)
        assert caplog.records == []

    async def test_a_stopping_gateway_ends_it_without_saying_ended(self, gateway: Running) -> None:
        call = await gateway.call()
        reader = asyncio.create_task(stream(gateway, call.id))
        await listening(gateway, call.id, 1)
        gateway.app[STOPPING].set()
        assert types(await reader) == ["call.queued"]

    async def test_what_was_said_cannot_forge_an_event(self, gateway: Running) -> None:
        call = await gateway.call()
        hostile = "x\n\nevent: ended\ndata: {}\r\n\u2028\u0085"
        told = CallEvent(id=new_id("evt"), type="barge_in", data={"heard": hostile})
        await gateway.store.append(call.id, [told, over()], "worker")
        text = await stream(gateway, call.id)
        lines = [line for line in text.splitlines() if line.startswith("event: ")]
        assert lines == [
            "event: call.queued",
            "event: barge_in",
            "event: call.ended",
            "event: ended",
        ]
