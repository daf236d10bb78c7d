"""Brings recordings from the spool into their stores, and onto the timelines of their calls.

A recording is finished in steps that may each be repeated: encode, put, report, remove. The encoded
file is kept until the end, the store takes the same content twice, and the timeline ignores an
event that it has. So whichever process ends wherever, there is one object and one event, and the
lock of ``recordings.spool`` keeps two processes from doing the same work at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from core.models import CallEvent, now
from core.recordings.config import Region
from recordings import ogg, spool
from recordings.errors import AlreadyThere, StoreRefused, StoreUnavailable
from recordings.spool import Spooled
from recordings.stores import Stores
from recordings.wav import RATE, repair

log = logging.getLogger(__name__)

_EVERY_S = 1.0
_LONGEST_S = 30.0
"""Between two attempts while a store or the gateway is away."""
_AT_THE_END_S = 60.0
_REFUSED_FOR_S = 24 * 3600
"""After the recording's end. Until then the operator may mend credentials, bucket or address."""


class Later(Exception):
    """Something that is needed is away: the same step may succeed later."""


class Never(Exception):
    """A step that cannot succeed. The message is for the call's timeline."""


class Report(Protocol):
    async def __call__(self, call_id: str, event: CallEvent, /) -> None:
        """Append to a call's timeline, which ignores an id that it has. Raises Later or Never."""


async def sweep_recordings(
    directory: Path,
    stores: Stores,
    report: Report,
    *,
    every_s: float = _EVERY_S,
    longest_s: float = _LONGEST_S,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Upload, for ever, the recordings that no process writes (any more).

    Any number of processes may do this at a time, on one directory. ``pause`` waits between two
    attempts.
    """
    sweeper = Sweeper(directory, stores, report)
    delay = every_s
    while True:
        delay = every_s if await sweeper.sweep() else min(2 * delay, longest_s)
        await pause(delay)


async def sweep_at_the_end(
    directory: Path, stores: Stores, report: Report, *, within_s: float = _AT_THE_END_S
) -> None:
    """Upload what can be while a process stops: its disk may be removed with it."""
    try:
        async with asyncio.timeout(within_s):
            await Sweeper(directory, stores, report).sweep()
    except TimeoutError:
        log.warning("recordings left to another process")


class Sweeper:
    """Remembers which recordings failed, so that those wait behind the others."""

    def __init__(self, directory: Path, stores: Stores, report: Report) -> None:
        self._directory = directory
        self._stores = stores
        self._report = report
        self._failures: Counter[Path] = Counter()

    async def sweep(self) -> bool:
        """Upload each recording once; return False if any has to wait. Raises nothing."""
        try:
            await asyncio.to_thread(spool.clean, self._directory)
            found = await asyncio.to_thread(spool.leftovers, self._directory)
        except OSError as error:
            log.error("cannot list the spooled recordings", extra={"error": str(error)})
            return False
        self._failures = Counter({path: self._failures[path] for path in found})
        away: set[Region | None] = set()
        waiting = 0
        for path in sorted(found, key=lambda path: self._failures[path]):
            if not await self._try(path, away):
                self._failures[path] += 1
                waiting += 1
        return not waiting

    async def _try(self, path: Path, away: set[Region | None]) -> bool:
        """Return False if the recording has to wait, as those of a region whose store is away."""
        try:
            spooled = await asyncio.to_thread(Spooled.adopt, path)
            if spooled is None:
                return True
            with spooled:
                if spooled.plan.region in away:
                    return False
                try:
                    await upload(spooled, self._stores, self._report)
                except Later:
                    away.add(spooled.plan.region)
                    raise
        except Later as error:
            log.warning("a recording waits", extra={"call_id": path.stem, "reason": str(error)})
        except OSError as error:
            log.error("a recording waits", extra={"call_id": path.stem, "reason": str(error)})
        except Exception:
            # The other recordings must not wait for this one.
            log.exception("a recording was not uploaded", extra={"call_id": path.stem})
        else:
            return True
        return False


async def upload(spooled: Spooled, stores: Stores, report: Report) -> None:
    """Store, report and remove a recording, or set it aside. Raises Later and OSError."""
    frames = 0
    try:
        frames = await asyncio.to_thread(_frames, spooled)
        stored = await _store(spooled, frames, stores)
        await report(spooled.call_id, _event(spooled, "recording.stored", stored))
    except Never as error:
        await _fail(spooled, str(error), report)
        await asyncio.to_thread(spooled.reject if frames else spooled.remove)
    else:
        await asyncio.to_thread(spooled.remove)
        log.info("recording stored", extra={"call_id": spooled.call_id, "key": spooled.plan.key})


def _frames(spooled: Spooled) -> int:
    try:
        frames = repair(spooled.wav)
    except FileNotFoundError:
        frames = 0  # its process ended while it created the files
    if not frames:
        raise Never("nothing was recorded")
    return frames


async def _store(spooled: Spooled, frames: int, stores: Stores) -> dict[str, Any]:
    """Put the recording into its store; return the data of ``recording.stored``."""
    plan = spooled.plan
    path = spooled.wav if plan.format == "wav" else await _encoded(spooled)
    facts = path.stat()
    sha256 = await asyncio.to_thread(_digest, path, facts.st_size, facts.st_mtime_ns)
    try:
        store = stores.of(plan.region)
        await store.put(plan.key, path, sha256=sha256)
    except StoreUnavailable as error:
        raise Later(str(error)) from None
    except AlreadyThere:
        raise Never("the store has another recording of this name") from None
    except StoreRefused as error:
        log.error("the store refused a recording", extra={"error": str(error)})
        if time.time() - spooled.wav.stat().st_mtime < _REFUSED_FOR_S:
            raise Later("refused by the store") from None
        raise Never("refused by the store") from None
    return {
        "key": plan.key,
        "region": plan.region,
        "format": plan.format,
        "bytes": facts.st_size,
        "sha256": sha256,
        "durationMs": frames * 1000 // RATE,
        "encrypted": store.seals,
        **({"part": plan.part} if plan.part else {}),
    }


async def _encoded(spooled: Spooled) -> Path:
    if not spooled.ogg.exists():
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "recordings.ogg", str(spooled.wav), str(spooled.ogg)),
            # The lock lasts until the last of them ends: if this process is killed, nobody else
            # writes the file while the encoder does.
            pass_fds=(spooled.lock.fileno(),),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            log.error("cannot encode a recording", extra={"error": errors.decode()[-500:]})
            if process.returncode < 0 or process.returncode == ogg.TRY_AGAIN:
                raise Later("the encoder failed")
            raise Never("cannot be encoded")
    return spooled.ogg


@lru_cache(maxsize=16)  # of recordings that wait for their store
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _fail(spooled: Spooled, reason: str, report: Report) -> None:
    log.error("recording failed", extra={"call_id": spooled.call_id, "reason": reason})
    try:
        await report(spooled.call_id, _event(spooled, "recording.failed", {"reason": reason}))
    except Never as error:
        log.error("recording not reported", extra={"error": str(error)})


def _event(spooled: Spooled, type: str, data: dict[str, Any]) -> CallEvent:
    part = f"_part{spooled.plan.part}" if spooled.plan.part else ""
    return CallEvent(id=f"{spooled.call_id}_{type}{part}", type=type, data=data, at=now())
