"""More callers than places, with LiveKit and worker processes; and a worker that vanishes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from livekit import api, rtc

from core.events import ended
from core.jobs import InboundJob
from core.models import CallEvent
from dev.process import ManagedProcess
from dev.stack import Stack, StackOptions
from dev.stack.environment import as_variables
from dev.stack.options import HOST, ROOT
from gateway.store.call_status import Call
from gateway.store.database import Scope
from gateway.store.places.fleet import Fleet
from tests.gateway.api.test_livekit_webhook import deliver
from tests.gateway.calls.test_inbound import Caller, number
from tests.support.databases import fresh_database
from tests.support.inprocess import KEY, SECRET, Running, running, settings_in

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

CALLERS, WORKERS, PLACES = 200, 3, 5
RINGS_S = 25.0
SILENT = timedelta(seconds=2.5)


class Rig:
    """Two gateways on one database, LiveKit, and three light workers with five places each.

    The first worker is alone in its process.
    """

    def __init__(
        self, stack: Stack, gateways: list[Running], workers: list[ManagedProcess], folder: Path
    ) -> None:
        self.stack = stack
        self.gateways = gateways
        self.workers = workers
        self.folder = folder
        self.number_id = ""
        # A gateway has 20 connections to the database; LiveKit would repeat what gets a 503.
        self._webhooks = asyncio.Semaphore(30)

    @property
    def gateway(self) -> Running:
        return self.gateways[0]

    async def fleet(self) -> Fleet:
        return await self.gateway.store.places.fleet("switchroom", "room")

    async def has_silent(self) -> bool:
        """Return True if a worker is silent enough that others are preferred."""
        fleet = await self.fleet()
        return any(fleet.at - member.seen_at > SILENT for member in fleet.members)

    async def call_in(self, index: int = 0) -> Caller:
        """Let a caller come in; the webhook goes to one of the gateways."""
        caller = Caller(self.number_id)
        gateway = self.gateways[index % len(self.gateways)]
        async with self._webhooks:
            assert await deliver(gateway, caller.webhook("participant_joined")) == 200
        return caller

    async def calls(self, callers: list[Caller]) -> list[Call]:
        """Return the records, as far as there are any."""
        store = self.gateway.store
        found = [await store.call(Scope(None), caller.call_id) for caller in callers]
        return [call for call in found if call is not None]

    async def until(self, callers: list[Caller], wanted: int, *, within_s: float) -> list[Call]:
        """Return the calls that have an agent, once there are so many."""
        async with asyncio.timeout(within_s):
            while True:
                served = [call for call in await self.calls(callers) if call.agent_worker]
                if len(served) >= wanted:
                    return served
                await asyncio.sleep(0.1)

    async def hang_up(self, calls: list[Call]) -> None:
        over = ended("completed", "user_hangup")
        for call in calls:
            event = CallEvent(type="call.ended", data=over)
            await self.gateway.store.append(call.id, [event], "worker")

    def most_jobs(self) -> list[int]:
        """Return the largest number of jobs that each worker had at a time."""
        return [int(file.read_text()) for file in self.folder.iterdir()]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def rig(tmp_path_factory: pytest.TempPathFactory, postgres: str) -> AsyncIterator[Rig]:
    tmp_path = tmp_path_factory.mktemp("burst")
    keys = {"livekit_api_key": KEY, "livekit_api_secret": SECRET}
    options = StackOptions(bridge=False, gateway=0, worker=0, providers=False, values=keys)
    (folder := tmp_path / "jobs").mkdir()
    async with contextlib.AsyncExitStack() as stack:
        livekit = await stack.enter_async_context(Stack(options))
        settings = settings_in(
            tmp_path,
            livekit_url=livekit.settings.livekit_url,
            database_url=await fresh_database(postgres),
            ring_while_full_s=RINGS_S,
        )
        gateways = [await stack.enter_async_context(running(settings)) for _ in range(2)]
        workers = []
        for index, count in enumerate((1, WORKERS - 1)):
            changes = {
                "gateway_url": f"http://{HOST}:{gateways[index].port}",
                "worker_max_calls": PLACES,
            }
            worker = ManagedProcess(
                f"worker-{index}",
                [sys.executable, "-m", "tests.support.light_worker", str(folder), str(count)],
                env=as_variables(settings.model_copy(update=changes)),
                cwd=ROOT,
                log_path=tmp_path / f"worker-{index}.log",
            )
            await worker.start()
            stack.push_async_callback(worker.kill)
            workers.append(worker)
        rig = Rig(livekit, gateways, workers, folder)
        rig.number_id = (await number(rig.gateway)).id
        async with asyncio.timeout(120):
            while len((await rig.fleet()).members) < WORKERS:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        yield rig


async def test_a_caller_whom_no_webhook_reports(rig: Rig) -> None:
    """The dispatch of the number's rule announces the room to a gateway."""
    caller, livekit = Caller(rig.number_id), rig.stack.api()
    job = InboundJob(number_id=rig.number_id).model_dump_json(by_alias=True)
    agents = [api.RoomAgentDispatch(agent_name="switchroom", metadata=job)]
    token = (
        api.AccessToken(KEY, SECRET)
        .with_identity(caller.participant.identity)
        .with_kind("sip")
        .with_attributes(dict(caller.participant.attributes))
        .with_grants(api.VideoGrants(room_join=True, room=caller.room))
    )
    room = rtc.Room()
    try:
        await livekit.room.create_room(api.CreateRoomRequest(name=caller.room, agents=agents))
        await room.connect(rig.stack.settings.livekit_url, token.to_jwt())
        (call,) = await rig.until([caller], 1, within_s=20)
        assert (call.direction, call.status) == ("inbound", "ringing")
        await rig.hang_up([call])
    finally:
        await room.disconnect()
        await livekit.aclose()


