"""Limits on the calls that a tenant may begin per second, and have in progress."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from core.errors import TooManyRequests
from core.events import ended
from core.models import CallEvent, new_id
from gateway.calls.limits import CallLimits
from gateway.calls.plan import CallPlan
from gateway.store.call_status import Call
from gateway.store.calls import NewCall, Store
from gateway.store.database import Database
from gateway.store.gateways.rates import Rates
from gateway.store.gateways.tables import RateRow
from tests.conftest import ACME, RIVAL
from tests.gateway.api.test_call_create import TO, post
from tests.support.databases import OnPostgres, OnSqlite
from tests.support.inprocess import Running, running, settings_in
from tests.support.numbers import dial_nothing, make_agent, make_number

pytestmark = pytest.mark.store


class Clock:
    def __init__(self) -> None:
        self._now = datetime(2026, 1, 31, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self._now

    def passes(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)


async def opened(url: str) -> AsyncIterator[Store]:
    database = await Database.open(url)
    yield Store(database)
    await database.close()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async for store in opened(f"sqlite:///{tmp_path / 'test.db'}"):
        yield store


def new_call(tenant: str | None = "acme") -> NewCall:
    return NewCall(
        id=new_id("call"),
        auth_id=tenant,
        direction="inbound",
        room_name=new_id("room"),
        participant_identity="caller",
        from_number="+15105550123",
        to_number="+15551234567",
        max_duration_ms=60_000,
        metadata={},
    )


async def insert(limits: CallLimits, tenant: str | None = "acme") -> Call:
    return await limits.insert(new_call(tenant), CallEvent(type="call.queued"))


async def refused(limits: CallLimits, *tenants: str | None, times: int = 1) -> list[int | None]:
    """Return for each call None if it may begin, else the seconds until it may be tried again."""
    return [await _refused(limits, tenant) for tenant in tenants or ("acme",) * times]


async def _refused(limits: CallLimits, tenant: str | None) -> int | None:
    try:
        await limits.take(tenant)
    except TooManyRequests as error:
        assert error.code == "RATE_LIMITED"
        return int(error.headers["Retry-After"])
    return None


class RateContract:
    @pytest.fixture
    async def rates(self, url: str) -> AsyncIterator[Callable[[float], CallLimits]]:
        databases = [await Database.open(url) for _ in range(2)]
        gateways = itertools.cycle(databases)

        def limits(rate: float) -> CallLimits:
            database = next(gateways)
            return CallLimits(
                Store(database), rates=Rates(database, self.clock), calls_per_second=rate
            )

        self.clock = Clock()
        yield limits
        for database in databases:
            await database.close()

    async def test_a_second_s_worth_at_once_then_one_after_the_other(
        self, rates: Callable[[float], CallLimits]
    ) -> None:
        limits = rates(3)
        assert await refused(limits, times=5) == [None, None, None, 1, 1]
        self.clock.passes(0.34)
        assert await refused(limits, times=2) == [None, 1]
        self.clock.passes(3600)
        assert await refused(limits, times=4) == [None, None, None, 1]

    async def test_less_than_one_a_second(self, rates: Callable[[float], CallLimits]) -> None:
        limits = rates(0.1)
        assert await refused(limits, times=2) == [None, 10]
        self.clock.passes(4)
        assert await refused(limits) == [6]
        self.clock.passes(6.1)
        assert await refused(limits, times=2) == [None, 10]

    async def test_each_tenant_has_its_own(self, rates: Callable[[float], CallLimits]) -> None:
        limits = rates(1)
        assert await refused(limits, "acme", "rival", None) == [None] * 3
        assert await refused(limits, "acme", "rival", None) == [1] * 3

    async def test_all_gateways_together(self, rates: Callable[[float], CallLimits]) -> None:
        gateways = [rates(10), rates(10)]
        answers = await asyncio.gather(*(refused(gateways[n % 2]) for n in range(40)))
        assert sum(answer == [None] for answer in answers) == 10

    async def test_a_clock_that_is_behind_gains_nothing(
        self, rates: Callable[[float], CallLimits]
    ) -> None:
        limits = rates(1)
        assert await refused(limits) == [None]
        self.clock.passes(-5)
        assert await refused(limits, times=2) == [1, 1]
        self.clock.passes(6)
        assert await refused(limits, times=2) == [None, 1]

    async def test_full_buckets_are_swept_and_others_kept(
        self, url: str, rates: Callable[[float], CallLimits]
    ) -> None:
        limits = rates(1)
        await refused(limits, *(f"t{number}" for number in range(20)))
        self.clock.passes(2)
        assert await refused(limits, "acme") == [None]
        database = await Database.open(url)
        await Rates(database, self.clock).sweep(1)
        async with database.read() as connection:
            left = (await connection.execute(select(RateRow.owner))).scalars().all()
        await database.close()
        assert left == ["acme"]


class TestRateSqlite(OnSqlite, RateContract):
    pass


class TestRatePostgres(OnPostgres, RateContract):
    pass


async def test_no_limit_is_no_limit(store: Store) -> None:
    limits = CallLimits(store)
    assert await refused(limits, times=1000) == [None] * 1000
    assert len({(await insert(limits)).id for _ in range(5)}) == 5
    await limits.check("acme", with_agent=False)


class ConcurrencyContract:
    @pytest.fixture
    async def store(self, url: str) -> AsyncIterator[Store]:
        async for store in opened(url):
            yield store

    async def test_so_many_and_no_more(self, store: Store) -> None:
        limits = CallLimits(store, max_concurrent=2)
        first = await insert(limits)
        await limits.check("acme", with_agent=False)
        await insert(limits)
        for attempt in (insert(limits), limits.check("acme", with_agent=False)):
            with pytest.raises(TooManyRequests) as caught:
                await attempt
            assert caught.value.code == "CONCURRENCY_LIMIT"
            assert "Retry-After" in caught.value.headers
        for tenant in ("rival", None):
            await insert(limits, tenant)
        over = CallEvent(type="call.ended", data=ended("completed", "user_hangup"))
        await store.append(first.id, [over], "worker")
        await insert(limits)
        assert (await store.load("acme", "switchroom")).legs == 2

    async def test_a_refused_call_leaves_no_trace(self, store: Store) -> None:
        limits = CallLimits(store, max_concurrent=1)
        await insert(limits)
        with pytest.raises(TooManyRequests):
            await insert(limits)
        assert (await store.load("acme", "switchroom")).legs == 1

    async def test_two_gateways_at_once(self, store: Store, url: str) -> None:
        other = await Database.open(url)
        gateways = [CallLimits(one, max_concurrent=7) for one in (store, Store(other))]
        answers = await asyncio.gather(
            *(insert(gateways[n % 2]) for n in range(40)), return_exceptions=True
        )
        await other.close()
        taken = [answer for answer in answers if isinstance(answer, Call)]
        full = [answer for answer in answers if isinstance(answer, TooManyRequests)]
        assert (len(taken), len(full)) == (7, 33)


class TestConcurrencySqlite(OnSqlite, ConcurrencyContract):
    pass


class TestConcurrencyPostgres(OnPostgres, ConcurrencyContract):
    pass


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[CallPlan]:
    return dial_nothing(monkeypatch)


async def codes(gateway: Running, attempts: int, **options: Any) -> list[str | None]:
    agent = await make_agent(gateway)
    await make_number(gateway, agent=agent)
    body = {"agentId": agent.id, "toNumber": TO}
    answers = [await post(gateway, body, **options) for _ in range(attempts)]
    return [answer["error"]["code"] if status != 200 else None for status, answer in answers]


class TestOverHttp:
    async def test_the_rate(self, tmp_path: Path, plans: list[CallPlan]) -> None:
        async with running(
            settings_in(tmp_path, sip_outbound_address="h", calls_per_second=0.01)
        ) as gateway:
            await gateway.worker()
            assert await codes(gateway, 2) == [None, "RATE_LIMITED"]
            assert len(plans) == 1
            agent = await make_agent(gateway, "rival")
            await make_number(gateway, "rival", agent)
            status, _ = await post(gateway, {"agentId": agent.id, "toNumber": TO}, RIVAL)
            assert status == 200, "another tenant's rate is its own"

    async def test_the_number_of_calls(self, tmp_path: Path, plans: list[CallPlan]) -> None:
        async with running(
            settings_in(tmp_path, sip_outbound_address="h", max_concurrent_calls=2)
        ) as gateway:
            await gateway.worker()
            assert await codes(gateway, 3) == [None, None, "CONCURRENCY_LIMIT"]
            over = CallEvent(type="call.ended", data=ended("completed", "user_hangup"))
            await gateway.store.append(plans[0].call_id, [over], "worker")
            assert await codes(gateway, 1) == [None]

    async def test_a_refusal_frees_its_key(self, tmp_path: Path, plans: list[CallPlan]) -> None:
        async with running(
            settings_in(tmp_path, sip_outbound_address="h", max_concurrent_calls=1)
        ) as gateway:
            await gateway.worker()
            agent = await make_agent(gateway)
            await make_number(gateway, agent=agent)
            body = {"agentId": agent.id, "toNumber": TO}
            await post(gateway, body)
            keyed = {**ACME, "Idempotency-Key": "again"}
            assert (await post(gateway, body, keyed))[0] == 429
            over = CallEvent(type="call.ended", data=ended("completed", "user_hangup"))
            await gateway.store.append(plans[0].call_id, [over], "worker")
            assert (await post(gateway, body, keyed))[0] == 200
