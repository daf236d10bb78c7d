"""Every way a call ends: the right status, reason and SIP code, and nothing left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from livekit.protocol.room import ListRoomsRequest

from dev.caller import converse
from dev.phone import Answer, Phone, Reject, RingOut
from dev.scenario import GOODBYE, GOODBYE_ANSWER, Speak
from dev.sip.digest import Credentials
from dev.stack import Stack, StackOptions
from dev.standins.trunk import Blackhole, Trunk
from tests.conftest import AUTH, Gateway, operator, write_agents
from tests.support.calls import Placed, request, told

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]


def _ended(line: str, room: str) -> bool:
    return "call ended" in line and room in line


async def left_nothing(stack: Stack, room: str, timeout: float = 30) -> None:
    """Wait until the call's room, all jobs and all spooled events are gone."""
    livekit = stack.api()
    deadline = time.monotonic() + timeout
    async with aiohttp.ClientSession() as http:
        while True:
            rooms = (await livekit.room.list_rooms(ListRoomsRequest(names=[room]))).rooms
            async with http.get(f"{stack.worker.address}/worker") as worker:
                jobs = (await worker.json()).get("active_jobs", 0)
            spooled = [path.name for path in _spool(stack).rglob("*") if path.is_file()]
            if not rooms and not jobs and not spooled:
                break
            assert time.monotonic() < deadline, (rooms, jobs, spooled)
            await asyncio.sleep(0.2)
    await livekit.aclose()


def _spool(stack: Stack) -> Path:
    return stack.settings.data_dir / "spool"


class TestNeverAnswered:
    @pytest.mark.parametrize(
        ("status", "outcome", "cause"),
        [
            (486, ("busy", "dial_busy", 486), "callee_busy"),
            (600, ("busy", "dial_busy", 600), "callee_busy"),
            (603, ("failed", "dial_rejected", 603), "callee_declined"),
            (403, ("failed", "dial_rejected", 403), "trunk_forbids"),
            (404, ("failed", "invalid_destination", 404), "no_route"),
            (480, ("no-answer", "dial_no_answer", 480), "no_answer"),
            (488, ("failed", "dial_failed", 488), "codec_refused"),
            (503, ("failed", "dial_failed", 503), "trunk_failed"),
        ],
    )
    async def test_a_refusal_is_the_verdict(
        self,
        gateway: Gateway,
        stack: Stack,
        phone: Phone,
        status: int,
        outcome: tuple[str, str, int],
        cause: str,
    ) -> None:
        phone.behave(Reject(status))
        call = await Placed.place(gateway, request(phone.address))
        assert await call.outcome() == outcome
        assert await call.cause() == cause
        record = await call.record()
        assert record["answeredAt"] is None
        assert record["durationSeconds"] == 0
        await left_nothing(stack, call.room)

    async def test_nobody_picks_up(self, gateway: Gateway, stack: Stack, phone: Phone) -> None:
        phone.behave(RingOut())
        call = await Placed.place(gateway, request(phone.address, ringing_timeout_s=2))
        rang = await phone.next_call(5)
        assert await call.outcome() == ("no-answer", "dial_no_answer", None)
        assert (await rang.ended(5)).how == "cancel"
        assert (await call.record())["ringingAt"] is not None
        assert await call.cause() == "no_answer"
        await left_nothing(stack, call.room)

    async def test_nothing_answers_at_all(self, gateway: Gateway, stack: Stack) -> None:
        async with Trunk(mode=Blackhole()) as trunk:
            call = await Placed.place(gateway, request(trunk.address, ringing_timeout_s=2))
            assert await call.outcome() == ("no-answer", "dial_no_answer", None)
            assert await call.cause() == "no_answer"
        await left_nothing(stack, call.room)

    async def test_a_host_that_does_not_exist(self, gateway: Gateway) -> None:
        body = request("no-such-host.invalid")
        refused = await gateway.post("/sip/call", json=body)
        assert (refused.status, refused.code) == (403, "DESTINATION_NOT_ALLOWED")
        # The operator's address is not looked up before the dial.
        answer = await gateway.post("/sip/call", json=body, headers=operator())
        assert answer.status == 200 or (answer.status, answer.code) == (500, "CALL_FAILED")
        listed = await gateway.get("/v1/calls", params={"limit": "1"}, headers=operator())
        path = f"/v1/calls/{listed.body['data'][0]['id']}"
        waited = {"wait": "true", "timeout": "40"}
        record = (await gateway.get(path, params=waited, headers=operator())).body
        assert record["roomName"] == body["room_name"]
        assert (record["status"], record["disconnectionReason"]) == ("failed", "dial_failed")
        found = (await gateway.get(f"{path}/diagnosis", headers=operator())).body
        assert found["code"] == "trunk_unresolved"

    async def test_wrong_credentials(self, gateway: Gateway, stack: Stack, phone: Phone) -> None:
        async with Trunk(phone.address, Credentials("anna", "right")) as trunk:
            sip = {
                "outbound_address": trunk.address,
                "auth_username": "anna",
                "auth_password": "wrong",
            }
            call = await Placed.place(gateway, request(trunk.address, sip=sip))
            # The SIP service does not report the status at which it gave up.
            assert await call.outcome() == ("failed", "dial_rejected", None)
            assert (await call.record())["sipReason"] == "Authentication failed"
            assert await call.cause() == "trunk_password"
        assert phone.invites == 0
        await left_nothing(stack, call.room)

    async def test_our_side_gives_up_while_it_rings(
        self, gateway: Gateway, stack: Stack, phone: Phone
    ) -> None:
        phone.behave(RingOut())
        call = await Placed.place(gateway, request(phone.address))
        rang = await phone.next_call(5)
        removed = await gateway.request(
            "DELETE",
            "/livekit/participant",
            json={"room_name": call.room, "participant_identity": "caller"},
        )
        assert removed.status == 200, removed.body
        shown = await gateway.get(f"/livekit/rooms/{call.room}")
        assert "caller" not in str(shown.body.get("participants"))
        assert (await rang.ended(5)).how == "cancel"
        assert await call.outcome() == ("canceled", "canceled", None)
        assert await call.cause() == "canceled"
        await left_nothing(stack, call.room)


