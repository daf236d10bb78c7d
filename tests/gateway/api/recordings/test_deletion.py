"""DELETE, retention, and the worker's reports: what is deleted is gone, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from core.models import CallEvent
from core.recordings.config import Region, TenantRecordings
from core.settings import Settings
from gateway.calls.timeline import Watch
from gateway.keys import RECORDINGS, TIMELINE
from gateway.recordings.retention import Retention
from gateway.store.database import Scope
from recordings.errors import StoreRefused, StoreUnavailable
from recordings.store import RecordingStore
from tests.conftest import ACME, RIVAL, operator
from tests.support.inprocess import Running, running, settings_in
from tests.support.recordings import Recorded, ask, end, recorded_call, stored_call

pytestmark = pytest.mark.store

BY_API, BY_RETENTION = [{"by": "api"}], [{"by": "retention"}]


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_in(tmp_path)) as started:
        yield started


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that takes the store of recordings away."""

    async def fails(_store: RecordingStore, _key: str) -> None:
        raise StoreUnavailable("away")

    return lambda: monkeypatch.setattr(RecordingStore, "delete", fails)


async def gone(recorded: Recorded, folder: Path) -> None:
    assert not recorded.file(folder).exists()
    answer = await recorded.get()
    assert (answer.status, answer.code) == (410, "RECORDING_DELETED")


