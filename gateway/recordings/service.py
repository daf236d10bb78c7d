"""A call's recording: what its worker says of it, its state, its bytes, its end."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

from pydantic import Field, ValidationError

from core.errors import Gone, NotFound, TooEarly, Unavailable, Unprocessable
from core.models import CallEvent, Model
from core.recordings.config import Region
from core.recordings.plan import RecordingPlan
from core.settings import Settings
from gateway.calls.dispatcher import plan_of
from gateway.recordings.expiry import expiry
from gateway.store.call_status import Call
from gateway.store.calls import Store
from gateway.store.database import Scope
from gateway.store.recordings.recordings import Deleter, Recordings, StoredRecording
from recordings.errors import NotStored, StoreMissing, StoreRefused, StoreUnavailable
from recordings.store import RecordingStore
from recordings.stores import Stores

log = logging.getLogger(__name__)

_READY_IN_S = 5
_MOST_PARTS = 100
_AWAITED = timedelta(minutes=10)
"""After a call, the parts of its lost agents are waited for; they may be on a disk that is gone."""
_MAX_BYTES = 2**40
_MAX_MS = 2**40


class Stored(Model):
    """The data of ``recording.stored``, as a worker tells it."""

    key: str = Field(max_length=2000)
    region: Region | None = None
    """Of the store it is in, which the tenant's region may not be any more."""
    bytes: int = Field(ge=0, le=_MAX_BYTES)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    duration_ms: int = Field(ge=0, le=_MAX_MS)
    encrypted: bool = False
    part: int = Field(0, ge=0, le=_MOST_PARTS)


class Refused(Unavailable):
    """The store is there, and refuses this recording: others may be fine."""