async def test_many_more_callers_than_places(rig: Rig) -> None:
    callers = await asyncio.gather(*(rig.call_in(index) for index in range(CALLERS)))
    served = await rig.until(callers, WORKERS * PLACES, within_s=RINGS_S)
    assert Counter(Counter(call.agent_worker for call in served).values()) == {PLACES: WORKERS}
    ringing = [call for call in await rig.calls(callers) if call.place == "wanted"]
    assert len(ringing) == CALLERS - WORKERS * PLACES
    assert all(call.status == "ringing" for call in ringing)

    # One of those who ring hangs up; five others are served when five calls end, in their order.
    line = list((await rig.gateway.store.places.fleet("switchroom", "room", RINGS_S)).line)
    first = next(caller for caller in callers if caller.call_id == line[0])
    assert await deliver(rig.gateway, first.left("hangup")) == 200
    assert await first.outcome(rig.gateway) == ("canceled", "user_hangup")
    await rig.hang_up(served[:5])
    following = [caller for caller in callers if caller.call_id in line[1:6]]
    await rig.until(following, 5, within_s=RINGS_S)

    async with asyncio.timeout(3 * RINGS_S):
        while any(call.place == "wanted" for call in await rig.calls(callers)):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    outcomes = Counter(
        (call.status, call.disconnection_reason) for call in await rig.calls(callers)
    )
    assert outcomes == {
        ("ringing", None): 15,
        ("completed", "user_hangup"): 5,
        ("canceled", "user_hangup"): 1,
        ("failed", "agent_unavailable"): CALLERS - 21,
    }
    notes = Counter(
        [
            await caller.note(rig.gateway)
            for caller in callers
            if await caller.outcome(rig.gateway) == ("failed", "agent_unavailable")
        ]
    )
    assert notes == {"workers_full": CALLERS - 21}
    assert rig.most_jobs() == [PLACES] * WORKERS
    await rig.hang_up(await rig.calls(callers))


async def test_a_frozen_worker_gets_no_calls(rig: Rig) -> None:
    """LiveKit goes on to list it; one call may be on its way to it."""
    async with asyncio.timeout(20):
        while (await rig.fleet()).free < WORKERS * PLACES:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    frozen = rig.workers[0]
    frozen.signal(signal.SIGSTOP)
    early = [await rig.call_in(index) for index in range(WORKERS)]
    async with asyncio.timeout(10):
        while not await rig.has_silent():  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    late = [await rig.call_in(index) for index in range(WORKERS)]
    await rig.until([*early, *late], 2 * WORKERS, within_s=10)
    again = [
        await rig.gateway.store.events(caller.call_id, types=["agent.redispatched"])
        for caller in late
    ]
    assert again == [[]] * WORKERS, "they went to the live ones at once"