class TestAnswered:
    async def test_the_phone_hangs_up(self, gateway: Gateway, stack: Stack, phone: Phone) -> None:
        call = await Placed.place(gateway, request(phone.address))
        up = await phone.next_call(5)
        await up.answered(5)
        await up.listen(20)
        await up.hangup()
        assert await call.outcome() == ("completed", "user_hangup", None)
        record = await call.record()
        assert record["durationSeconds"] > 0
        await left_nothing(stack, call.room)
        assert await call.cause() in {None, "one_way_audio"}, "it never spoke"
        turns = (await gateway.get(f"/v1/calls/{call.call_id}")).body["transcripts"]
        assert [turn["response"] for turn in turns] == ["Welcome to the corner restaurant."]

    async def test_the_agent_hangs_up(self, gateway: Gateway, stack: Stack, phone: Phone) -> None:
        call = await Placed.place(gateway, request(phone.address))
        up = await phone.next_call(5)
        await up.answered(5)
        await up.listen(20)
        async for exchange in converse(up, [Speak(GOODBYE, GOODBYE_ANSWER)]):
            assert exchange.heard.end_ms > exchange.heard.start_ms
        assert (await up.ended(10)).by == "remote"
        assert await call.outcome() == ("completed", "agent_hangup", None)
        await left_nothing(stack, call.room)
        assert await call.cause() is None

    async def test_our_side_hangs_up(self, gateway: Gateway, stack: Stack, phone: Phone) -> None:
        call = await Placed.place(gateway, request(phone.address))
        up = await phone.next_call(5)
        await up.answered(5)
        await told(gateway, call.call_id, "call.answered")
        removed = await gateway.request(
            "DELETE",
            "/livekit/participant",
            json={"room_name": call.room, "participant_identity": "caller"},
        )
        assert removed.status == 200, removed.body
        assert (await up.ended(10)).by == "remote"
        assert await call.outcome() == ("completed", "agent_hangup", None)
        await left_nothing(stack, call.room)
        (leg,) = [line for line in stack.log_text("bridge").splitlines() if _ended(line, call.room)]
        assert "leave_rpc" in leg, "it was asked to leave, and not removed"

    @pytest.mark.parametrize("agent", ["greeter", None])
    async def test_the_time_is_up(
        self, gateway: Gateway, stack: Stack, phone: Phone, agent: str | None
    ) -> None:
        body = request(phone.address, max_duration_s=2, agent=agent)
        call = await Placed.place(gateway, body)
        up = await phone.next_call(5)
        await up.answered(5)
        assert (await up.ended(20)).by == "remote"
        assert await call.outcome() == ("completed", "max_duration_reached", None)
        record = await call.record()
        # Without an agent the SIP service counts from the answer, which we may learn of late.
        assert record["durationSeconds"] > (1.5 if agent else 0)
        assert await call.cause() == "max_duration"
        await left_nothing(stack, call.room)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    agents = tmp_path_factory.mktemp("agents")
    write_agents(agents)
    values = {
        **AUTH,
        "agents_dir": agents,
        "default_agent": "greeter",
        "agent_join_timeout_s": 4,
    }
    async with Stack(StackOptions(values=values)) as running:
        yield running


