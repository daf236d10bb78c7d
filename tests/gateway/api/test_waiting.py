"""Finding calls, waiting for one, its transcript, and ending it, over HTTP, without LiveKit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.events import ended
from core.models import CallEvent, Turn
from gateway.http.pace import Pace
from gateway.keys import STOPPING, TIMELINE
from gateway.store.call_status import Call
from tests.conftest import ACME, RIVAL
from tests.gateway.api.test_calls import fetch, listening, over, types
from tests.support.inprocess import Running, running, settings_in
from tests.support.numbers import make_agent, make_number

pytestmark = pytest.mark.store


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_in(tmp_path)) as started:
        yield started


def spoken(turn_id: str, transcript: str, response: str = "", **more: Any) -> CallEvent:
    turn = Turn(id=turn_id, transcript=transcript, response=response, **more)
    return CallEvent(type="turn", data=turn.wire())


async def found(gateway: Running, **params: str) -> set[str]:
    status, page = await fetch(gateway, "/v1/calls", ACME, **params)
    assert status == 200
    assert page["total"] == len(page["data"])
    return {call["id"] for call in page["data"]}


class TestFilters:
    async def test_each_of_them(self, gateway: Running) -> None:
        inbound = await gateway.call(
            direction="inbound", from_number="+4930123456", to_number="+15105550100"
        )
        web = await gateway.call(direction="web", from_number=None, to_number=None)
        ours = await gateway.call(phone_number_id="num_1")
        await gateway.store.append(ours.id, [over()], "worker")
        await gateway.call(auth_id="rival", phone_number_id="num_1")
        assert await found(gateway) == {inbound.id, web.id, ours.id}
        assert await found(gateway, status="completed") == {ours.id}
        assert await found(gateway, direction="web") == {web.id}
        assert await found(gateway, type="web") == {web.id}
        assert await found(gateway, type="pstn") == {inbound.id, ours.id}
        assert await found(gateway, numberId="num_1") == {ours.id}
        assert await found(gateway, numberId="num_2") == set()
        assert await found(gateway, search="30123") == {inbound.id}
        assert await found(gateway, search="+1510") == {inbound.id, ours.id}
        assert await found(gateway, search=web.id) == {web.id}
        assert await found(gateway, search="%") == set()
        assert await found(gateway, search="_") == set()
        assert await found(gateway, search="30123", direction="outbound") == set()
        # An unescaped + arrives as a space.
        assert await found(gateway, search=" 1510") == {inbound.id, ours.id}

    async def test_what_was_said_last_is_shown(self, gateway: Running) -> None:
        silent, talked = await gateway.call(), await gateway.call()
        events = [spoken("t1", "Hello?", "Hi."), spoken("t2", "Bye.", "x" * 200)]
        await gateway.store.append(talked.id, events, "worker")
        _, page = await fetch(gateway, "/v1/calls")
        shown = {call["id"]: call["lastTranscriptSnippet"] for call in page["data"]}
        assert shown == {silent.id: None, talked.id: "x" * 139 + "…"}
        assert page["data"][0]["phoneNumber"] == "+15105550123"
        assert page["data"][0]["agentName"] == "Greeter"


class TestParents:
    async def test_an_agents_and_a_numbers_calls(self, gateway: Running) -> None:
        agent = await make_agent(gateway)
        number = await make_number(gateway, agent=agent)
        mine = [await gateway.call(agent=agent, phone_number_id=number.id) for _ in range(3)]
        await gateway.call()
        for path in (f"/v1/agents/{agent.id}/calls", f"/v1/numbers/{number.id}/calls"):
            status, page = await fetch(gateway, path, ACME, limit="2")
            assert (status, page["total"], page["hasMore"]) == (200, 3, True)
            assert {call["id"] for call in page["data"]} <= {call.id for call in mine}
            status, page = await fetch(gateway, path, ACME, limit="101")
            assert (status, page["error"]["details"][0]["field"]) == (422, "limit")
            theirs = await fetch(gateway, path, RIVAL)
            nobodys = await fetch(gateway, f"{path.rsplit('/', 2)[0]}/none/calls", RIVAL)
            assert theirs == nobodys
            assert theirs[0] == 404

    async def test_everybodys_agent_shows_only_ones_own_calls(self, gateway: Running) -> None:
        await gateway.call()
        assert (await fetch(gateway, "/v1/agents/greeter/calls"))[1]["total"] == 1
        assert (await fetch(gateway, "/v1/agents/greeter/calls", RIVAL))[1]["total"] == 0


async def waiting(
    gateway: Running, call: Call, timeout: str = "60"
) -> asyncio.Task[tuple[int, Any]]:
    path = f"/v1/calls/{call.id}"
    task = asyncio.create_task(fetch(gateway, path, ACME, wait="true", timeout=timeout))
    await listening(gateway, call.id, 1)
    return task


class TestWait:
    async def test_until_it_is_over(self, gateway: Running) -> None:
        call = await gateway.call()
        answer = await waiting(gateway, call)
        timeline = gateway.app[TIMELINE]
        await timeline.append(call.id, [CallEvent(type="call.answered")], "gateway")
        await timeline.append(call.id, [spoken("t1", "Hello")], "worker")
        assert not answer.done()
        await timeline.append(call.id, [over()], "worker")
        status, body = await answer
        assert (status, body["status"]) == (200, "completed")
        assert [turn["transcript"] for turn in body["transcripts"]] == ["Hello"]
        await listening(gateway, call.id, 0)
        assert (await fetch(gateway, f"/v1/calls/{call.id}", ACME, wait="true"))[0] == 200

    async def test_until_the_time_is_up(self, gateway: Running) -> None:
        call = await gateway.call()
        answer = await waiting(gateway, call, "0.05")
        status, body = await answer
        assert (status, body["status"]) == (200, "queued")

    async def test_until_the_gateway_stops(self, gateway: Running) -> None:
        call = await gateway.call()
        answer = await waiting(gateway, call)
        gateway.app[STOPPING].set()
        status, body = await answer
        assert (status, body["status"]) == (200, "queued")

    async def test_nobody_waits_for_a_client_that_left(self, gateway: Running) -> None:
        call = await gateway.call()
        answer = await waiting(gateway, call)
        answer.cancel()
        await listening(gateway, call.id, 0)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("timeout", "-1"),
            ("timeout", "601"),
            ("timeout", "nan"),
            ("timeout", "inf"),
            ("timeout", ""),
            ("wait", "maybe"),
            ("waits", "true"),
        ],
    )
    async def test_a_bad_parameter_is_named(self, gateway: Running, name: str, value: str) -> None:
        call = await gateway.call()
        status, body = await fetch(gateway, f"/v1/calls/{call.id}", ACME, **{name: value})
        assert (status, body["error"]["details"][0]["field"]) == (422, name)


class TestTranscript:
    async def test_turns_in_order_and_how_fast_they_were(self, gateway: Running) -> None:
        call = await gateway.call()
        events = [
            spoken("t2", "Second", start_ms=900, latency={"total": 700.0}),
            spoken("t1", "First", start_ms=10, latency={"total": 900.0, "stt": 1.0}),
            spoken("t2", "Second, told better", start_ms=900, latency={"total": 800.0}),
        ]
        await gateway.store.append(call.id, events, "worker")
        status, body = await fetch(gateway, f"/v1/calls/{call.id}/transcript")
        assert (status, body["callId"], body["status"]) == (200, call.id, "queued")
        assert [turn["transcript"] for turn in body["transcripts"]] == [
            "First",
            "Second, told better",
        ]
        _, shown = await fetch(gateway, f"/v1/calls/{call.id}")
        assert shown["transcripts"] == body["transcripts"]
        assert shown["latency"] == {"total": 850.0, "stt": 1.0}

    async def test_there_is_no_recording(self, gateway: Running) -> None:
        call = await gateway.call()
        status, body = await fetch(gateway, f"/v1/calls/{call.id}/recording")
        assert (status, body["error"]["code"]) == (404, "RECORDING_NOT_FOUND")

    @pytest.mark.parametrize("what", ["transcript", "transcript/stream", "recording"])
    async def test_another_tenants_do_not_exist(self, gateway: Running, what: str) -> None:
        call = await gateway.call()
        theirs = await fetch(gateway, f"/v1/calls/{call.id}/{what}", RIVAL)
        assert theirs == await fetch(gateway, f"/v1/calls/call_none/{what}", RIVAL)
        assert (theirs[0], theirs[1]["error"]["code"]) == (404, "CALL_NOT_FOUND")


async def stream(gateway: Running, call_id: str, headers: dict[str, str] | None = None) -> str:
    path = f"/v1/calls/{call_id}/transcript/stream"
    async with (
        asyncio.timeout(10),
        gateway.http.get(path, headers={**ACME, **(headers or {})}) as response,
    ):
        assert (response.status, response.content_type) == (200, "text/event-stream")
        return await response.text()


def frames(text: str) -> list[tuple[str, Any]]:
    """Return the stream's frames as the public clients read them: (event, data)."""
    found = []
    for frame in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in frame.splitlines() if line[:1] != ":")
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


