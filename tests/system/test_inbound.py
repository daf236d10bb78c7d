"""Calls to an attached number, from the INVITE to the record, with a real phone."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from livekit.protocol.room import ListRoomsRequest

from dev.phone import CallRefused, Phone, Reject
from dev.stack import Stack, StackOptions
from tests.conftest import ACME, AUTH, RIVAL, Gateway, write_agents
from tests.support.calls import Placed, request
from tests.support.inbound_rig import CALLER, Line, make_agent, outcome
from tests.system.test_endings import left_nothing

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]


async def refused(line: Line, phone: Phone, within_s: float = 20) -> int | None:
    """Dial the line and return the SIP status of the refusal."""
    call = await line.dial(phone)
    with pytest.raises(CallRefused) as refusal:
        await call.answered(within_s)
    return refusal.value.status


class TestAnswered:
    @pytest.mark.parametrize(
        ("tenant", "bare", "greeting"),
        [("acme", False, "This is Acme."), ("rival", True, "Rival speaking, good day.")],
    )
    async def test_by_the_agent_of_the_number(
        self,
        stack: Stack,
        gateway: Gateway,
        phone: Phone,
        tenant: str,
        bare: bool,
        greeting: str,
    ) -> None:
        """Each tenant's agent answers its own number, dialled with or without the +."""
        agent = await make_agent(gateway, tenant, beginMessage=greeting)
        line = await Line.attach(stack, gateway, agent, tenant=tenant)
        call = await line.dial(phone, bare=bare)
        await call.answered(20)
        await call.listen(20)
        await call.hangup()
        record = await line.record()
        assert outcome(record) == ("completed", "user_hangup")
        assert (record["agentId"], record["agentVersion"]) == (agent, 1)
        assert (record["direction"], record["type"]) == ("inbound", "pstn")
        assert record["fromNumber"] == CALLER
        assert record["toNumber"] == line.number
        assert record["phoneNumberId"] == line.id
        assert record["participantId"] and record["sipCallId"]
        assert record["createdAt"] <= record["ringingAt"] <= record["answeredAt"]
        assert [turn["response"] for turn in record["transcripts"]] == [greeting]
        stranger = RIVAL if tenant == "acme" else ACME
        hidden = await gateway.get(f"/v1/calls/{record['id']}", headers=stranger)
        assert hidden.status == 404
        await left_nothing(stack, record["roomName"])

    async def test_its_record_has_the_keys_of_one_we_dialled(
        self, stack: Stack, gateway: Gateway, phone: Phone
    ) -> None:
        phone.behave(Reject(486))
        dialled = await Placed.place(gateway, request(phone.address))
        line = await Line.attach(stack, gateway, None)
        assert await refused(line, phone) == 486
        theirs, ours = await line.record(), await dialled.record()
        assert set(theirs) == set(ours)
        told = await line.timeline(theirs["id"])
        for kind in ("call.queued", "call.ringing", "call.ended"):
            assert told.count(f"event: {kind}\n") == 1

    async def test_a_change_counts_for_the_next_call(
        self, stack: Stack, gateway: Gateway, phone: Phone
    ) -> None:
        agent = await make_agent(gateway, beginMessage="The first version.")
        line = await Line.attach(stack, gateway, agent)
        first = await line.dial(phone)
        await first.answered(20)
        changed = await gateway.request(
            "PATCH", f"/v1/agents/{agent}", json={"beginMessage": "The second one."}
        )
        assert changed.status == 200
        await first.listen(20)
        second = await line.dial(phone)
        await second.answered(20)
        await second.listen(20)
        for call in (first, second):
            await call.hangup()
        await line.record(index=-1)
        await line.record(index=-2)
        records = [await line.record(index=index) for index in (0, 1)]
        assert [record["agentVersion"] for record in records] == [1, 2]
        assert [record["transcripts"][0]["response"] for record in records] == [
            "The first version.",
            "The second one.",
        ]


class TestRefused:
    @pytest.mark.parametrize(
        ("enabled", "bound", "direction", "note"),
        [
            (False, True, "both", "agent_disabled"),
            (True, True, "outbound", "number_outbound_only"),
            (True, False, "inbound", "number_without_agent"),
        ],
    )
    async def test_where_no_agent_may_answer(
        self,
        stack: Stack,
        gateway: Gateway,
        phone: Phone,
        enabled: bool,
        bound: bool,
        direction: str,
        note: str,
    ) -> None:
        agent = await make_agent(gateway, enabled=enabled) if bound else None
        line = await Line.attach(stack, gateway, agent, direction=direction)
        assert await refused(line, phone) == 486
        record = await line.record()
        assert outcome(record) == ("failed", "agent_unavailable")
        assert record["answeredAt"] is None and record["durationSeconds"] == 0
        assert f'"note": "{note}"' in await line.timeline(record["id"])

    async def test_a_number_that_is_nobodys(
        self, stack: Stack, gateway: Gateway, phone: Phone
    ) -> None:
        call = await phone.dial(f"sip:+15105559999@{stack.sip_address}", caller=CALLER)
        with pytest.raises(CallRefused) as refusal:
            await call.answered(10)
        assert refusal.value.status == 486
        listed = await gateway.get("/v1/calls?search=%2B15105559999")
        assert listed.body["total"] == 0


