"""Requests with an Idempotency-Key whose gateway is killed during the dial, or is only slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from sqlalchemy import func, select, update

from core.errors import Unavailable
from core.models import now
from gateway.http.pace import USUAL, Pace
from gateway.keys import DATABASE
from gateway.store.database import Database
from gateway.store.once import LEASE, HeldKey, IdempotencyKeys
from gateway.store.tables import CallRow, IdempotencyRow
from tests.conftest import ACME, RIVAL
from tests.support.calls import request
from tests.support.databases import OnPostgres, OnSqlite
from tests.support.edge import served
from tests.support.gateway_process import killable
from tests.support.inprocess import Running, running, settings_in
from tests.support.livekit_stub import LiveKitStub

pytestmark = [pytest.mark.store, pytest.mark.attack]

DIAL = request("127.0.0.1:9", agent=None)
HEADERS = {**ACME, "Idempotency-Key": "once"}


class HeldDial(LiveKitStub):
    """A LiveKit that receives a dial and answers it only after ``go_on``."""

    def __init__(self) -> None:
        super().__init__()
        self.heard, self.go_on = asyncio.Event(), asyncio.Event()
        self.invites = 0

    def app(self) -> web.Application:
        @web.middleware
        async def hold(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path.endswith("/CreateSIPParticipant"):
                self.invites += 1
                self.heard.set()
                await self.go_on.wait()
            return await handler(request)

        app = super().app()
        app.middlewares.append(hold)
        return app


async def dial(http: aiohttp.ClientSession, **changes: Any) -> tuple[int, Any]:
    options = {"json": DIAL, "headers": HEADERS, **changes}
    async with http.post("/sip/call", **options) as response:
        return response.status, await response.json()


async def in_the_database(database: Database) -> tuple[int, str | None]:
    """Return the number of calls, and the id of the call that the key names."""
    async with database.read() as connection:
        calls = await connection.scalar(select(func.count()).select_from(CallRow))
        return calls or 0, await connection.scalar(select(IdempotencyRow.call_id))


async def let_the_lease_lapse(database: Database) -> None:
    """Move the end of the key's lease into the past."""
    async with database.write() as connection:
        past = now() - timedelta(seconds=1)
        await connection.execute(update(IdempotencyRow).values(leased_until=past))


async def waiting(twins: list[asyncio.Task[Any]], looks: asyncio.Queue[None]) -> None:
    """Wait until the twins have looked at the key repeatedly; none of them may be done."""
    while not looks.empty():
        looks.get_nowait()
    async with asyncio.timeout(20):
        for _ in range(3 * len(twins)):
            await looks.get()
    assert not any(twin.done() for twin in twins)


