"""Workers that nobody hears: their agents are asked, and those that do not respond are replaced."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from core.jobs import Heartbeat, agent_identity
from core.models import CallEvent
from tests.conftest import bearer
from tests.gateway.calls.recovery.test_recovery import (
    ISSUER,
    job,
    joins,
    settled,
    talking,
    tell,
    types,
    until,
)
from tests.gateway.calls.recovery.test_recovery import (
    rooms as rooms,
)
from tests.support.inprocess import Running
from tests.support.livekit_stub import LiveKitStub, running_with

pytestmark = pytest.mark.store

SILENT = {"agent_silent_s": 2.5}


class TestSilentWorker:
    async def beat(self, gateway: Running, worker: str = "wrk_1") -> None:
        beat = Heartbeat(worker_id=worker, agent_name="switchroom", capacity=5, active=1)
        await gateway.store.heartbeat(beat)

    @asynccontextmanager
    async def two(self, folder: Path, rooms: LiveKitStub) -> AsyncIterator[tuple[Running, Running]]:
        async with running_with(rooms, folder, **SILENT) as one:
            async with running_with(rooms, folder, **SILENT) as two:
                yield one, two

    async def test_its_agents_are_replaced_once_and_others_are_not(
        self, tmp_path: Path, rooms: LiveKitStub
    ) -> None:
        async with self.two(tmp_path, rooms) as (one, two):
            await self.beat(one)
            dead, alive, unknown = [await talking(one, rooms) for _ in range(3)]
            rooms.frozen.add(agent_identity(dead.id))
            rooms.failing[unknown.room_name] = "unavailable"

            async def lost() -> Any:
                return await types(one, dead, "agent.lost")

            await until(lost)
            await tell(one, dead, 1, joins(1, "wrk_2"))
            await self.beat(one, "wrk_2")
            (event,) = await one.store.events(dead.id, types=["agent.lost"])
            assert (event.data["why"], event.data["epoch"]) == ("vanished", 0)
            for each in (one, two):
                await settled(each, dead)
            assert [job(dispatch).call_id for dispatch in rooms.dispatched] == [dead.id]

            async def pinged() -> Any:
                return rooms.pinged.count(agent_identity(alive.id)) >= 3

            await until(pinged)
            for call in (alive, unknown):
                assert await types(one, call, "agent.lost") == []

    async def test_one_that_is_heard_by_a_gateway_with_another_clock(
        self, tmp_path: Path, rooms: LiveKitStub
    ) -> None:
        """A clock that is behind is no silence, and one that is ahead no sign of life."""
        async with self.two(tmp_path, rooms) as (behind, ahead):
            behind.clock.forward(-timedelta(hours=1))
            ahead.clock.forward(timedelta(hours=1))
            call, silent = await talking(ahead, rooms), await talking(ahead, rooms)
            rooms.frozen |= {agent_identity(call.id), agent_identity(silent.id)}
            moved = CallEvent(type="agent.joined", data={"worker": "wrk_2", "epoch": 0})
            await tell(ahead, silent, 0, moved)
            await self.beat(ahead, "wrk_2")

            async def lost() -> Any:
                await self.beat(behind)
                return await types(ahead, silent, "agent.lost")

            await until(lost)
            assert await types(ahead, call, "agent.lost") == []


class TestBrokenConnection:
    async def test_only_agents_that_do_not_respond_are_replaced(
        self, tmp_path: Path, rooms: LiveKitStub
    ) -> None:
        async with running_with(rooms, tmp_path, agent_silent_s=600) as gateway:
            dead, alive = [await talking(gateway, rooms) for _ in range(2)]
            rooms.frozen.add(agent_identity(dead.id))
            headers = bearer(ISSUER.for_worker("wrk_1"))
            beat = Heartbeat(worker_id="wrk_1", agent_name="switchroom", capacity=5, active=1)
            async with aiohttp.ClientSession(f"http://127.0.0.1:{gateway.port}") as worker:
                path = "/internal/workers/heartbeat"
                async with worker.post(path, json=beat.wire(), headers=headers) as answer:
                    assert answer.status == 200
                assert rooms.pinged == []

            async def lost() -> Any:
                return await types(gateway, dead, "agent.lost")

            await until(lost)
            assert agent_identity(alive.id) in rooms.pinged
            assert await types(gateway, alive, "agent.lost") == []