async def test_fifty_calls_of_one_caller(stack: Stack, gateway: Gateway, phone: Phone) -> None:
    """Three run at a time, and each has its own room, participant and record."""
    line = await Line.attach(stack, gateway, await make_agent(gateway))
    at_a_time = asyncio.Semaphore(3)

    async def talk() -> str:
        async with at_a_time:
            call = await line.dial(phone)
            await call.answered(30)
            await call.hangup()
            return call.call_id

    async with asyncio.TaskGroup() as calls:
        calling = [calls.create_task(talk()) for _ in range(50)]
    assert len({task.result() for task in calling}) == 50
    async with asyncio.timeout(30):
        while any(record["endedAt"] is None for record in await line.records()):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    records = await line.records()
    assert len(records) == 50
    for name in ("id", "roomName", "participantId", "sipCallId"):
        assert len({record[name] for record in records}) == 50, name
    assert {outcome(record) for record in records} == {("completed", "user_hangup")}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A stack whose processes a test may kill."""
    agents = tmp_path_factory.mktemp("own-agents")
    write_agents(agents)
    values = {
        **AUTH,
        "agents_dir": agents,
        "default_agent": "greeter",
        "agent_join_timeout_s": 3,
        "ring_while_full_s": 3,
    }
    async with Stack(StackOptions(values=values)) as stack:
        yield stack


@contextlib.asynccontextmanager
async def client(stack: Stack) -> AsyncIterator[Gateway]:
    async with aiohttp.ClientSession(stack.gateway_url) as session:
        yield Gateway(session)


class TestKilledGateway:
    async def test_while_the_phone_rings(self, own: Stack, phone: Phone) -> None:
        """The worker cannot ask which call it has until the gateway is back; the phone rings on."""
        async with client(own) as gateway:
            line = await Line.attach(own, gateway, await make_agent(gateway))
            call = await line.dial(phone)
            await call.ringing(10)
            await own.gateway.kill()
            await own.gateway.start()
            await call.answered(20)
            await call.listen(20)
            await call.hangup()
            record = await line.record()
            assert outcome(record) == ("completed", "user_hangup")
            assert len(await line.records()) == 1
            await left_nothing(own, record["roomName"])

    async def test_while_they_talk(self, own: Stack, phone: Phone) -> None:
        async with client(own) as gateway:
            line = await Line.attach(own, gateway, await make_agent(gateway))
            call = await line.dial(phone)
            await call.answered(20)
            await own.gateway.kill()
            await call.listen(20)
            await call.hangup()
            await own.gateway.start()
            record = await line.record()
            assert outcome(record) == ("completed", "user_hangup")
            assert record["durationSeconds"] > 0
            assert len(record["transcripts"]) == 1
            await left_nothing(own, record["roomName"])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def without_worker(own: Stack) -> None:
    await own.worker.stop()


@pytest.mark.usefixtures("without_worker")
class TestNoWorkerFree:
    """These run last, because the worker is stopped."""

    async def test_the_caller_hears_ringing_and_then_an_end(self, own: Stack, phone: Phone) -> None:
        async with client(own) as gateway:
            line = await Line.attach(own, gateway, await make_agent(gateway))
            assert await refused(line, phone) == 486
            record = await line.record()
            assert outcome(record) == ("failed", "agent_unavailable")
            timeline = (await line.timeline(record["id"])).replace(" ", "")
            notes = re.findall(r'"note":"(\w+)"', timeline)
            # For some seconds its last heartbeat tells why it takes none.
            assert notes in (["no_worker"], ["workers_draining"])
            await no_room(own, record["roomName"])

    async def test_a_caller_who_gives_up(self, own: Stack, phone: Phone) -> None:
        async with client(own) as gateway:
            line = await Line.attach(own, gateway, await make_agent(gateway))
            call = await line.dial(phone)
            await line.record(ended=False)
            await call.hangup()
            record = await line.record()
            assert outcome(record) == ("canceled", "user_hangup")
            await no_room(own, record["roomName"])


async def no_room(stack: Stack, name: str) -> None:
    livekit = stack.api()
    try:
        async with asyncio.timeout(20):
            while (await livekit.room.list_rooms(ListRoomsRequest(names=[name]))).rooms:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    finally:
        await livekit.aclose()