class KilledContract:
    async def test_killed_while_twins_wait(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Twins that wait at another gateway all get the call's id, and none of them dials."""
        looks: asyncio.Queue[None] = asyncio.Queue()

        async def look(keys: IdempotencyKeys, *asked: Any) -> Any:
            looks.put_nowait(None)
            return await original(keys, *asked)

        original = IdempotencyKeys.look
        monkeypatch.setattr(IdempotencyKeys, "look", look)
        livekit = HeldDial()
        async with (
            served(livekit.app()) as edge,
            killable(tmp_path, url, livekit_url=f"http://127.0.0.1:{edge.port}") as doomed,
        ):
            await doomed.start()
            async with (
                aiohttp.ClientSession(doomed.url) as http,
                running(doomed.settings, pace=Pace(twin_wait_s=60)) as other,
                asyncio.TaskGroup() as group,
            ):
                first = group.create_task(cut_off(http))
                await asyncio.wait_for(livekit.heard.wait(), 20)
                twins = [group.create_task(dial(other.http)) for _ in range(4)]
                await waiting(twins, looks)
                await doomed.process.kill()
                await first
                await waiting(twins, looks)
                database = other.app[DATABASE]
                count, call_id = await in_the_database(database)
                await let_the_lease_lapse(database)
                answers = [await twin for twin in twins]
                answers.append(await dial(other.http))
                assert count == 1
                assert call_id is not None
                for status, body in answers:
                    assert (status, body["code"]) == (500, "OUTCOME_UNKNOWN")
                    assert body["call_id"] == call_id
                assert livekit.invites == 1
                assert (await in_the_database(database))[0] == 1
                async with other.http.get(f"/v1/calls/{call_id}", headers=ACME) as response:
                    assert response.status == 200
                # Keys are per tenant: another tenant's request with this key is a new one.
                livekit.go_on.set()
                status, body = await dial(
                    other.http,
                    json={**DIAL, "room_name": "rivals"},
                    headers={**RIVAL, "Idempotency-Key": "once"},
                )
                assert status == 200
                assert body["call_id"] != call_id


async def cut_off(http: aiohttp.ClientSession) -> None:
    with pytest.raises(aiohttp.ClientError):
        await dial(http)


class TestSqlite(OnSqlite, KilledContract):
    pass


class TestPostgres(OnPostgres, KilledContract):
    pass


# --- in this process: requests that are slow, not dead


class Slow:
    """A gateway, its LiveKit and its idempotency keys."""

    def __init__(self, gateway: Running, livekit: HeldDial) -> None:
        self.gateway, self.livekit = gateway, livekit
        self.keys = gateway.store.keys


@asynccontextmanager
async def slow(folder: Path, pace: Pace = USUAL) -> AsyncIterator[Slow]:
    livekit = HeldDial()
    async with served(livekit.app()) as edge:
        url = f"http://127.0.0.1:{edge.port}"
        settings = settings_in(folder, livekit_url=url, sip_allow_private=True)
        async with running(settings, pace=pace) as gateway:
            try:
                yield Slow(gateway, livekit)
            finally:
                livekit.go_on.set()


async def test_a_long_request_keeps_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with slow(tmp_path, Pace(renew_key_s=0.01, twin_wait_s=0)) as rig:
        renewed = asyncio.Event()
        original = rig.keys.renew

        async def renew(held: HeldKey) -> bool:
            kept = await original(held)
            renewed.set()
            return kept

        monkeypatch.setattr(rig.keys, "renew", renew)
        first = asyncio.create_task(dial(rig.gateway.http))
        await asyncio.wait_for(rig.livekit.heard.wait(), 10)
        for _ in range(4):
            rig.gateway.clock.forward(LEASE * 0.9)
            for _ in range(2):  # the second renewal began after the clock moved
                renewed.clear()
                await asyncio.wait_for(renewed.wait(), 10)
            status, body = await dial(rig.gateway.http)
            assert (status, body["code"]) == (409, "IDEMPOTENCY_IN_PROGRESS")
        rig.livekit.go_on.set()
        status, body = await first
        assert status == 200
        assert await dial(rig.gateway.http) == (200, body)
        assert rig.livekit.invites == 1


async def test_an_answer_that_cannot_be_kept_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The phone rings, so the client is answered; a retry gets an error with the call's id."""

    async def finish(_held: HeldKey, _status: int, _body: str) -> None:
        raise Unavailable("away", code="STORE_UNAVAILABLE")

    async with slow(tmp_path) as rig:
        monkeypatch.setattr(rig.keys, "finish", finish)
        rig.livekit.go_on.set()
        status, body = await dial(rig.gateway.http)
        assert status == 200
        rig.gateway.clock.forward(LEASE)
        again, unknown = await dial(rig.gateway.http)
        assert (again, unknown["code"]) == (500, "OUTCOME_UNKNOWN")
        assert unknown["call_id"] == body["call_id"]
        assert rig.livekit.invites == 1


async def test_a_caller_that_went_away_leaves_nothing_undecided(tmp_path: Path) -> None:
    async with slow(tmp_path) as rig:
        first = asyncio.create_task(dial(rig.gateway.http))
        await asyncio.wait_for(rig.livekit.heard.wait(), 10)
        first.cancel()
        await asyncio.wait({first})
        rig.livekit.go_on.set()
        status, body = await dial(rig.gateway.http)
        assert (status, body["status"]) == (200, "initiated")
        assert rig.livekit.invites == 1