class TestTranscriptStream:
    async def test_replay_and_the_end(self, gateway: Running) -> None:
        call = await gateway.call()
        events = [
            spoken("t1", "Hello", ""),
            CallEvent(type="call.answered"),
            spoken("t1", "Hello", "Hi there"),
            spoken("t2", "x\n\nevent: ended\ndata: {}"),
            over(),
        ]
        await gateway.store.append(call.id, events, "worker")
        told = frames(await stream(gateway, call.id))
        assert [name for name, _ in told] == ["connected", "turn", "turn", "ended"]
        assert told[0][1] == {"callId": call.id, "status": "completed"}
        assert (told[1][1]["id"], told[1][1]["response"]) == ("t1", "Hi there")
        assert told[-1][1] == {"status": "completed"}

    async def test_live(self, gateway: Running) -> None:
        call = await gateway.call()
        readers = [asyncio.create_task(stream(gateway, call.id)) for _ in range(3)]
        await listening(gateway, call.id, 3)
        timeline = gateway.app[TIMELINE]
        for event in (CallEvent(type="call.answered"), spoken("t1", "Hello"), over()):
            await timeline.append(call.id, [event], "worker")
        for text in await asyncio.gather(*readers):
            assert types(text) == ["connected", "turn", "ended"]

    async def test_the_last_words_come_after_the_end(self, gateway: Running) -> None:
        call = await gateway.call()
        timeline = gateway.app[TIMELINE]
        await timeline.append(call.id, [CallEvent(type="agent.joined")], "worker")
        reader = asyncio.create_task(stream(gateway, call.id))
        await listening(gateway, call.id, 1)
        waiter = asyncio.create_task(
            fetch(gateway, f"/v1/calls/{call.id}", ACME, wait="true", timeout="60")
        )
        await listening(gateway, call.id, 2)
        await timeline.append(call.id, [over()], "gateway")
        await timeline.append(call.id, [spoken("t1", "", "Good")], "worker")
        await timeline.append(call.id, [CallEvent(type="agent.left")], "worker")
        assert types(await reader) == ["connected", "turn", "ended"]
        assert [turn["response"] for turn in (await waiter)[1]["transcripts"]] == ["Good"]

    async def test_an_agent_that_never_leaves_is_not_waited_for_long(self, tmp_path: Path) -> None:
        async with running(settings_in(tmp_path), pace=Pace(settle_s=0.2)) as gateway:
            call = await gateway.call()
            events = [CallEvent(type="agent.joined"), over()]
            await gateway.store.append(call.id, events, "worker")
            assert types(await stream(gateway, call.id)) == ["connected", "ended"]

    async def test_it_can_be_taken_up_again(self, gateway: Running) -> None:
        call = await gateway.call()
        events = [spoken("t1", "One"), spoken("t2", "Two"), over()]
        await gateway.store.append(call.id, events, "worker")
        first = (await gateway.store.events(call.id, types=["turn"]))[0]
        told = frames(await stream(gateway, call.id, {"Last-Event-ID": str(first.seq)}))
        assert [data["id"] for name, data in told if name == "turn"] == ["t2"]

    async def test_silence_is_filled(self, tmp_path: Path) -> None:
        pace = Pace(heartbeat_s=0.05)
        async with asyncio.timeout(10), running(settings_in(tmp_path), pace=pace) as gateway:
            call = await gateway.call()
            path = f"/v1/calls/{call.id}/transcript/stream"
            async with gateway.http.get(path, headers=ACME) as response:
                assert await response.content.readuntil(b": heartbeat\n\n")


