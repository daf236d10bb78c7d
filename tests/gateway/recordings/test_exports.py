"""Exports of recordings, in the test's own process, to files and to a real S3-speaking server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from core.errors import Unavailable
from core.models import new_id
from gateway.keys import EXPORTS
from gateway.recordings import destinations
from gateway.recordings import exporter as exporter_module
from gateway.recordings.destinations import (
    GuardedBucket,
    ours,
)
from gateway.store.recordings.exports import LEASE, MAX_WAITING
from tests.conftest import ACME, RIVAL, operator
from tests.recordings.test_store import put, whole
from tests.support.export_rig import (
    Rig,
    nowhere,
    rig_in,
)
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

pytestmark = pytest.mark.store


@pytest.fixture
async def rig(
    tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rig]:
    monkeypatch.setattr(exporter_module, "JOBS", 0)
    async with rig_in(tmp_path, s3_server) as rig:
        yield rig


async def test_a_tenants_recordings_go_to_its_own_bucket(rig: Rig) -> None:
    keys = {await rig.recorded() for _ in range(3)}
    await rig.recorded("rival")
    status, job = await rig.asked(destination=rig.own())
    assert status == 202
    assert (job["status"], job["total"], job["done"]) == ("queued", 3, 0)
    assert SECRET_KEY not in str(job)
    kept = await rig.sealed(job["id"])
    assert kept is not None and SECRET_KEY not in kept
    assert await rig.exporter.step()
    job = await rig.progress(job["id"])
    assert (job["status"], job["total"], job["done"], job["failed"]) == ("completed", 3, 3, 0)
    assert rig.files("mine") == keys
    # They are plain there, and the credentials are forgotten.
    for key in keys:
        plain = await whole(rig.stores.of(None), key)
        assert (rig.server.folder / rig.bucket / "mine" / key).read_bytes() == plain
        call_id = Path(key).stem
        events = await rig.gateway.store.events(call_id)
        assert [event.data for event in events if event.type == "recording.exported"] == [
            {"job": job["id"]}
        ]
    assert await rig.sealed(job["id"]) is None
    assert not await rig.exporter.step()


async def test_the_same_export_again_is_done_at_once(rig: Rig) -> None:
    await rig.recorded()
    for _ in range(2):
        _, job = await rig.asked(destination=rig.own())
        await rig.exporter.step()
        assert (await rig.progress(job["id"]))["done"] == 1


async def test_other_content_is_not_replaced(rig: Rig) -> None:
    key, other = await rig.recorded(), await rig.recorded()
    path = rig.server.folder / rig.bucket / "mine" / key
    await put(ours(f"s3://{rig.bucket}/mine", rig.settings), key, b"other")
    _, job = await rig.asked(destination=rig.own())
    await rig.exporter.step()
    job = await rig.progress(job["id"])
    assert (job["status"], job["done"], job["failed"]) == ("completed", 1, 1)
    assert path.read_bytes() == b"other"
    assert rig.files("mine") == {key, other}


async def test_a_recording_that_is_lost_does_not_stop_the_others(rig: Rig) -> None:
    await rig.recorded(stored=False)
    await rig.recorded()
    _, job = await rig.asked(destination=rig.own())
    await rig.exporter.step()
    job = await rig.progress(job["id"])
    assert (job["status"], job["done"], job["failed"]) == ("completed", 1, 1)


async def test_a_damaged_recording_does_not_stop_the_others(rig: Rig) -> None:
    await rig.recorded(sha256="0" * 64)
    key = await rig.recorded()
    _, job = await rig.asked(destination=rig.own())
    await rig.exporter.step()
    job = await rig.progress(job["id"])
    assert (job["status"], job["done"], job["failed"]) == ("completed", 1, 1)
    assert rig.files("mine") == {key}


@pytest.mark.attack
async def test_a_tenant_learns_nothing_of_our_store_that_is_away(rig: Rig) -> None:
    await rig.recorded()
    rig.away(None)
    ours_too = "s3://exports/ours/acme"
    for destination in (rig.own(), ours_too):
        _, job = await rig.asked(destination=destination)
        await rig.exporter.step()
        failure = (await rig.progress(job["id"]))["failure"]
        assert failure == "the store of recordings cannot be read"


@pytest.mark.attack
async def test_a_tenant_learns_nothing_of_our_destination_that_is_away(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.recorded()
    monkeypatch.setattr(exporter_module, "ours", lambda *_: nowhere())
    _, job = await rig.asked(destination="s3://exports/ours/acme")
    await rig.exporter.step()
    assert (await rig.progress(job["id"]))["failure"] == "the destination cannot be reached"


async def test_a_region_that_is_away_does_not_stop_the_others(rig: Rig) -> None:
    moment = rig.gateway.clock() - timedelta(hours=1)
    keys = [
        await rig.recorded(region=region, stored_at=moment + timedelta(minutes=minute))
        for minute, region in enumerate([None, "eu", None, "eu", None, "eu", None])
    ]
    rig.away("eu")
    _, job = await rig.asked(destination=rig.own())
    await rig.exporter.step()
    job = await rig.progress(job["id"])
    assert (job["status"], job["done"], job["failed"]) == ("running", 4, 0)
    assert job["failure"] == "the store of recordings of the region eu cannot be read"
    assert rig.files("mine") == set(keys[::2])
    # It comes back, and goes again after one recording.
    moved = rig.gateway.app[EXPORTS].advance
    rig.back("eu")

    async def advance(*args: Any, **options: Any) -> Any:
        rig.away("eu")
        return await moved(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.gateway.app[EXPORTS], "advance", advance)
        rig.gateway.clock.forward(timedelta(seconds=31))
        await rig.exporter.step()
    assert (await rig.progress(job["id"]))["done"] == 5
    rig.back("eu")
    rig.gateway.clock.forward(timedelta(seconds=31))
    await rig.exporter.step()
    job = await rig.progress(job["id"])
    assert (job["status"], job["done"], job["failed"]) == ("completed", 7, 0)
    assert rig.files("mine") == set(keys)


async def test_a_region_that_stays_away_fails_the_job_at_last(rig: Rig) -> None:
    await rig.recorded(region="eu", stored_at=rig.gateway.clock() - timedelta(hours=1))
    await rig.recorded()
    rig.away("eu")
    _, job = await rig.asked(destination=rig.own())
    for _ in range(30):
        await rig.exporter.step()
        rig.gateway.clock.forward(timedelta(hours=1))
    job = await rig.progress(job["id"])
    assert (job["status"], job["done"]) == ("failed", 1)
    assert job["failure"] == "the store of recordings of the region eu cannot be read"


async def test_the_time_chooses(rig: Rig) -> None:
    moment = rig.gateway.clock()
    for hours in range(4):
        await rig.recorded(stored_at=moment - timedelta(hours=hours))
    _, job = await rig.asked(
        destination=rig.own(),
        since=(moment - timedelta(hours=2)).isoformat(),
        until=moment.isoformat(),
    )
    await rig.exporter.step()
    assert (await rig.progress(job["id"]))["done"] == 2
    status, _ = await rig.asked(
        destination=rig.own(),
        since=moment.isoformat(),
        until=(moment - timedelta(hours=2)).isoformat(),
    )
    assert status == 422


async def test_below_our_own_addresses(rig: Rig, tmp_path: Path) -> None:
    key = await rig.recorded()
    _, job = await rig.asked(destination="s3://exports/ours/acme")
    await rig.exporter.step()
    assert (await rig.progress(job["id"]))["done"] == 1
    assert (rig.server.folder / "exports" / "ours" / "acme" / key).is_file()
    destination = f"file://{tmp_path}/exports/all"
    status, refused = await rig.asked(destination=destination)
    assert (status, refused["error"]["code"]) == (403, "EXPORT_DESTINATION_NOT_ALLOWED")
    status, job = await rig.asked(destination=destination, headers=operator())
    assert status == 202
    await rig.exporter.step()
    assert (tmp_path / "exports" / "all" / key).is_file()


async def test_a_destination_that_is_no_longer_allowed_gets_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await rig.recorded()
    _, job = await rig.asked(destination="s3://exports/ours/acme")
    without = rig.settings.model_copy(update={"recordings_export_urls": ()})
    monkeypatch.setattr(rig.exporter, "_settings", without)
    await rig.exporter.step()
    job = await rig.progress(job["id"])
    assert (job["status"], job["done"]) == ("failed", 0)
    assert job["failure"] == "the destination is not below RECORDINGS_EXPORT_URLS any more"
    assert not (rig.server.folder / "exports" / "ours" / "acme" / key).exists()


@pytest.mark.parametrize(
    "times",
    [
        {"since": "0001-01-01T00:00:00+14:00"},
        {"until": "0001-01-01T00:00:00+14:00"},
        {"until": "9999-12-31T23:59:59-14:00"},
    ],
)
async def test_a_time_that_is_none_in_utc_is_refused(rig: Rig, times: dict[str, str]) -> None:
    status, _ = await rig.asked(destination=rig.own(), **times)
    assert status == 422
    async with rig.gateway.http.get("/v1/calls", params=times, headers=ACME) as response:
        assert response.status == 422


async def test_another_tenants_job_does_not_exist(rig: Rig) -> None:
    _, job = await rig.asked(destination=rig.own())
    assert (await rig.progress(job["id"], RIVAL))["error"]["code"] == "EXPORT_NOT_FOUND"
    assert (await rig.progress(job["id"], operator()))["id"] == job["id"]


async def test_one_job_per_idempotency_key(rig: Rig) -> None:
    headers = {**ACME, "Idempotency-Key": new_id("key")}
    _, first = await rig.asked(destination=rig.own(), headers=headers)
    _, again = await rig.asked(destination=rig.own(), headers=headers)
    assert again["id"] == first["id"]
    status, _ = await rig.asked(destination=rig.own(secretAccessKey="other"), headers=headers)
    assert status == 409


async def test_a_wrong_secret_fails_the_job(rig: Rig) -> None:
    await rig.recorded()
    _, job = await rig.asked(destination=rig.own(secretAccessKey="wrong"))
    await rig.exporter.step()
    job = await rig.progress(job["id"])
    assert (job["status"], job["failure"]) == ("failed", "the destination answered 403")
    assert await rig.sealed(job["id"]) is None


async def test_a_destination_that_is_away_is_tried_again(rig: Rig) -> None:
    await rig.recorded()
    _, job = await rig.asked(destination=rig.own(endpoint="http://127.0.0.1:9"))
    await rig.exporter.step()
    assert (await rig.progress(job["id"]))["failure"] == "the destination cannot be reached"
    assert not await rig.exporter.step()
    rig.gateway.clock.forward(timedelta(seconds=31))
    assert await rig.exporter.step()
    assert (await rig.progress(job["id"]))["status"] == "running"
    rig.gateway.clock.forward(timedelta(hours=25))
    await rig.exporter.step()
    assert (await rig.progress(job["id"]))["status"] == "failed"


async def test_a_destination_that_drips_is_given_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destinations, "_PATIENCE_S", 0.5)
    over = asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "PUT":
            return web.Response(status=412)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        await over.wait()
        return response

    await rig.recorded()
    async with RawTestServer(answer) as server:
        own = rig.own(endpoint=f"http://127.0.0.1:{server.port}")
        _, job = await rig.asked(destination=own)
        await rig.exporter.step()
        over.set()
    job = await rig.progress(job["id"])
    assert (job["status"], job["failure"]) == ("running", "the destination takes too long")


async def test_a_failure_that_nobody_foresaw_ends_the_job(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.recorded()
    _, job = await rig.asked(destination=rig.own())

    async def broken(*_: Any, **__: Any) -> None:
        raise UnicodeError(f"https://s3?X-Amz-Credential={ACCESS_KEY}")

    monkeypatch.setattr(GuardedBucket, "put_chunks", broken)
    await rig.exporter.step()
    job = await rig.progress(job["id"])
    assert (job["status"], job["failure"]) == ("failed", "the export failed")
    assert await rig.sealed(job["id"]) is None
    assert "an export failed" in caplog.messages
    assert all(ACCESS_KEY not in str(vars(record)) for record in caplog.records)


async def test_a_long_job_survives_a_failure_after_progress(rig: Rig) -> None:
    for _ in range(2):
        await rig.recorded()
    _, made = await rig.asked(destination=rig.own(endpoint="http://127.0.0.1:9"))
    exports = rig.gateway.app[EXPORTS]
    claimed = await exports.claim()
    assert claimed is not None
    lease, job = claimed
    first = (await exports.following(job, 1))[0]
    rig.gateway.clock.forward(timedelta(hours=25))
    await exports.advance(job, lease, first, copied=True)
    rig.gateway.clock.forward(LEASE + timedelta(seconds=1))
    await rig.exporter.step()
    assert (await rig.progress(made["id"]))["status"] == "running"
    rig.gateway.clock.forward(timedelta(hours=25))
    await rig.exporter.step()
    assert (await rig.progress(made["id"]))["status"] == "failed"


async def test_a_job_that_stood_in_the_queue_for_a_day_is_tried_for_a_day(rig: Rig) -> None:
    await rig.recorded()
    _, job = await rig.asked(destination=rig.own(endpoint="http://127.0.0.1:9"))
    rig.gateway.clock.forward(timedelta(hours=25))
    await rig.exporter.step()
    assert (await rig.progress(job["id"]))["status"] == "running"


async def test_another_gateway_goes_on_where_one_was_killed(rig: Rig) -> None:
    moment = rig.gateway.clock() - timedelta(hours=1)
    keys = [
        await rig.recorded(stored_at=moment + timedelta(minutes=minute // 2)) for minute in range(4)
    ]
    _, made = await rig.asked(destination=rig.own())
    exports = rig.gateway.app[EXPORTS]
    claimed = await exports.claim()
    assert claimed is not None
    lease, job = claimed
    first = (await exports.following(job, 10))[0]
    await exports.advance(job, lease, first, copied=True)
    # Killed here. Nobody else takes the job before the lease has expired.
    assert not await rig.exporter.step()
    rig.gateway.clock.forward(LEASE + timedelta(seconds=1))
    assert await rig.exporter.step()
    assert (await rig.progress(made["id"]))["done"] == 4
    assert rig.files("mine") == set(keys) - {first.key}
    # The one that was thought dead changes nothing any more.
    assert await exports.advance(job, lease, first, copied=True) is None
    assert await exports.end(job, lease, "late") is None


async def test_a_recording_copied_twice_is_one_event(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await rig.recorded()
    _, job = await rig.asked(destination=rig.own())

    async def killed(*_: Any, **__: Any) -> None:
        raise Unavailable("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(rig.gateway.app[EXPORTS], "advance", killed)
        with pytest.raises(Unavailable):
            await rig.exporter.step()
    rig.gateway.clock.forward(LEASE + timedelta(seconds=1))
    await rig.exporter.step()
    assert (await rig.progress(job["id"]))["done"] == 1
    events = await rig.gateway.store.events(Path(key).stem)
    assert [event.type for event in events].count("recording.exported") == 1


async def test_one_gateway_has_a_job(rig: Rig) -> None:
    await rig.asked(destination=rig.own())
    exports = rig.gateway.app[EXPORTS]
    claims = await asyncio.gather(*(exports.claim() for _ in range(8)))
    assert sum(claim is not None for claim in claims) == 1


@pytest.mark.attack
async def test_a_silent_destination_holds_up_its_tenant_only(
    tmp_path: Path, s3_server: S3Server
) -> None:
    over, asked = asyncio.Event(), asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        await over.wait()
        return web.Response(status=403)

    async with RawTestServer(answer) as server, rig_in(tmp_path, s3_server) as rig:
        await rig.recorded()
        await rig.recorded("rival")
        for _ in range(exporter_module.JOBS):
            await rig.asked(destination=rig.own(endpoint=f"http://127.0.0.1:{server.port}"))
        await asked.wait()
        _, job = await rig.asked(destination=rig.own(), headers=RIVAL)
        async with asyncio.timeout(15):
            while True:
                if (await rig.progress(job["id"], RIVAL))["status"] == "completed":
                    break
                await asyncio.sleep(0.05)
        over.set()


async def test_a_tenant_has_so_many_jobs(rig: Rig) -> None:
    for _ in range(MAX_WAITING):
        status, _ = await rig.asked(destination=rig.own())
        assert status == 202
    status, refused = await rig.asked(destination=rig.own())
    assert (status, refused["error"]["code"]) == (429, "EXPORT_LIMIT")
    status, _ = await rig.asked(destination=rig.own(), headers=RIVAL)
    assert status == 202
