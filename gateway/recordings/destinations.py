"""The places to which recordings are exported: ours below RECORDINGS_EXPORT_URLS, or a tenant's.

A tenant's endpoint is never given to obstore, which resolves names by itself. obstore only signs
the URL of each request; the request is sent by a session of core.url_guard, which checks the
address to which the socket connects, and no redirect is followed.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import aiohttp
import obstore
from obstore.store import S3Store
from pydantic import ConfigDict, Field, SecretStr, TypeAdapter, ValidationError, field_validator
from yarl import URL

from core.setting_types import StoreUrl
from core.settings import Settings
from core.shapes import Model
from core.url_guard import AddressRefused, guarded_session
from recordings.errors import AlreadyThere, StoreError, StoreRefused, StoreUnavailable
from recordings.store import RecordingStore, checked
from recordings.stores import open_url

_SIGNED_FOR = timedelta(minutes=15)
_LARGEST = 5 * 1024**3
"""Of one PUT; S3 takes no larger one."""
_PATIENCE_S = 60.0
_SLOWEST = 200_000
"""Bytes per second: a request that takes longer, with _PATIENCE_S on top, is given up."""
_ADDRESS = TypeAdapter[str](StoreUrl)
_LABEL = r"[A-Za-z0-9_-]{1,63}"
_ENDPOINT = re.compile(
    rf"(?i:https?)://({_LABEL}(\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\])(:[0-9]{{1,5}})?/?"
)


class Destination(Protocol):
    async def put_chunks(
        self, key: str, chunks: AsyncIterator[bytes], *, size: int, sha256: str
    ) -> None:
        """See RecordingStore.put_chunks."""


def allowed(url: str, settings: Settings, *, operator: bool) -> str | None:
    """Return the address that ``url`` below one of RECORDINGS_EXPORT_URLS stands for, or None.

    An address with ``..``, ``%`` or empty names is none, and the endpoint is the setting's.
    """
    try:
        url = _ADDRESS.validate_python(url).rstrip("/")
    except ValidationError:
        return None
    if "?" in url or (url.startswith("file:") and not operator):
        return None
    for ours in settings.recordings_export_urls:
        base, mark, options = ours.partition("?")
        base = base.rstrip("/")
        if url == base or url.startswith(f"{base}/"):
            return url + mark + options
    return None


def ours(url: str, settings: Settings) -> RecordingStore:
    return RecordingStore(open_url(url, settings))


class TenantBucket(Model):
    """A tenant's own S3 bucket."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    url: str = Field(description="s3://bucket/prefix", examples=["s3://my-bucket/calls"])
    access_key_id: str = Field(pattern=r"^[!-~]{1,200}$")
    secret_access_key: SecretStr = Field(min_length=1, max_length=500)
    region: str = Field("us-east-1", pattern=r"^[a-z0-9-]{1,40}$")
    endpoint: str | None = Field(
        None, max_length=300, description="https://host; default: Amazon's of the region."
    )

    @field_validator("url")
    @classmethod
    def _bucket(cls, value: str) -> str:
        _ADDRESS.validate_python(value)
        if not value.startswith("s3://") or "?" in value:
            raise ValueError("must be like s3://bucket/prefix")
        return value.rstrip("/")

    @field_validator("endpoint")
    @classmethod
    def _host_only(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not _ENDPOINT.fullmatch(value):
            raise ValueError("must be like https://s3.example.com, without a path")
        parts = urlsplit(value)
        if parts.port == 0:  # urlsplit itself refuses one that is too high
            raise ValueError("must have another port")
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def base(self) -> str:
        return self.endpoint or f"https://s3.{self.region}.amazonaws.com"

    def reveal(self) -> dict[str, Any]:
        """Return JSON-ready values with the secret, for sealing."""
        return {**self.wire(), "secretAccessKey": self.secret_access_key.get_secret_value()}


class GuardedBucket:
    """Uploads to a tenant's bucket through connections to public addresses only."""

    def __init__(self, bucket: TenantBucket, session: aiohttp.ClientSession) -> None:
        name, _, prefix = bucket.url.removeprefix("s3://").partition("/")
        credential = {
            "access_key_id": bucket.access_key_id,
            "secret_access_key": bucket.secret_access_key.get_secret_value(),
            "expires_at": None,
        }
        # Everything is given, so that nothing of our own comes from the environment. The store is
        # used to sign only.
        self._signer = S3Store(
            name,
            prefix=prefix or None,
            region=bucket.region,
            endpoint=bucket.base,
            virtual_hosted_style_request=False,
            credential_provider=lambda: credential,  # type: ignore[arg-type]
            client_options={"allow_http": True},
        )
        self._session = session

    @classmethod
    def opened(cls, secret: dict[str, Any], session: aiohttp.ClientSession) -> Self:
        return cls(TenantBucket.model_validate(secret), session)

    async def put_chunks(
        self, key: str, chunks: AsyncIterator[bytes], *, size: int, sha256: str
    ) -> None:
        if size > _LARGEST:
            raise StoreRefused("the recording is larger than 5 GiB")
        failure: list[StoreError] = []

        async def body() -> AsyncIterator[bytes]:
            try:
                async for chunk in checked(chunks, size, sha256):
                    yield chunk
            except StoreError as error:
                failure.append(error)
                raise

        headers = {"If-None-Match": "*", "Content-Length": str(size)}
        try:
            status = await self._send("PUT", key, size, data=body(), headers=headers)
        except StoreError:
            if failure:
                raise failure[0] from None
            raise
        if status == 412 and await self._checksum(key, size) != sha256:
            raise AlreadyThere(f"{key} is stored already")

    async def _checksum(self, key: str, size: int) -> str:
        found = hashlib.sha256()
        await self._send("GET", key, size, into=found)
        return found.hexdigest()

    async def _send(
        self, method: Any, key: str, size: int, *, into: Any = None, **options: Any
    ) -> int:
        """Return the status 200 or 412. Raises StoreRefused, StoreUnavailable."""
        url = await obstore.sign_async(self._signer, method, key, _SIGNED_FOR)
        request = self._session.request(
            method, URL(url, encoded=True), allow_redirects=False, **options
        )
        try:
            async with asyncio.timeout(_PATIENCE_S + size / _SLOWEST), request as response:
                status = response.status
                if into is not None and status == 200:
                    async for block in response.content.iter_chunked(1 << 20):
                        into.update(block)
        except TimeoutError:
            raise StoreUnavailable("the destination takes too long") from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, AddressRefused):
                raise StoreRefused("the destination's address is not public") from None
            raise StoreUnavailable("the destination cannot be reached") from None
        except (aiohttp.ClientError, OSError):
            raise StoreUnavailable("the destination cannot be reached") from None
        if status in (200, 412):
            return status
        if status >= 500 or status in (408, 409, 429):
            raise StoreUnavailable(f"the destination answered {status}")
        raise StoreRefused(f"the destination answered {status}")


def session_to_tenants(settings: Settings) -> aiohttp.ClientSession:
    return guarded_session(
        allow_private=settings.webhook_allow_private,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60),
    )
