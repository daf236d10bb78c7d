"""One tenant cannot take all workers' places, nor exceed its call limit with transfers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import TooManyRequests, Unavailable
from core.events import ended
from core.jobs import Heartbeat
from core.models import Agent, AgentConfig, CallEvent
from dev.stack.environment import GivenSettings
from gateway.calls.limits import CallLimits, fair
from gateway.calls.plan import CallPlan
from gateway.store.call_status import Call, CallState, fold
from gateway.store.calls import Store
from gateway.store.database import Database
from gateway.store.places.load import Load
from tests.conftest import ACME, RIVAL
from tests.gateway.api.test_call_create import TO, post
from tests.gateway.calls.test_limits import new_call, opened
from tests.support.databases import OnPostgres, OnSqlite
from tests.support.inprocess import Running, running, settings_in
from tests.support.numbers import dial_nothing, make_agent, make_number

pytestmark = pytest.mark.store

AGENT = Agent(id="greeter", version=1, config=AgentConfig(name="Greeter"))
RESERVE = GivenSettings().fair_share_reserve
OVER = ended("completed", "user_hangup")


@pytest.mark.attack
@pytest.mark.parametrize(
    ("places", "own", "others", "tenants", "allowed"),
    [
        # A tenant alone gets all places but the reserve.
        (20, 17, 0, 1, True),
        (20, 18, 0, 1, False),
        (10, 8, 0, 1, True),
        (10, 9, 0, 1, False),
        # Later tenants get what is left, up to their share.
        (20, 0, 18, 2, True),
        (20, 1, 18, 2, True),
        (20, 18, 1, 2, False),
        (20, 5, 13, 3, False),
        (20, 4, 14, 3, True),
        # Every share is at least one call.
        (4, 0, 4, 9, True),
        (4, 1, 3, 9, False),
        (2, 1, 0, 1, False),
        (2, 0, 1, 2, True),
        (1, 0, 0, 1, True),
        (1, 1, 0, 1, False),
        # Without workers the call fails with another error.
        (0, 5, 5, 2, True),
    ],
)
def test_a_share(places: int, own: int, others: int, tenants: int, allowed: bool) -> None:
    load = Load(legs=own, agents=own, all_agents=own + others, tenants=tenants, places=places)
    assert fair(load, RESERVE) is allowed


def test_a_larger_reserve() -> None:
    load = Load(legs=5, agents=5, all_agents=5, tenants=1, places=10)
    assert (fair(load, 0.4), fair(load, 0.5)) == (True, False)


class Fleet:
    """Workers' heartbeats and tenants' calls in a store."""

    def __init__(self, store: Store, limits: CallLimits) -> None:
        self.store = store
        self.limits = limits

    async def workers(self, *capacities: int, **values: Any) -> None:
        for index, capacity in enumerate(capacities):
            beat = Heartbeat(
                worker_id=f"w{index}",
                agent_name="switchroom",
                capacity=capacity,
                active=values.get("active", 0),
                draining=values.get("draining", False),
            )
            await self.store.heartbeat(beat)

    async def call(self, tenant: str | None, agent: Agent | None = AGENT) -> Call:
        new = new_call(tenant)
        values = {name: getattr(new, name) for name in new.__slots__}
        again = type(new)(**{**values, "agent": agent})
        return await self.limits.insert(again, CallEvent(type="call.queued"))

    async def calls(self, tenant: str | None, wanted: int, **options: Any) -> int:
        """Start ``wanted`` calls at once; return how many were admitted."""
        answers = await asyncio.gather(
            *(self.call(tenant, **options) for _ in range(wanted)), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, TooManyRequests):
                assert answer.code == "CONCURRENCY_LIMIT"
                assert int(answer.headers["Retry-After"]) > 0
            elif isinstance(answer, Unavailable):
                assert answer.code == "AGENT_UNAVAILABLE"
            else:
                assert isinstance(answer, Call)
        return sum(isinstance(answer, Call) for answer in answers)


class ShareContract:
    @pytest.fixture
    async def fleet(self, url: str) -> AsyncIterator[Fleet]:
        async for store in opened(url):
            yield Fleet(store, CallLimits(store, reserve=RESERVE))

    async def test_a_burst_leaves_room_for_others(self, fleet: Fleet) -> None:
        await fleet.workers(10, 10)
        assert await fleet.calls("acme", 40) == 18
        with pytest.raises(TooManyRequests):
            await fleet.limits.check("acme", with_agent=True)
        await fleet.limits.check("rival", with_agent=True)
        assert await fleet.calls("rival", 2) == 2
        assert (await fleet.store.load("acme", "switchroom")) == Load(
            legs=18, agents=18, all_agents=20, tenants=2, places=20
        )

    async def test_what_takes_no_place_is_not_counted(self, fleet: Fleet) -> None:
        await fleet.workers(4)
        assert await fleet.calls("acme", 20, agent=None) == 20
        assert await fleet.calls("acme", 20) == 3
        assert await fleet.calls("acme", 5, agent=None) == 5

    async def test_operators_have_all_places(self, fleet: Fleet) -> None:
        await fleet.workers(4)
        assert await fleet.calls(None, 6) == 4
        assert await fleet.calls("acme", 2) == 0

    async def test_a_call_that_is_over_is_a_place(self, fleet: Fleet) -> None:
        await fleet.workers(2)
        first = await fleet.call("acme")
        assert await fleet.calls("acme", 1) == 0
        over = CallEvent(type="call.ended", data=OVER)
        await fleet.store.append(first.id, [over], "worker")
        assert await fleet.calls("acme", 1) == 1

    async def test_a_draining_worker_has_the_places_that_it_uses(self, fleet: Fleet) -> None:
        await fleet.workers(10, active=4, draining=True)
        assert (await fleet.store.load("acme", "switchroom")).places == 4

    async def test_two_gateways_at_once(self, fleet: Fleet, url: str) -> None:
        await fleet.workers(10)
        other = await Database.open(url)
        store = Store(other)
        second = Fleet(store, CallLimits(store, reserve=RESERVE))
        taken = await asyncio.gather(fleet.calls("acme", 15), second.calls("acme", 15))
        await other.close()
        assert sum(taken) == 9

    async def test_humans_of_transfers_count(self, fleet: Fleet) -> None:
        limits = CallLimits(fleet.store, max_concurrent=2)
        fleet.limits = limits
        await fleet.workers(10)
        call = await fleet.call("acme")
        started = CallEvent(type="transfer.started", data={"to": "+1", "mode": "warm"})
        await fleet.store.append(call.id, [started, started], "gateway")
        await limits.check_human("acme")
        assert await fleet.calls("acme", 1) == 0
        with pytest.raises(TooManyRequests):
            await limits.check("acme", with_agent=False)
        again = CallEvent(type="transfer.started", data={"to": "+1", "mode": "warm"})
        await fleet.store.append(call.id, [again], "gateway")
        with pytest.raises(TooManyRequests):
            await limits.check_human("acme")
        await limits.check_human("rival")
        failed = [CallEvent(type="transfer.failed", data={"reason": "busy"}) for _ in range(3)]
        await fleet.store.append(call.id, failed, "worker")
        assert await fleet.calls("acme", 2) == 1


class TestSqlite(OnSqlite, ShareContract):
    pass


class TestPostgres(OnPostgres, ShareContract):
    pass


@pytest.mark.parametrize(
    ("events", "humans"),
    [
        (["warm"], 1),
        (["cold"], 0),
        (["warm", "failed"], 0),
        (["failed", "warm"], 1),
        (["cold", "failed", "warm"], 1),
        (["warm", "failed", "warm", "answered", "accepted"], 1),
    ],
)
def test_how_many_humans_a_timeline_tells_of(events: list[str], humans: int) -> None:
    state = CallState()
    for name in events:
        if name in {"warm", "cold"}:
            event = CallEvent(type="transfer.started", data={"to": "+1", "mode": name})
        else:
            event = CallEvent(type=f"transfer.{name}", data={"reason": "busy"})
        state = fold(state, event, "gateway")
    assert state.human_legs == humans


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[CallPlan]:
    return dial_nothing(monkeypatch, places=10)


@pytest.mark.attack
async def test_over_http(tmp_path: Path, plans: list[CallPlan]) -> None:
    """With the default reserve, one tenant gets nine of ten places and another gets the last."""
    settings = settings_in(tmp_path, sip_outbound_address="h", fair_share_reserve=RESERVE)
    async with running(settings) as gateway:

        async def codes(tenant: str, headers: dict[str, str], wanted: int) -> list[str | None]:
            agent = await make_agent(gateway, tenant)
            await make_number(gateway, tenant, agent)
            body = {"agentId": agent.id, "toNumber": TO}
            answers = [await post(gateway, body, headers) for _ in range(wanted)]
            return [None if status == 200 else told["error"]["code"] for status, told in answers]

        assert await codes("acme", ACME, 11) == [None] * 9 + ["CONCURRENCY_LIMIT"] * 2
        assert await codes("rival", RIVAL, 1) == [None]
        assert len(plans) == 10
        assert await _web(gateway) == (429, "CONCURRENCY_LIMIT")


async def _web(gateway: Running) -> tuple[int, str]:
    agent = await make_agent(gateway)
    body = {"agentId": agent.id}
    async with gateway.http.post("/v1/calls/web", json=body, headers=ACME) as response:
        return response.status, (await response.json())["error"]["code"]