class TestDelete:
    async def test_the_object_is_gone(self, gateway: Running, tmp_path: Path) -> None:
        recorded, other = await stored_call(gateway, tmp_path), await stored_call(gateway, tmp_path)
        answer = await recorded.delete()
        assert (answer.status, answer.json()) == (200, {"success": True})
        await gone(recorded, tmp_path)
        assert await recorded.events("recording.deleted") == BY_API
        again = await recorded.delete()
        assert (again.status, again.code) == (410, "RECORDING_DELETED")
        assert await recorded.events("recording.deleted") == BY_API
        assert (await other.get()).status == 200

    async def test_by_the_operator(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await stored_call(gateway, tmp_path)
        assert (await ask(gateway, "DELETE", recorded.path, operator())).status == 200
        await gone(recorded, tmp_path)

    async def test_at_the_same_time(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await stored_call(gateway, tmp_path)
        answers = await asyncio.gather(*(recorded.delete() for _ in range(5)))
        assert {answer.status for answer in answers} <= {200, 410}
        assert [answer.status for answer in answers].count(200) == 1
        assert await recorded.events("recording.deleted") == BY_API

    async def test_nothing_is_said_while_the_store_is_away(
        self, gateway: Running, tmp_path: Path, away: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recorded = await stored_call(gateway, tmp_path)
        away()
        answer = await recorded.delete()
        assert (answer.status, answer.code) == (503, "RECORDINGS_UNAVAILABLE")
        assert await recorded.events("recording.deleted") == []
        assert (await recorded.get()).status == 200
        monkeypatch.undo()
        assert (await recorded.delete()).status == 200

    async def test_a_call_without_one(self, gateway: Running) -> None:
        call = await gateway.call()
        answer = await ask(gateway, "DELETE", f"/v1/calls/{call.id}/recording", ACME)
        assert (answer.status, answer.code) == (404, "RECORDING_NOT_FOUND")

    async def test_before_it_is_stored(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await recorded_call(gateway)
        await end_of_recording(recorded)
        assert (await recorded.delete()).status == 200
        assert await recorded.events("recording.deleted") == BY_API
        await recorded.put(tmp_path)
        assert (await recorded.report())[0] == 200
        await gone(recorded, tmp_path)

    @pytest.mark.parametrize("told", [(), ("recording.started", "recording.failed")])
    async def test_one_that_nobody_expects(
        self, gateway: Running, tmp_path: Path, told: tuple[str, ...]
    ) -> None:
        """Its worker was killed; or it failed, and the operator repeats its upload later."""
        recorded = await recorded_call(gateway)
        for type in told:
            await recorded.tell(CallEvent(type=type))
        await end(recorded)
        assert (await recorded.get()).status == 404
        assert (await recorded.delete()).status == 200
        await recorded.put(tmp_path)
        assert (await recorded.report())[0] == 200
        await gone(recorded, tmp_path)

    async def test_before_it_is_stored_in_the_region_of_that_time(self, tmp_path: Path) -> None:
        def settings(region: Region) -> Settings:
            return settings_in(
                tmp_path,
                recordings_url_eu=f"file://{tmp_path}/recordings",
                recordings_url_us=f"file://{tmp_path}/us",
                recordings_tenants={"acme": TenantRecordings(region=region)},
            )

        async with running(settings("eu")) as before:
            recorded = await recorded_call(before)
        async with running(settings("us")) as gateway:
            recorded = replace(recorded, gateway=gateway)
            assert (await recorded.delete()).status == 200
            await recorded.put(tmp_path)
            assert (await recorded.report(region="eu"))[0] == 200
            await gone(recorded, tmp_path)
        assert not (tmp_path / "us").exists()

    async def test_an_upload_just_before_the_row(
        self, gateway: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recorded = await recorded_call(gateway)
        rows = gateway.app[RECORDINGS].rows
        deleted = rows.deleted

        async def late(*args: Any) -> bool:
            monkeypatch.undo()
            await recorded.put(tmp_path)
            await recorded.report()
            return await deleted(*args)

        monkeypatch.setattr(rows, "deleted", late)
        assert (await recorded.delete()).status == 200
        await gone(recorded, tmp_path)
        assert await recorded.events("recording.deleted") == BY_API

    async def test_nothing_is_said_while_the_disk_is_not_mounted(
        self, gateway: Running, tmp_path: Path
    ) -> None:
        recorded = await stored_call(gateway, tmp_path)
        (tmp_path / "recordings").rename(tmp_path / "unplugged")
        answers = await recorded.delete(), await recorded.get()
        assert [answer.code for answer in answers] == ["RECORDINGS_UNAVAILABLE"] * 2
        assert await recorded.events("recording.deleted") == []
        (tmp_path / "recordings").rmdir()
        (tmp_path / "unplugged").rename(tmp_path / "recordings")
        assert (await recorded.delete()).status == 200
        await gone(recorded, tmp_path)

    async def test_a_repeated_upload_of_a_deleted_one_is_deleted(
        self, gateway: Running, tmp_path: Path
    ) -> None:
        recorded = await stored_call(gateway, tmp_path)
        await recorded.delete()
        await recorded.put(tmp_path)
        await recorded.report()
        await gone(recorded, tmp_path)
        assert await recorded.events("recording.deleted") == BY_API

    async def test_an_upload_between_object_and_row_is_deleted(
        self, gateway: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recorded = await stored_call(gateway, tmp_path)
        rows = gateway.app[RECORDINGS].rows
        deleted = rows.deleted

        async def late(*args: Any) -> bool:
            await recorded.put(tmp_path)
            await recorded.report()
            return await deleted(*args)

        monkeypatch.setattr(rows, "deleted", late)
        await recorded.delete()
        await gone(recorded, tmp_path)


async def end_of_recording(recorded: Recorded) -> None:
    await recorded.tell(CallEvent(type="recording.started", data={"format": "wav"}))
    await end(recorded)


class TestReport:
    async def test_the_same_again_changes_nothing(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await stored_call(gateway, tmp_path)
        row = await gateway.app[RECORDINGS].rows.find(Scope("acme"), recorded.call.id)
        gateway.clock.forward(timedelta(hours=1))
        await recorded.report()
        assert await gateway.app[RECORDINGS].rows.find(Scope("acme"), recorded.call.id) == row
        assert await gateway.app[RECORDINGS].rows.find(Scope("rival"), recorded.call.id) is None
        assert len(await recorded.events("recording.stored")) == 1

    @pytest.mark.attack
    async def test_a_worker_names_its_own_calls_object_only(
        self, gateway: Running, tmp_path: Path
    ) -> None:
        theirs, recorded = await stored_call(gateway, tmp_path), await recorded_call(gateway)
        for changes in (
            {"key": theirs.key},
            {"key": "../" + recorded.key},
            {"key": recorded.key + "/../x"},
            {"key": 5},
            {"sha256": "../etc"},
            {"bytes": -1},
            {"durationMs": "long"},
        ):
            status, body = await recorded.report(**changes)
            assert status == 422, body
        assert await recorded.events("recording.stored") == []
        assert (await recorded.get()).status == 425
        assert (await theirs.get()).status == 200

    async def test_a_call_that_is_not_recorded_has_no_recording(
        self, gateway: Running, tmp_path: Path
    ) -> None:
        call = await gateway.call()  # its agent does not record
        recorded = Recorded(gateway, call, f"t-acme/{call.id}.wav", b"")
        assert (await recorded.report())[0] == 422


class TestRetention:
    @pytest.mark.parametrize(
        ("agent", "tenant", "default", "days"),
        [(3, 5, 1, 3), (5, 3, 1, 3), (None, 4, 1, 4), (4, None, 1, 4), (None, None, 2, 2)],
    )
    async def test_the_days(
        self,
        tmp_path: Path,
        agent: int | None,
        tenant: int | None,
        default: int,
        days: int,
    ) -> None:
        settings = settings_in(
            tmp_path,
            recordings_retention_days=default,
            recordings_tenants={"acme": TenantRecordings(retention_days=tenant)},
        )
        async with running(settings) as gateway:
            recorded = await stored_call(gateway, tmp_path, retention_days=agent)
            retention = Retention(gateway.app[RECORDINGS])
            gateway.clock.forward(timedelta(days=days, minutes=-1))
            assert await retention.round() == 0
            assert (await recorded.get()).status == 200
            assert (await recorded.shown())["recordingAvailable"]
            gateway.clock.forward(timedelta(minutes=2))
            # Also before the object is deleted, which a store that is away delays.
            answer = await recorded.get()
            assert (answer.status, answer.code) == (410, "RECORDING_DELETED")
            assert not (await recorded.shown())["recordingAvailable"]
            assert await retention.round() == 1
            await gone(recorded, tmp_path)
            assert await recorded.events("recording.deleted") == BY_RETENTION

    async def test_one_whose_time_is_over_can_be_deleted(
        self, gateway: Running, tmp_path: Path
    ) -> None:
        recorded = await stored_call(gateway, tmp_path, retention_days=1)
        gateway.clock.forward(timedelta(days=1))
        assert (await recorded.get()).status == 410
        assert (await recorded.delete()).status == 200
        assert await recorded.events("recording.deleted") == BY_API
        assert not recorded.file(tmp_path).exists()

    async def test_nobody_says_days(self, gateway: Running, tmp_path: Path) -> None:
        await stored_call(gateway, tmp_path)
        gateway.clock.forward(timedelta(days=36_500))
        assert await Retention(gateway.app[RECORDINGS]).round() == 0

    async def test_in_batches_and_with_two_gateways(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path, recordings_retention_days=1)
        async with running(settings) as one, running(settings, clock=one.clock) as two:
            all_ = [await stored_call(one, tmp_path) for _ in range(7)]
            one.clock.forward(timedelta(days=2))
            rounds = (Retention(gateway.app[RECORDINGS], batch=3).round() for gateway in (one, two))
            assert sum(await asyncio.gather(*rounds)) == 7
            for recorded in all_:
                await gone(recorded, tmp_path)
                assert await recorded.events("recording.deleted") == BY_RETENTION

    async def test_a_store_that_is_away_is_tried_again(
        self, tmp_path: Path, away: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with running(settings_in(tmp_path, recordings_retention_days=1)) as gateway:
            recorded = await stored_call(gateway, tmp_path)
            gateway.clock.forward(timedelta(days=2))
            retention = Retention(gateway.app[RECORDINGS])
            away()
            assert await retention.round() == 0
            assert await recorded.events("recording.deleted") == []
            monkeypatch.undo()
            assert await retention.round() == 1
            await gone(recorded, tmp_path)

    async def test_one_that_is_refused_delays_no_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with running(settings_in(tmp_path, recordings_retention_days=1)) as gateway:
            locked = await stored_call(gateway, tmp_path)
            gateway.clock.forward(timedelta(seconds=1))
            others = [await stored_call(gateway, tmp_path) for _ in range(3)]
            delete, attempts = RecordingStore.delete, []

            async def refuses(store: RecordingStore, key: str) -> None:
                attempts.append(key)
                if key == locked.key:
                    raise StoreRefused("locked")
                await delete(store, key)

            monkeypatch.setattr(RecordingStore, "delete", refuses)
            gateway.clock.forward(timedelta(days=2))
            retention = Retention(gateway.app[RECORDINGS], batch=2)
            assert await retention.round() == 3
            for other in others:
                await gone(other, tmp_path)
            attempts.clear()
            tried = []
            for _ in range(9):
                assert await retention.round() == 0
                tried.append(len(attempts))
            assert tried == [1, 1, 2, 2, 2, 2, 3, 3, 3]
            monkeypatch.undo()
            assert sum([await retention.round() for _ in range(8)]) == 1
            await gone(locked, tmp_path)

    async def test_a_file_that_cannot_be_deleted_delays_no_other(self, tmp_path: Path) -> None:
        async with running(settings_in(tmp_path, recordings_retention_days=1)) as gateway:
            stuck = await stored_call(gateway, tmp_path)
            gateway.clock.forward(timedelta(seconds=1))
            other = await stored_call(gateway, tmp_path)
            stuck.file(tmp_path).unlink()
            (stuck.file(tmp_path) / "x").mkdir(parents=True)
            gateway.clock.forward(timedelta(days=2))
            assert await Retention(gateway.app[RECORDINGS]).round() == 1
            await gone(other, tmp_path)

    async def test_a_store_that_cannot_be_opened_delays_no_others(self, tmp_path: Path) -> None:
        settings = settings_in(
            tmp_path,
            recordings_url_eu=f"file://{tmp_path}/eu",
            recordings_retention_days=1,
        )
        (tmp_path / "eu").write_text("not a folder")
        async with running(settings) as gateway:
            first = await recorded_call(gateway)
            assert (await first.report(region="eu"))[0] == 200
            gateway.clock.forward(timedelta(seconds=1))
            second = await stored_call(gateway, tmp_path)
            answer = await first.get()
            assert (answer.status, answer.code) == (503, "RECORDINGS_UNAVAILABLE")
            gateway.clock.forward(timedelta(days=2))
            assert await Retention(gateway.app[RECORDINGS]).round() == 1
            await gone(second, tmp_path)

    async def test_the_gateway_runs_it(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path, recordings_retention_days=1)
        async with running(settings) as first:
            recorded = await stored_call(first, tmp_path)
            first.clock.forward(timedelta(days=2))
            async with running(settings, clock=first.clock):
                watch = Watch(recorded.call.id, first.store, first.app[TIMELINE])
                assert await watch.until("recording.deleted", timeout_s=20)
                await gone(recorded, tmp_path)

    async def test_a_rival_deletes_nothing(self, gateway: Running, tmp_path: Path) -> None:
        recorded = await stored_call(gateway, tmp_path)
        assert (await ask(gateway, "DELETE", recorded.path, RIVAL)).status == 404
        assert (await recorded.get()).status == 200