class TestBroken:
    """Calls that lose a part of the system, on a stack that has no worker in the end."""

    async def test_the_bridge_is_killed_and_comes_back(self, own: Stack, phone: Phone) -> None:
        """The new bridge removes the leg, which LiveKit would keep for 20 s more."""
        async with aiohttp.ClientSession(own.gateway_url) as session:
            gateway = Gateway(session)
            call = await Placed.place(gateway, request(phone.address))
            up = await phone.next_call(5)
            await up.answered(5)
            await up.listen(20)
            await own.bridge.kill()
            await own.bridge.start()
            assert await call.outcome() == ("failed", "agent_error", None)
            assert await call.cause() == "sip_service_lost"
            assert "legs of an earlier run removed" in own.log_text("bridge")
            assert "its SIP service died" in own.log_text("worker")
            await left_nothing(own, call.room)
            assert await self._after(own, gateway, phone) == ("completed", "user_hangup", None)

    async def test_livekit_stops_in_the_middle_of_a_call(self, own: Stack, phone: Phone) -> None:
        async with aiohttp.ClientSession(own.gateway_url) as session:
            gateway = Gateway(session)
            call = await Placed.place(gateway, request(phone.address))
            up = await phone.next_call(5)
            await up.answered(5)
            await up.listen(20)
            await own.livekit.kill()
            assert (await up.ended(60)).by == "remote"
            status, reason, _ = await call.outcome(timeout=60)
            assert (status, reason) == ("failed", "agent_error")
            assert await call.cause() == "livekit_lost"
            await own.livekit.start()
            await left_nothing(own, call.room)
            again = await self._after(own, gateway, phone)
            assert again == ("completed", "user_hangup", None)

    async def _after(
        self, own: Stack, gateway: Gateway, phone: Phone
    ) -> tuple[str, str, int | None]:
        """Place a call once the worker is registered again; return its outcome."""
        await self._workers(gateway, lambda workers: workers["free"] > 0)
        call = await Placed.place(gateway, request(phone.address))
        up = await phone.next_call(5)
        await up.answered(10)
        await up.listen(30)
        await up.hangup()
        return await call.outcome()

    async def _workers(self, gateway: Gateway, they: Callable[[dict[str, int]], bool]) -> None:
        """Wait until the gateway counts its workers so."""
        deadline = time.monotonic() + 60
        while not they((ready := await gateway.get("/readyz")).body["workers"]):
            assert time.monotonic() < deadline, ready.body
            await asyncio.sleep(0.2)

    async def test_the_worker_dies_before_its_agent_has_joined(
        self, own: Stack, phone: Phone
    ) -> None:
        """A killed worker counts as alive for a few more seconds, but its call is ended."""
        phone.behave(Answer(after_s=0.1))
        async with aiohttp.ClientSession(own.gateway_url) as session:
            gateway = Gateway(session)
            await own.worker.kill()
            call = await Placed.place(gateway, request(phone.address))
            up = await phone.next_call(5)
            assert (await up.ended(20)).by == "remote"
            assert await call.outcome() == ("failed", "agent_unavailable", None)
            assert await call.cause() in {"dispatch_not_taken", "agent_not_joined"}

    async def test_no_worker_is_there(self, own: Stack, phone: Phone) -> None:
        async with aiohttp.ClientSession(own.gateway_url) as session:
            gateway = Gateway(session)
            await own.worker.kill()
            await self._workers(gateway, lambda workers: workers["live"] == 0)
            body = request(phone.address)
            room = str(body["room_name"])
            answer = await gateway.post("/sip/call", json=body)
            assert (answer.status, answer.code) == (503, "AGENT_UNAVAILABLE")
            assert int(answer.headers["Retry-After"]) > 0
            record = (await gateway.get("/v1/calls")).body["data"][0]
            assert record["roomName"] == room
            assert (record["status"], record["disconnectionReason"]) == (
                "failed",
                "agent_unavailable",
            )
            path = f"/v1/calls/{record['id']}/diagnosis"
            assert (await gateway.get(path)).body["code"] == "no_worker"
            assert phone.invites == 0
            livekit = own.api()
            assert not (await livekit.room.list_rooms(ListRoomsRequest(names=[room]))).rooms
            await livekit.aclose()
