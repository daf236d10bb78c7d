"""The jobs that copy recordings, on both databases."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import insert

from core.models import new_id
from gateway.store.credentials import Unreadable, Vault
from gateway.store.database import Database, Scope
from gateway.store.recordings.exports import LEASE, MAX_WAITING, Export, Exports, TooManyExports
from gateway.store.recordings.tables import RecordingRow
from tests.support.clock import Clock
from tests.support.databases import OnPostgres, OnSqlite

pytestmark = pytest.mark.store

KEYS = [Fernet.generate_key().decode() for _ in range(2)]


def job(clock: Clock, auth_id: str | None = "acme") -> Export:
    moment = clock()
    return Export(
        id=new_id("export"),
        auth_id=auth_id,
        since=None,
        until=moment,
        destination="s3://bucket",
        created_at=moment,
        due_at=moment,
    )


async def recorded(database: Database, clock: Clock, number: int, auth_id: str = "acme") -> None:
    async with database.write() as connection:
        await connection.execute(
            insert(RecordingRow).values(
                call_id=f"call_{auth_id}_{number}",
                auth_id=auth_id,
                key=f"{number}.wav",
                format="wav",
                bytes=10**10,
                sha256="0" * 64,
                duration_ms=1,
                encrypted=False,
                # Pairs are stored in the same millisecond.
                stored_at=clock() - timedelta(hours=1) + timedelta(minutes=number // 2),
            )
        )


class Contract:
    async def test_a_job_is_worked_on_by_one_and_resumed(self, url: str) -> None:
        database, clock = await Database.open(url), Clock()
        exports = Exports(database, Vault(KEYS[:1]), clock)
        try:
            for number in range(5):
                await recorded(database, clock, number)
            await recorded(database, clock, 0, "rival")
            made = await exports.add(job(clock), {"secret": "s"})
            assert made.total == 5
            claims = await asyncio.gather(*(exports.claim() for _ in range(6)))
            (claim,) = [claim for claim in claims if claim is not None]
            lease, current = claim
            seen = []
            for _ in range(2):
                (following,) = await exports.following(current, 1)
                seen.append(following.key)
                moved = await exports.advance(current, lease, following, copied=True)
                assert moved is not None
                current = moved
            clock.forward(LEASE - timedelta(seconds=1))
            assert await exports.claim() is None
            assert await exports.renew(current, lease) is not None
            clock.forward(LEASE - timedelta(seconds=1))
            assert await exports.claim() is None
            clock.forward(timedelta(seconds=2))
            again = await exports.claim()
            assert again is not None
            second, current = again
            assert exports.secret(current) == {"secret": "s"}
            assert await exports.advance(current, lease, following, copied=False) is None
            while rest := await exports.following(current, 2):
                seen += [recording.key for recording in rest]
                for recording in rest:
                    moved = await exports.advance(current, second, recording, copied=False)
                    assert moved is not None
                    current = moved
            assert seen == [f"{number}.wav" for number in range(5)]
            await exports.end(current, second, None)
            ended = await exports.find(Scope("acme"), made.id)
            assert ended is not None
            assert (ended.status, ended.done, ended.failed) == ("completed", 2, 3)
            assert ended.sealed is None
            clock.forward(LEASE * 2)
            assert await exports.claim() is None
            assert await exports.find(Scope("rival"), made.id) is None
        finally:
            await database.close()

    async def test_credentials_are_resealed_and_not_shown(self, url: str) -> None:
        database, clock = await Database.open(url), Clock()
        try:
            made = await Exports(database, Vault(KEYS[:1]), clock).add(job(clock), {"secret": "s"})
            await Exports(database, Vault(KEYS[:1]), clock).add(job(clock), None)
            assert await Exports(database, Vault(KEYS[::-1]), clock).reseal() == 1
            exports = Exports(database, Vault(KEYS[1:]), clock)
            found = await exports.find(Scope(None), made.id)
            assert found is not None and found.sealed is not None
            assert exports.secret(found) == {"secret": "s"}
            assert found.sealed not in repr(found)
            with pytest.raises(Unreadable):
                exports.secret(made)
        finally:
            await database.close()

    async def test_no_owner_has_two_workers(self, url: str) -> None:
        database, clock = await Database.open(url), Clock()
        exports = Exports(database, Vault(KEYS[:1]), clock)
        try:
            made = []
            for owner in ("acme", "acme", None, None, "rival"):
                made.append(await exports.add(job(clock, owner), None))
                clock.forward(timedelta(milliseconds=5))
            claims = await asyncio.gather(*(exports.claim() for _ in range(6)))
            claimed = {found.id: (lease, found) for lease, found in filter(None, claims)}
            assert set(claimed) == {made[0].id, made[2].id, made[4].id}
            # Also not with a job of a gateway whose clock is slow.
            slow = job(clock, "rival").model_copy(update={"due_at": clock() - timedelta(hours=1)})
            await exports.add(slow, None)
            assert await exports.claim() is None
            # One that has to wait makes way for the next.
            lease, first = claimed[made[0].id]
            await exports.postpone(first, lease, "away", clock() + timedelta(hours=1))
            following = await exports.claim()
            assert following is not None and following[1].id == made[1].id
            assert await exports.claim() is None
            await exports.end(following[1], following[0], None)
            clock.forward(LEASE * 2)
            again = await exports.claim()
            assert again is not None and again[1].id == slow.id
            clock.forward(timedelta(hours=1))
            ids = {found.id for _, found in filter(None, [await exports.claim() for _ in range(3)])}
            assert ids == {made[0].id, made[2].id, slow.id}
        finally:
            await database.close()

    async def test_an_owner_has_so_many_jobs(self, url: str) -> None:
        database, clock = await Database.open(url), Clock()
        exports = Exports(database, Vault(KEYS[:1]), clock)
        try:
            adding = (exports.add(job(clock), None) for _ in range(MAX_WAITING + 3))
            made = await asyncio.gather(*adding, return_exceptions=True)
            assert sum(isinstance(one, TooManyExports) for one in made) == 3
            await exports.add(job(clock, "rival"), None)
            claimed = await exports.claim()
            assert claimed is not None
            await exports.end(claimed[1], claimed[0], None)
            await exports.add(job(clock), None)
        finally:
            await database.close()


class TestSqlite(OnSqlite, Contract): ...


class TestPostgres(OnPostgres, Contract): ...
