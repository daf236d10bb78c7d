"""Events wake the listeners of other gateways at once on PostgreSQL, and soon on SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text

from core.models import CallEvent, new_id
from gateway.calls.timeline import Timeline
from gateway.store.calls import NewCall, Store
from gateway.store.database import Database
from tests.support.databases import OnPostgres, OnSqlite

pytestmark = pytest.mark.store

_NEVER_S = 3600.0


@asynccontextmanager
async def gateway(url: str, *, poll_s: float) -> AsyncIterator[Timeline]:
    """A gateway's timeline, which looks for others' events by itself every ``poll_s``."""
    database = await Database.open(url)
    timeline, stopping = Timeline(Store(database)), asyncio.Event()
    running = asyncio.create_task(timeline.run(stopping, poll_s=poll_s))
    try:
        yield timeline
    finally:
        running.cancel()
        await asyncio.wait({running})
        await database.close()


@asynccontextmanager
async def call_in(url: str) -> AsyncIterator[tuple[Store, str]]:
    """Another gateway's store with a call."""
    database = await Database.open(url)
    store = Store(database)
    new = NewCall(
        id=new_id("call"),
        auth_id=None,
        direction="inbound",
        room_name=new_id("room"),
        participant_identity="caller",
        from_number=None,
        to_number=None,
        max_duration_ms=60_000,
        metadata={},
    )
    await store.insert_call(new, CallEvent(type="call.queued"))
    yield store, new.id
    await database.close()


async def told(timeline: Timeline, store: Store, call_id: str) -> None:
    """Append events elsewhere until the timeline has heard of one."""
    async with asyncio.timeout(20), timeline.listen(call_id) as news:
        heard = False
        while not heard:
            await store.append(call_id, [CallEvent(type="dtmf.received")], "worker")
            heard = await news.wait(0.5)


class TestPostgres(OnPostgres):
    async def test_another_gateways_event_wakes_at_once(self, url: str) -> None:
        async with call_in(url) as (store, call_id), gateway(url, poll_s=_NEVER_S) as timeline:
            await told(timeline, store, call_id)

    async def test_a_lost_connection_is_made_again(self, url: str) -> None:
        async with call_in(url) as (store, call_id), gateway(url, poll_s=_NEVER_S) as timeline:
            await told(timeline, store, call_id)
            async with store._database.write() as connection:
                ended = await connection.execute(
                    text(
                        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND query LIKE 'LISTEN%'"
                    )
                )
            assert ended.scalar() == 1
            await told(timeline, store, call_id)


class TestSqlite(OnSqlite):
    async def test_another_gateways_event_is_found(self, url: str) -> None:
        async with call_in(url) as (store, call_id), gateway(url, poll_s=0.05) as timeline:
            await told(timeline, store, call_id)
