"""The signing keys of an identity provider, fetched by URL (RFC 7517)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import jwt

from core.errors import Unavailable
from gateway.auth.keys import TokenHeader

log = logging.getLogger(__name__)

FRESH_S = 300.0
"""Older keys are refreshed in the background."""
STALE_S = 3600.0
"""Keys older than this are no longer used, since a withdrawn key must stop working."""
COOLDOWN_S = 30.0
"""An unknown ``kid``, which anybody can make up, causes a fetch at most this often."""
RETRY_S = 2.0
"""Within this time after a failed fetch, no request starts or awaits another one."""
FETCH_DEADLINE_S = 5.0
MAX_BYTES = 256 * 1024
MAX_KEYS = 64

# The key decides on the algorithm, never the token. A public document holds no symmetric keys.
_ALGORITHMS = frozenset({"RS256", "ES256", "EdDSA"})


class Jwks:
    """Looks keys up by ``kid``; runs at most one fetch at a time, which ``aclose`` cancels."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("AUTH_JWKS_URL: must be an http:// or https:// address")
        self._url = url
        self._clock = clock
        self._keys: Mapping[str | None, jwt.PyJWK] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._fetch: asyncio.Task[None] | None = None

    async def key_for(self, header: TokenHeader) -> tuple[Any, str] | None:
        """Return the key that the token's ``kid`` names, or the only key if the token has none.

        None: no such key. Raises Unavailable while no keys could be fetched.
        """
        if header.alg not in _ALGORITHMS:
            return None
        age = self._age()
        if age is None or age > STALE_S:
            await self._refresh()
        elif age > FRESH_S and self._may_try():
            self._start()
        key = self._find(header.kid)
        if key is None and self._may_try():
            await self._refresh()
            key = self._find(header.kid)
        return None if key is None else (key.key, key.algorithm_name)

    async def aclose(self) -> None:
        if self._fetch is not None:
            self._fetch.cancel()
            await asyncio.wait({self._fetch})

    def _find(self, kid: str | None) -> jwt.PyJWK | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    def _age(self) -> float | None:
        return None if self._fetched_at is None else self._clock() - self._fetched_at

    def _may_try(self, cooldown_s: float = COOLDOWN_S) -> bool:
        return self._tried_at is None or self._clock() - self._tried_at > cooldown_s

    def _start(self) -> asyncio.Task[None]:
        if self._fetch is None or self._fetch.done():
            self._tried_at = self._clock()
            self._fetch = asyncio.create_task(self._load(), name="jwks")
        return self._fetch

    async def _refresh(self) -> None:
        """Await one fetch, shared by all requests. Raises Unavailable if no usable keys result."""
        under_way = self._fetch is not None and not self._fetch.done()
        if under_way or self._may_try(RETRY_S):
            await asyncio.wait({self._start()})
        age = self._age()
        if age is None or age > STALE_S:
            raise Unavailable("Tokens cannot be verified right now", code="AUTH_UNAVAILABLE")

    async def _load(self) -> None:
        timeout = aiohttp.ClientTimeout(total=FETCH_DEADLINE_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(self._url, allow_redirects=False) as response,
            ):
                response.raise_for_status()
                body = await _read(response.content)
            keys = _usable(body)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError) as error:
            log.warning("JWKS not fetched", extra={"reason": type(error).__name__})
            return
        self._keys = keys
        self._fetched_at = self._clock()


async def _read(content: aiohttp.StreamReader) -> bytes:
    body = bytearray()
    async for chunk in content.iter_chunked(64 * 1024):
        body += chunk
        if len(body) > MAX_BYTES:
            raise ValueError("too large")
    return bytes(body)


def _usable(body: bytes) -> dict[str | None, jwt.PyJWK]:
    """Return the signing keys of supported algorithms by ``kid``. Raises ValueError for none."""
    try:
        keys = jwt.PyJWKSet.from_json(body.decode()).keys[:MAX_KEYS]
    except (jwt.PyJWTError, AttributeError, TypeError) as error:
        raise ValueError("not a JWK Set") from error
    usable: dict[str | None, jwt.PyJWK] = {
        key.key_id: key
        for key in keys
        if isinstance(key.key_id, str | None)
        and key.algorithm_name in _ALGORITHMS
        and key.public_key_use in (None, "sig")
    }
    if not usable:
        raise ValueError("no usable keys")
    return usable
