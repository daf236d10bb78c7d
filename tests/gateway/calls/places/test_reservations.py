"""Never are more calls admitted than the workers have places, whoever admits them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from core.errors import Unavailable
from core.events import ended
from core.jobs import Heartbeat, dispatch_name
from core.models import Agent, AgentConfig, CallEvent, new_id
from gateway.calls.limits import CallLimits
from gateway.store.call_status import Call
from gateway.store.calls import NewCall, Store
from gateway.store.database import Database, Scope
from gateway.store.places.fleet import WORKER_STALE, Seat
from tests.gateway.calls.test_limits import new_call
from tests.support.clock import Clock
from tests.support.databases import OnPostgres, OnSqlite

pytestmark = pytest.mark.store

NAME = "switchroom"
AGENT = Agent(id="greeter", version=1, config=AgentConfig(name="Greeter"))
PATIENCE_S = 20.0
QUEUED = "call.queued"


class Gateways:
    """Gateways on one database, which share a clock, and the workers that report to them."""

    def __init__(self, stores: list[Store], clock: Clock) -> None:
        self.stores = stores
        self.clock = clock
        self.limits = [
            CallLimits(store, agent_name=NAME, ring_while_full_s=PATIENCE_S) for store in stores
        ]

    @property
    def store(self) -> Store:
        return self.stores[0]

    async def beat(self, worker_id: str, capacity: int = 5, **changes: Any) -> None:
        values = {"worker_id": worker_id, "agent_name": NAME, "capacity": capacity, "active": 0}
        own = {"dispatch_name": dispatch_name(NAME, worker_id)}
        await self.store.heartbeat(Heartbeat(**{**values, **own, **changes}))

    async def call(self, gateway: int = 0, *, wait: bool = False, **changes: Any) -> Call:
        new = new_call(None)
        values = {name: getattr(new, name) for name in new.__slots__} | {"agent": AGENT} | changes
        queued = CallEvent(type=QUEUED, at=self.clock())
        return await self.limits[gateway].insert(NewCall(**values), queued, may_wait=wait)

    async def admitted(self, wanted: int, **changes: Any) -> list[Call]:
        """Ask for so many calls at once, at all gateways; return those that were admitted."""
        asked = [self.call(index % len(self.stores), **changes) for index in range(wanted)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if not isinstance(answer, Call):
                assert isinstance(answer, Unavailable) and answer.code == "AGENT_UNAVAILABLE"
        return [answer for answer in answers if isinstance(answer, Call)]

    async def tell(self, call: Call, type: str, **data: Any) -> None:
        await self.store.append(call.id, [CallEvent(type=type, data=data)], "worker")

    async def over(self, call: Call) -> None:
        await self.tell(call, "call.ended", **ended("completed", "user_hangup"))

    async def place(self, call: Call) -> tuple[str | None, str | None]:
        found = await self.store.call(Scope(None), call.id)
        assert found is not None
        return found.place, found.place_worker

    async def free(self) -> int:
        return (await self.store.places.fleet(NAME, "room")).free

    async def move(self, call: Call) -> Seat | None:
        return await self.store.places.move(call.id, "room", NAME)

    async def advance(self, *mine: Call) -> list[str]:
        """Seat those who wait; return where ``mine`` are."""
        ids = [call.id for call in mine]
        found = await self.store.places.advance(NAME, PATIENCE_S, ids)
        return [found[call_id] for call_id in ids]


def counts(calls: list[Call]) -> dict[str | None, int]:
    workers = [call.place_worker for call in calls]
    return {worker: workers.count(worker) for worker in workers}


class PlacesContract:
    @pytest.fixture
    async def gateways(self, url: str) -> AsyncIterator[Gateways]:
        clock = Clock()
        databases = [await Database.open(url) for _ in range(2)]
        yield Gateways([Store(database, clock=clock) for database in databases], clock)
        for database in databases:
            await database.close()

    async def test_many_at_once_at_two_gateways(self, gateways: Gateways) -> None:
        for worker in ("w1", "w2", "w3"):
            await gateways.beat(worker)
        calls = await gateways.admitted(60)
        assert counts(calls) == {"w1": 5, "w2": 5, "w3": 5}
        assert await gateways.free() == 0

    async def test_a_refused_call_says_why(self, gateways: Gateways) -> None:
        for worker, why in (
            ({}, "no_worker"),
            ({"draining": True}, "workers_draining"),
            ({"active": 5}, "workers_full"),
            ({"agent_name": "another"}, "no_worker"),
            ({"address": "http://streams"}, "no_worker"),
        ):
            if worker:
                await gateways.beat("w", **worker)
            call_id = new_id("call")
            with pytest.raises(Unavailable):
                await gateways.call(id=call_id)
            (over,) = await gateways.store.events(call_id, types=["call.ended"])
            assert (over.data["reason"], over.data["note"]) == ("agent_unavailable", why)

    async def test_a_stream_takes_a_stream_workers_place(self, gateways: Gateways) -> None:
        await gateways.beat("room", 1)
        await gateways.beat("stream", 1, address="http://streams", dispatch_name=None)
        call = await gateways.call(type="stream")
        assert call.place_worker == "stream"
        with pytest.raises(Unavailable):
            await gateways.call(type="stream")
        assert (await gateways.call()).place_worker == "room"

    async def test_a_place_is_free_again(self, gateways: Gateways) -> None:
        await gateways.beat("w", 1)
        ends = ["never came", "left", "transferred"]
        for end in ends:
            call = await gateways.call()
            if end != "never came":
                await gateways.tell(call, "agent.joined", worker="w", epoch=0)
            if end != "transferred":
                await gateways.over(call)
            if end != "never came":
                assert await gateways.free() == 0, "its agent has not left yet"
                await gateways.tell(call, "agent.left", cause="caller_hung_up")
            assert await gateways.place(call) == (None, None)
            assert await gateways.free() == 1

    async def test_an_agent_that_another_one_replaced_frees_no_place(
        self, gateways: Gateways
    ) -> None:
        await gateways.beat("w", 1)
        call = await gateways.call()
        await gateways.tell(call, "agent.joined", worker="w", epoch=0)
        await gateways.tell(call, "agent.left", cause="agent_replaced")
        assert await gateways.place(call) == ("held", "w")

    async def test_an_agent_that_never_says_it_left(self, gateways: Gateways) -> None:
        await gateways.beat("w", 1)
        call = await gateways.call()
        await gateways.tell(call, "agent.joined", worker="w", epoch=0)
        await gateways.over(call)
        gateways.clock.forward(timedelta(seconds=31))
        await gateways.beat("w", 1)
        assert await gateways.free() == 1
        gateways.clock.forward(timedelta(seconds=31))
        await gateways.store.sweep()
        assert await gateways.place(call) == (None, None)

    async def test_what_a_worker_is_busy_with_beside_the_books(self, gateways: Gateways) -> None:
        """A job goes on for a moment after its call; a lost agent's may hang."""
        await gateways.beat("w", 5)
        here = await gateways.call()
        await gateways.beat("w", 5, active=4, calls=[here.id, "call_a", "call_b", "call_c"])
        assert len(await gateways.admitted(3)) == 1

    async def test_a_worker_of_an_earlier_release(self, gateways: Gateways) -> None:
        """LiveKit chooses among those, so what they report counts as well."""
        await gateways.beat("w", 5, active=4, dispatch_name=None)
        call = await gateways.call()
        seat = await gateways.store.places.seat(call.id)
        assert seat is not None and (seat.dispatch_name, seat.by_livekit) == (NAME, True)

    async def test_a_silent_worker_gets_no_call(self, gateways: Gateways) -> None:
        await gateways.beat("silent", 50)
        gateways.clock.forward(timedelta(seconds=3))
        await gateways.beat("live", 2)
        assert counts(await gateways.admitted(3)) == {"live": 2, "silent": 1}, "it may be back"
        gateways.clock.forward(WORKER_STALE - timedelta(seconds=2.9))
        await gateways.beat("live", 3)
        assert counts(await gateways.admitted(3)) == {"live": 1}