class TestEnd:
    async def end(
        self, gateway: Running, call_id: str, headers: dict[str, str] = ACME
    ) -> tuple[int, Any]:
        async with gateway.http.post(f"/v1/calls/{call_id}/end", headers=headers) as response:
            return response.status, await response.json()

    async def test_it_is_over_already(self, gateway: Running) -> None:
        call = await gateway.call()
        data = ended("busy", "dial_busy")
        await gateway.store.append(call.id, [CallEvent(type="call.ended", data=data)], "gateway")
        status, body = await self.end(gateway, call.id)
        assert (status, body["error"]["code"]) == (409, "CALL_ENDED")

    async def test_another_tenants_does_not_exist(self, gateway: Running) -> None:
        call = await gateway.call()
        theirs = await self.end(gateway, call.id, RIVAL)
        assert theirs == await self.end(gateway, "call_none", RIVAL)
        assert (theirs[0], theirs[1]["error"]["code"]) == (404, "CALL_NOT_FOUND")

    async def test_without_livekit_it_is_not_said_to_be_over(self, gateway: Running) -> None:
        call = await gateway.call()
        status, body = await self.end(gateway, call.id)
        assert (status, body["error"]["code"]) == (503, "LIVEKIT_UNAVAILABLE")
        assert (await fetch(gateway, f"/v1/calls/{call.id}"))[1]["status"] == "queued"
