"""One store of recordings: objects that are written once, read in ranges, and deleted."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import obstore
from obstore import exceptions
from obstore.store import LocalStore, S3Store

from recordings.errors import (
    AlreadyThere,
    NotStored,
    SealBroken,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from recordings.sealing import CHUNK, HEADER, TAG, Seal, Sealer, is_sealed, opened, sealed

BLOCK = 16 * CHUNK  # read by one request, which is bounded by the client's timeout
PART = 8 * 1024 * 1024  # of an upload; S3 allows 10,000 of them
_PARTS_AT_ONCE = 2


class RecordingStore:
    """``put`` creates and never replaces. With a sealer, objects are sealed by us.

    S3 has no conditional multipart upload through obstore. So an object of more than one part is
    uploaded as ``uploads/…``, and copied to its name on the condition that there is none.
    """

    def __init__(self, objects: S3Store | LocalStore, sealer: Sealer | None = None) -> None:
        self._objects = objects
        self._sealer = sealer
        self._folder = objects.prefix if isinstance(objects, LocalStore) else None

    @property
    def seals(self) -> bool:
        """Whether new objects are sealed by us."""
        return self._sealer is not None

    async def put(self, key: str, path: Path, *, sha256: str) -> None:
        """Store a file whose content has that checksum; the same content again is fine."""
        size = (await asyncio.to_thread(path.stat)).st_size
        await self.put_chunks(key, _file(path), size=size, sha256=sha256)

    async def put_chunks(
        self, key: str, chunks: AsyncIterator[bytes], *, size: int, sha256: str
    ) -> None:
        """Store what ``chunks`` yields. Raise AlreadyThere if other content is stored."""
        content = checked(chunks, size, sha256)
        if self._sealer is not None:
            content = sealed(self._sealer.new(key, size), content)
        try:
            with _translated(key):
                # The same name each time: what an upload that was broken off left is found again.
                name = hashlib.sha256(f"{key} {sha256}".encode()).hexdigest()
                upload = f"uploads/{name}"
                # A store may refuse the second object of a name before it has read it, and close
                # the connection: that looks like a failed network.
                with contextlib.suppress(FileNotFoundError):
                    await obstore.head_async(self._objects, key)
                    await self._discard(upload)
                    raise AlreadyThere(f"{key} is stored already")
                if self._folder is None and size <= PART:
                    whole = b"".join([chunk async for chunk in content])
                    await obstore.put_async(self._objects, key, whole, mode="create")
                else:
                    await self._put_large(upload, key, content)
        except NotStored:
            raise StoreRefused("the store's bucket or folder does not exist") from None
        except AlreadyThere:
            if await self.checksum(key) != sha256:
                raise

    async def _put_large(self, upload: str, key: str, content: AsyncIterator[bytes]) -> None:
        await asyncio.to_thread(self._make_folders, upload, key)
        await obstore.put_async(
            self._objects, upload, content, chunk_size=PART, max_concurrency=_PARTS_AT_ONCE
        )
        try:
            await asyncio.to_thread(self._settle, upload)
            await obstore.copy_async(self._objects, upload, key, overwrite=False)
            await asyncio.to_thread(self._sync_folder, key)
        except FileNotFoundError:  # another uploader of the same content removed it
            raise StoreUnavailable(f"{key} is being stored by another process") from None
        finally:
            await self._discard(upload)

    async def _discard(self, upload: str) -> None:
        with contextlib.suppress(FileNotFoundError, exceptions.BaseError):
            await obstore.delete_async(self._objects, upload)
        if self._folder is not None:  # obstore writes to …#1 first, and leaves it if it is killed
            for path in (self._folder / upload).parent.glob(Path(upload).name + "#*"):
                path.unlink(missing_ok=True)

    async def checksum(self, key: str) -> str:
        """Return the SHA-256 of a stored recording, by reading it."""
        found = hashlib.sha256()
        async for block in self.read(key):
            found.update(block)
        return found.hexdigest()

    async def size(self, key: str) -> int | None:
        """Return the recording's size, of a sealed object too; None if it is not stored."""
        try:
            return (await self._look(key))[0]
        except NotStored:
            return None

    async def read(
        self, key: str, start: int = 0, end: int | None = None, *, must_be_sealed: bool = False
    ) -> AsyncIterator[bytes]:
        """Yield the recording's bytes from ``start`` to before ``end``, or to its end.

        ``must_be_sealed``: refuse an object that was sealed when it was stored, and is not now.
        """
        try:
            size, seal = await self._look(key)
        except NotStored:
            await self._must_be_there()
            raise
        if seal is None and must_be_sealed:
            raise SealBroken("the recording was sealed, and has been replaced by one that is not")
        end = size if end is None else min(end, size)
        while start < end:
            first = start // BLOCK * BLOCK
            until = min(first + BLOCK, size)
            if seal is None:
                yield await self._range(key, start, min(until, end))
            else:
                whole = await self._range(
                    key, _sealed_at(first), min(_sealed_at(until), seal.total)
                )
                plain = await asyncio.to_thread(seal.open, first // CHUNK, whole)
                yield plain[start - first : end - first]
            start = until

    async def delete(self, key: str) -> None:
        """Delete an object; it is fine if there is none in a store that is there."""
        try:
            with _translated(key):
                await obstore.delete_async(self._objects, key)
        except NotStored:
            await self._must_be_there()
        except StoreUnavailable as error:
            if self._folder is None:
                raise
            await self._must_be_there()
            # The disk is there: it is about this file.
            raise StoreRefused(str(error)) from None

    async def _must_be_there(self) -> None:
        """Raise StoreUnavailable if the store as a whole is missing.

        Only for a store in which there has been an object: a folder without anything in it is
        taken for the place at which a disk is not mounted.
        """
        try:
            with _translated("the store"):
                if self._folder is None:
                    # An empty list, unless the bucket is missing.
                    await obstore.list_with_delimiter_async(self._objects, "uploads/none")
                elif not await asyncio.to_thread(os.listdir, self._folder):
                    raise NotStored
        except NotStored:
            raise StoreUnavailable("the store's bucket or disk is missing") from None

    async def _look(self, key: str) -> tuple[int, Seal | None]:
        """Return the recording's size and its seal, if it has one."""
        with _translated(key):
            total = (await obstore.head_async(self._objects, key))["size"]
        if total < HEADER:
            return total, None
        header = await self._range(key, 0, HEADER)
        if not is_sealed(header):
            return total, None
        seal = opened(self._sealer, key, header, total)
        return seal.size, seal

    async def _range(self, key: str, start: int, end: int) -> bytes:
        with _translated(key):
            found = bytes(await obstore.get_range_async(self._objects, key, start=start, end=end))
        if len(found) != end - start:
            raise StoreUnavailable(f"{key}: the store answered a part of the range")
        return found

    # Only of a store of files: its files and folders are for their owner, whatever the umask.
    def _make_folders(self, *keys: str) -> None:
        if self._folder is None:
            return
        for key in keys:
            folder = self._folder
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in key.split("/")[:-1]:
                folder = folder / name
                folder.mkdir(mode=0o700, exist_ok=True)

    def _settle(self, key: str) -> None:
        if self._folder is not None:
            (self._folder / key).chmod(0o600)
            _sync(self._folder / key)

    def _sync_folder(self, key: str) -> None:
        if self._folder is not None:
            _sync((self._folder / key).parent)


def _sealed_at(plain: int) -> int:
    return HEADER + plain + -(-plain // CHUNK) * TAG


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


async def _file(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, BLOCK):
            yield chunk


async def checked(chunks: AsyncIterator[bytes], size: int, sha256: str) -> AsyncIterator[bytes]:
    found, length = hashlib.sha256(), 0
    async for chunk in chunks:
        found.update(chunk)
        length += len(chunk)
        yield chunk
    # An iterator that fails aborts the upload: nothing appears under the key.
    if length != size or found.hexdigest() != sha256:
        raise StoreRefused("the content does not have the checksum that was told")


@contextlib.contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except exceptions.AlreadyExistsError:
        raise AlreadyThere(f"{key} is stored already") from None
    except exceptions.PreconditionError:
        raise AlreadyThere(f"{key} is stored already") from None
    except FileNotFoundError:
        raise NotStored(f"{key} is not stored") from None
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
        raise StoreRefused("the store refused our credentials") from None
    except exceptions.NotSupportedError:
        raise StoreRefused("the store cannot create objects without replacing others") from None
    except (exceptions.BaseError, OSError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise StoreUnavailable(f"the store failed: {reason}") from None