class RecordingService:
    def __init__(
        self,
        *,
        rows: Recordings,
        calls: Store,
        stores: Stores,
        settings: Settings,
        clock: Callable[[], datetime],
    ) -> None:
        self.rows = rows
        self._calls = calls
        self.stores = stores
        self._settings = settings
        self._clock = clock

    async def fold(self, call_id: str, events: Sequence[CallEvent]) -> None:
        """Store what the events of a call's worker say of its recording.

        The same event again changes nothing. An object that comes after its recording was deleted
        is deleted, in the store that the event names. Raises Unprocessable for another object than
        the call's, Unavailable.
        """
        for event in events:
            if event.type == "recording.stored":
                await self._stored(call_id, event)

    async def _stored(self, call_id: str, event: CallEvent) -> None:
        found = await self._calls.call_and_agent(call_id)
        if found is None:
            return  # the caller finds that there is no such call
        call, agent = found
        tenant = self._settings.tenant_recordings(call.auth_id)
        try:
            told = Stored.model_validate(event.data)
        except ValidationError:
            raise Unprocessable("recording.stored has invalid data") from None
        plan = plan_of(call, agent, tenant, told.part) if agent is not None else None
        if agent is None or plan is None or told.key != plan.key or told.part > call.agent_epoch:
            log.error(
                "a worker names a recording that is not its call's", extra={"call_id": call_id}
            )
            raise Unprocessable("The recording is not this call's")
        recording = await self.rows.add(
            StoredRecording(
                call_id=call.id,
                auth_id=call.auth_id,
                format=plan.format,
                stored_at=self._clock(),
                expires_at=expiry(
                    call.created_at,
                    agent=agent.config.recording.retention_days,
                    tenant=tenant.retention_days,
                    default=self._settings.recordings_retention_days,
                ),
                **told.model_dump(exclude={"part"}),
            )
        )
        if recording.deleted_at is not None:
            # Where it is now: at the time of the deletion, another region may have been in force.
            late = {"region": told.region, "key": told.key}
            await self._remove(recording.model_copy(update=late))

    async def require(self, call: Call) -> StoredRecording:
        """Return the recording.

        Raises NotFound, TooEarly (not stored yet), Gone (deleted, or its time is over).
        """
        recording = await self.rows.find(Scope(None), call.id)
        if recording is None:
            if await self._awaited(call):
                raise _not_yet()
            raise _none()
        if call.agent_epoch and recording.deleted_at is None and await self._lacks_parts(call):
            raise _not_yet()
        if recording.deleted_at is not None:
            raise Gone("The recording was deleted", code="RECORDING_DELETED")
        if recording.expires_at is not None and recording.expires_at <= self._clock():
            raise Gone("The recording's time is over", code="RECORDING_DELETED")
        return recording

    async def delete_of(self, call: Call) -> bool:
        """Delete the call's recording, also one that is not stored yet.

        False: it was deleted before. Raises NotFound, Unavailable.
        """
        if (recording := await self.rows.find(Scope(None), call.id)) is not None:
            return await self.delete(recording, "api")
        # Also of one that failed or was never reported: its upload may still come.
        if (plan := await self._plan(call)) is None:
            raise _none()
        # A row that is deleted from the beginning: ``fold`` deletes the object when it comes.
        stands_for = StoredRecording(
            call_id=call.id,
            auth_id=call.auth_id,
            region=plan.region,
            key=plan.key,
            format=plan.format,
            bytes=0,
            sha256="",
            duration_ms=0,
            encrypted=False,
            stored_at=self._clock(),
            expires_at=None,
        )
        if await self.rows.deleted(stands_for, "api"):
            return True
        # It was stored, or deleted, in between.
        recording = await self.rows.find(Scope(None), call.id)
        return recording is not None and await self.delete(recording, "api")

    async def delete(self, recording: StoredRecording, by: Deleter) -> bool:
        """Delete the object, then say so. False: it was said before.

        Raises Unavailable; Refused if the store is there.
        """
        if recording.deleted_at is not None:
            return False
        await self._remove(await self._with_parts(recording))
        told = await self.rows.deleted(recording, by)
        # A worker killed after its upload may have uploaded again between the two, and another one
        # a part. From now on, ``fold`` deletes them.
        await self._remove(await self._with_parts(recording))
        return told

    async def _with_parts(self, recording: StoredRecording) -> StoredRecording:
        more = tuple(await self.rows.parts_of(recording.call_id))
        return recording.model_copy(update={"more": more})

    async def read(
        self, recording: StoredRecording, start: int, end: int
    ) -> AsyncGenerator[bytes, None]:
        """Yield these bytes of the recording's first object, decrypted, and no fewer.

        Raises Unavailable, NotFound.
        """
        left = end - start
        with _failures(recording):
            blocks = self._store(recording).read(
                recording.key, start, end, must_be_sealed=recording.encrypted
            )
            async for block in blocks:
                left -= len(block)
                yield block
        if left > 0:
            log.error("a stored recording is too short", extra={"call_id": recording.call_id})
            raise _away(Refused)

    async def _plan(self, call: Call) -> RecordingPlan | None:
        found = await self._calls.call_and_agent(call.id)
        agent = found[1] if found is not None else None
        tenant = self._settings.tenant_recordings(call.auth_id)
        return plan_of(call, agent, tenant) if agent is not None else None

    async def _awaited(self, call: Call) -> bool:
        """Whether the call's recording is expected to be stored."""
        if await self._plan(call) is None:
            return False
        if not call.ended:
            return True
        told = await self._calls.events(call.id, types=("recording.started", "recording.failed"))
        return {event.type for event in told} == {"recording.started"}

    async def _lacks_parts(self, call: Call) -> bool:
        """Whether more parts of the call's recording are expected."""
        if not call.ended or call.ended_at is None:
            return True
        if self._clock() - call.ended_at > _AWAITED:
            return False
        types = ("recording.started", "recording.stored", "recording.failed")
        told = Counter(event.type for event in await self._calls.events(call.id, types=types))
        return told[types[0]] > told[types[1]] + told[types[2]]

    async def _remove(self, recording: StoredRecording) -> None:
        for part in recording.parts:
            with _failures(part):
                await self._store(part).delete(part.key)

    def _store(self, recording: StoredRecording) -> RecordingStore:
        return self.stores.of(recording.region)


@contextmanager
def _failures(recording: StoredRecording) -> Iterator[None]:
    try:
        yield
    except NotStored:
        # Somebody else removed it, as a bucket's lifecycle does.
        log.error(
            "the store of recordings has lost an object", extra={"call_id": recording.call_id}
        )
        raise _none() from None
    except StoreMissing as error:
        log.error("a region has no store", extra={"reason": str(error)})
        raise _away(Unavailable) from None
    except StoreRefused:
        log.exception("the store of recordings refuses", extra={"call_id": recording.call_id})
        raise _away(Refused) from None
    except StoreUnavailable as error:
        log.warning("the store of recordings is away", extra={"reason": str(error)})
        raise _away(Unavailable) from None


def _not_yet() -> TooEarly:
    return TooEarly(
        "The recording is not stored yet", code="RECORDING_NOT_READY", retry_after_s=_READY_IN_S
    )


def _none() -> NotFound:
    return NotFound("The call has no recording", code="RECORDING_NOT_FOUND")


def _away(kind: type[Unavailable]) -> Unavailable:
    return kind(
        "The store of recordings is unavailable", code="RECORDINGS_UNAVAILABLE", retry_after_s=5
    )
