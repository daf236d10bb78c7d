"""The stores of recordings, one per region. Each is opened when it is first used."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, get_args
from urllib.parse import parse_qsl

from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store
from pydantic import SecretStr

from core.recordings.config import Region
from core.settings import Settings
from recordings.errors import StoreMissing, StoreUnavailable
from recordings.sealing import Sealer
from recordings.store import RecordingStore

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

_CLIENT: ClientConfig = {
    "connect_timeout": timedelta(seconds=5),
    "timeout": timedelta(seconds=60),  # of one request: a part of an upload, a block of a read
}
_RETRIES: RetryConfig = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {
        "init_backoff": timedelta(milliseconds=200),
        "max_backoff": timedelta(seconds=2),
        "base": 2,
    },
}


class Stores:
    """A region without an address of its own has no store: another region's is never used."""

    def __init__(
        self, urls: Mapping[Region | None, str], settings: Settings, sealer: Sealer | None = None
    ) -> None:
        self._urls = dict(urls)
        self._settings = settings
        self._sealer = sealer
        self._opened: dict[Region | None, RecordingStore] = {}

    @classmethod
    def from_settings(cls, settings: Settings) -> Stores:
        default = settings.recordings_url or f"file://{settings.data_dir.absolute()}/recordings"
        urls: dict[Region | None, str] = {None: default}
        for region in get_args(Region):
            url = getattr(settings, f"recordings_url_{region}")
            if url is not None:
                urls[region] = url
        key = settings.recordings_key
        return cls(urls, settings, Sealer.from_text(key.get_secret_value()) if key else None)

    def has(self, region: Region | None) -> bool:
        return region in self._urls

    def of(self, region: Region | None) -> RecordingStore:
        """Return the region's store.

        Raise StoreMissing if none is configured for it, StoreUnavailable if it cannot be opened.
        """
        if region not in self._opened:
            if region not in self._urls:
                raise StoreMissing(f"RECORDINGS_URL_{str(region).upper()} is not set")
            url = self._urls[region]
            try:
                objects = open_url(url, self._settings)
            except (BaseError, OSError) as error:
                reason = str(error).partition("\n")[0][:200]
                raise StoreUnavailable(f"the store cannot be opened: {reason}") from None
            self._opened[region] = RecordingStore(objects, self._sealer)
        return self._opened[region]


def open_url(url: str, settings: Settings) -> S3Store | LocalStore:
    """Open a store with our own credentials; ``url`` is valid (core.setting_types.StoreUrl)."""
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        folder = Path(rest)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return LocalStore(folder)
    # Each request's signature covers the SHA-256 of its body, so a store refuses changed bytes.
    config: S3Config = {"copy_if_not_exists": "multipart"}
    # Without keys obstore asks the machine for its role, as Amazon's own SDKs do.
    if settings.aws_access_key_id is not None:
        config["access_key_id"] = settings.aws_access_key_id
    if settings.aws_secret_access_key is not None:
        config["secret_access_key"] = _secret(settings.aws_secret_access_key)
    if settings.aws_session_token is not None:
        config["session_token"] = _secret(settings.aws_session_token)
    where, _, query = rest.partition("?")
    options = dict(parse_qsl(query))
    region = options.get("region", settings.aws_region)
    endpoint = options.get("endpoint", settings.aws_endpoint_url)
    if region is not None:
        config["region"] = region
    client = _CLIENT.copy()
    if endpoint is not None:
        config["endpoint"] = endpoint.rstrip("/")
        client["allow_http"] = endpoint.startswith("http://")
    bucket, _, prefix = where.partition("/")
    return S3Store(
        bucket,
        prefix=prefix.strip("/") or None,
        config=config,
        client_options=client,
        retry_config=_RETRIES,
    )


def _secret(value: SecretStr) -> str:
    return value.get_secret_value()
