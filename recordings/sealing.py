"""Encryption of recordings by us: AES-256-GCM in chunks, so that any range can be read alone.

A sealed object is a header and chunks of 64 KiB of the recording, each with its tag. The header has
the id of the key, a salt, and the recording's length. Each object has a key of its own, derived
(HKDF-SHA256) from the configured one, the header and the object's name; a chunk's nonce is its
position, with a mark on the last one (as in STREAM). So a chunk that was changed, moved, left
out or taken from another object is refused, and so is an object of another length or name.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import AsyncIterator, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from core.setting_types import recording_keys
from recordings.errors import SealBroken

CHUNK = 64 * 1024
TAG = 16
_MAGIC = b"SRS1"  # neither WAV's nor Ogg's
_HEADER = struct.Struct(">4s8s16sQ")  # magic, key id, salt, length of the recording
HEADER = _HEADER.size


class Seal:
    """One object's cipher and layout."""

    def __init__(self, key: bytes, header: bytes, name: str) -> None:
        self.header = header
        self.size: int = _HEADER.unpack(header)[3]
        self.chunks = max(1, -(-self.size // CHUNK))
        self.total = HEADER + self.size + TAG * self.chunks
        """Of the sealed object."""
        derived = HKDF(SHA256(), 32, salt=None, info=header + name.encode()).derive(key)
        self._cipher = AESGCM(derived)

    def close(self, index: int, plain: bytes) -> bytes:
        return self._cipher.encrypt(self._nonce(index), plain, None)

    def open(self, first: int, sealed: bytes) -> bytes:
        """Return the plain bytes of whole chunks, of which ``first`` is the first's position."""
        size = CHUNK + TAG
        parts = [sealed[at : at + size] for at in range(0, len(sealed), size)]
        try:
            return b"".join(
                self._cipher.decrypt(self._nonce(first + offset), part, None)
                for offset, part in enumerate(parts)
            )
        except InvalidTag:
            raise SealBroken("the sealed recording was changed") from None

    def _nonce(self, index: int) -> bytes:
        return index.to_bytes(11, "big") + bytes([index == self.chunks - 1])


class Sealer:
    """The configured keys: the first seals, each opens what it sealed."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = {_key_id(key): key for key in keys}
        self._first = keys[0]

    @classmethod
    def from_text(cls, text: str) -> Sealer:
        return cls(recording_keys(text))

    def new(self, name: str, size: int) -> Seal:
        header = _HEADER.pack(_MAGIC, _key_id(self._first), os.urandom(16), size)
        return Seal(self._first, header, name)

    def key_of(self, key_id: bytes) -> bytes:
        try:
            return self._keys[key_id]
        except KeyError:
            raise SealBroken(
                f"RECORDINGS_KEY has no key {key_id.hex()}, which sealed the recording"
            ) from None


def is_sealed(start: bytes) -> bool:
    return len(start) >= HEADER and start.startswith(_MAGIC)


def opened(sealer: Sealer | None, name: str, header: bytes, total: int) -> Seal:
    """Return the seal of a stored object of ``total`` bytes. Raise SealBroken."""
    key_id = _HEADER.unpack(header)[1]
    if sealer is None:
        raise SealBroken(f"RECORDINGS_KEY is not set; key {key_id.hex()} sealed the recording")
    seal = Seal(sealer.key_of(key_id), header, name)
    if seal.total != total:
        raise SealBroken("the sealed recording does not have its length")
    return seal


async def sealed(seal: Seal, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the object's bytes; ``chunks`` may be of any sizes, together ``seal.size``."""
    yield seal.header
    waiting, index = bytearray(), 0
    async for chunk in chunks:
        waiting += chunk
        while len(waiting) > CHUNK:  # not >=: the last chunk is closed below
            yield seal.close(index, bytes(waiting[:CHUNK]))
            del waiting[:CHUNK]
            index += 1
    yield seal.close(index, bytes(waiting))


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"switchroom recordings key" + key).digest()[:8]
