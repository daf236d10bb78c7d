"""Copy recordings to their jobs' destinations, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import traceback
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta

import aiohttp

from core.errors import AppError, Unavailable
from core.models import CallEvent
from core.recordings.config import Region
from core.settings import Settings
from core.tasks.alongside import alongside
from gateway.calls.timeline import Timeline
from gateway.recordings.destinations import Destination, GuardedBucket, allowed, ours
from gateway.store.credentials import Unreadable
from gateway.store.recordings.exports import LEASE, Export, Exports, ToExport
from recordings.errors import AlreadyThere, StoreError, StoreRefused, StoreUnavailable
from recordings.store import checked
from recordings.stores import Stores

log = logging.getLogger(__name__)

JOBS = 2
"""Of one gateway at a time."""
POLL_S = 2.0
_BATCH = 100
_RETRY = timedelta(seconds=30)
_GIVE_UP = timedelta(hours=24)


class _SourceAway(StoreUnavailable):
    """Our store cannot be read. A tenant reads the text, and no more of the cause."""

    def __init__(self, region: Region | None) -> None:
        place = "" if region is None else f" of the region {region}"
        super().__init__(f"the store of recordings{place} cannot be read")


class Exporter:
    def __init__(
        self,
        *,
        exports: Exports,
        stores: Stores,
        timeline: Timeline,
        settings: Settings,
        session: aiohttp.ClientSession,
        clock: Callable[[], datetime],
    ) -> None:
        self._exports = exports
        self._stores = stores
        self._timeline = timeline
        self._settings = settings
        self._session = session
        self._clock = clock
        self.bell = asyncio.Event()
        """Set when a job may be due."""

    async def run(self) -> None:
        """Work on jobs until cancelled; what is cut off goes on when its lease expires."""
        async with asyncio.TaskGroup() as group:
            for _ in range(JOBS):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            self.bell.clear()
            try:
                if await self.step():
                    continue
            except AppError as error:
                log.warning("exports have to wait", extra={"problem": error.code})
            except Exception:
                log.exception("exports have to wait")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self.bell.wait()

    async def step(self) -> bool:
        """Work on one job that is due. False: there is none."""
        claimed = await self._exports.claim()
        if claimed is None:
            return False
        lease, job = claimed
        try:
            async with alongside(self._renew(job, lease), "lease"):
                await self._copy_all(job, lease)
        except Unreadable:
            await self._exports.end(job, lease, "SECRETS_KEY lacks the credentials' key")
        except StoreUnavailable as error:
            await self._wait(job, lease, str(error))
        except StoreRefused as error:
            await self._exports.end(job, lease, str(error))
        except Unavailable:  # our database
            raise
        except Exception as error:
            # The error's text may hold the signed address of a request.
            trace = "".join(traceback.format_tb(error.__traceback__))
            problem = type(error).__name__
            log.error(
                "an export failed", extra={"export_id": job.id, "problem": problem, "trace": trace}
            )
            await self._exports.end(job, lease, "the export failed")
        return True

    async def _copy_all(self, job: Export, lease: str) -> None:
        destination = self._destination(job)
        away: dict[Region | None, _SourceAway] = {}
        while following := await self._exports.following(job, _BATCH, away):
            for recording in following:
                if recording.region in away:
                    continue
                try:
                    copied = await self._copy(job, recording, destination)
                except _SourceAway as error:
                    away[recording.region] = error
                    moved = await self._exports.leave(job, lease, recording.region)
                else:
                    moved = await self._exports.advance(job, lease, recording, copied=copied)
                if moved is None:
                    return  # another gateway has the job
                job = moved
        if away:
            raise next(iter(away.values()))
        await self._exports.end(job, lease, None)

    async def _wait(self, job: Export, lease: str, failure: str) -> None:
        """Let the job wait, or end it if it has waited for too long."""
        current = await self._exports.renew(job, lease)
        if current is None:
            return  # another gateway has the job
        moment = self._clock()
        if moment - (current.progressed_at or current.created_at) > _GIVE_UP:
            await self._exports.end(job, lease, failure)
        else:
            await self._exports.postpone(job, lease, failure, moment + _RETRY)

    def _destination(self, job: Export) -> Destination:
        secret = self._exports.secret(job)
        if secret is None:
            url = job.destination.partition("?")[0]
            address = allowed(url, self._settings, operator=job.auth_id is None)
            if address is None:
                raise StoreRefused("the destination is not below RECORDINGS_EXPORT_URLS any more")
            return ours(address, self._settings)
        return GuardedBucket.opened(secret, self._session)

    async def _copy(self, job: Export, recording: ToExport, destination: Destination) -> bool:
        for each in (recording, *await self._exports.more_of(recording)):
            if not await self._copy_object(job, each, destination):
                return False
        # The same event again, after a crash, is one event.
        name = hashlib.sha256(f"{job.id} {recording.call_id}".encode()).hexdigest()[:24]
        event = CallEvent(
            id=f"evt_{name}", type="recording.exported", at=self._clock(), data={"job": job.id}
        )
        await self._timeline.append(recording.call_id, [event], "gateway")
        return True

    async def _copy_object(
        self, job: Export, recording: ToExport, destination: Destination
    ) -> bool:
        source = _Source(self._stores, recording)
        try:
            await destination.put_chunks(
                recording.key, source.blocks(), size=recording.bytes, sha256=recording.sha256
            )
        except StoreError as error:
            cause = source.failure or error
            log.warning(
                "a recording was not exported",
                extra={"export_id": job.id, "call_id": recording.call_id, "problem": str(cause)},
            )
            if isinstance(source.failure, StoreUnavailable):
                raise _SourceAway(recording.region) from None
            if source.failure is not None or isinstance(error, AlreadyThere):
                return False
            if job.sealed is None and isinstance(error, StoreUnavailable):
                raise StoreUnavailable("the destination cannot be reached") from None
            raise
        return True

    async def _renew(self, job: Export, lease: str) -> None:
        while True:
            await asyncio.sleep(LEASE.total_seconds() / 3)
            with contextlib.suppress(AppError):
                await self._exports.renew(job, lease)


class _Source:
    """A recording in our store. A destination may hide why its reading failed."""

    def __init__(self, stores: Stores, recording: ToExport) -> None:
        self._stores = stores
        self._recording = recording
        self.failure: StoreError | None = None

    async def blocks(self) -> AsyncIterator[bytes]:
        recording = self._recording
        try:
            store = self._stores.of(recording.region)
            blocks = store.read(recording.key, must_be_sealed=recording.encrypted)
            # The last block is held back until the checksum is known: without it nothing is stored.
            last = b""
            async for block in checked(blocks, recording.bytes, recording.sha256):
                if last:
                    yield last
                last = block
            yield last
        except StoreError as error:
            self.failure = error
            raise