class LineContract(PlacesContract):
    """Calls that wait for a place, and calls that need another one."""

    async def test_first_come_first_served(self, gateways: Gateways) -> None:
        await gateways.beat("w", 1)
        first = await gateways.call()
        waiting = []
        for index in range(3):
            gateways.clock.forward(timedelta(milliseconds=5))
            waiting.append(await gateways.call(index % 2, wait=True))
        assert [call.place for call in waiting] == ["wanted"] * 3
        assert await gateways.advance(*waiting) == ["wanted"] * 3
        await gateways.over(first)
        with pytest.raises(Unavailable):
            await gateways.call()  # others come first
        assert await gateways.advance(*waiting) == ["held", "wanted", "wanted"]
        await gateways.over(waiting[1])
        await gateways.beat("w", 2)
        assert await gateways.advance(*waiting) == ["held", "over", "held"]
        assert await gateways.place(waiting[2]) == ("held", "w")

    async def test_two_gateways_seat_each_once(self, gateways: Gateways) -> None:
        waiting = [await gateways.call(wait=True) for _ in range(9)]
        await gateways.beat("w", 4)
        ids = [call.id for call in waiting]
        await asyncio.gather(
            *(store.places.advance(NAME, PATIENCE_S, ids) for store in gateways.stores * 3)
        )
        assert (await gateways.advance(*waiting)).count("held") == 4

    async def test_who_was_left_behind_stops_nobody(self, gateways: Gateways) -> None:
        """A gateway that was killed does not end the calls that waited there."""
        await gateways.call(wait=True)
        gateways.clock.forward(timedelta(seconds=PATIENCE_S + 6))
        await gateways.beat("w", 1)
        assert (await gateways.call()).place == "held"

    async def test_a_lost_agents_call_moves_before_others(self, gateways: Gateways) -> None:
        await gateways.beat("w1", 1)
        call = await gateways.call()
        waiting = await gateways.call(wait=True)
        await gateways.beat("w2", 1)
        seat = await gateways.move(call)
        assert seat is not None and seat.worker_id == "w2"
        assert seat.dispatch_name == f"{NAME}@w2" and not seat.by_livekit
        assert await gateways.advance(waiting) == ["held"], "the former place is free"

    async def test_a_lost_agents_call_keeps_its_place(self, gateways: Gateways) -> None:
        await gateways.beat("w", 1)
        call = await gateways.call()
        await gateways.call(wait=True)
        seat = await gateways.move(call)
        assert seat is not None and seat.worker_id == "w"
        await gateways.beat("w", 1, draining=True)
        assert await gateways.move(call) is None
        await gateways.over(call)
        await gateways.beat("w", 5)
        assert await gateways.move(call) is None, "it is over"


class TestSqlite(OnSqlite, LineContract):
    pass


class TestPostgres(OnPostgres, LineContract):
    pass
