"""The types of settings, as the environment writes them."""

from __future__ import annotations

import base64
import ipaddress
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, SecretStr, StringConstraints


def _strict_bool(value: Any) -> Any:
    """Accept only true, false, 1 and 0, in any case: a typo must not disable a protection."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in {"true", "1"}:
        return True
    if isinstance(value, str) and value.strip().lower() in {"false", "0"}:
        return False
    raise ValueError("must be one of true, false, 1, 0")


StrictBool = Annotated[bool, BeforeValidator(_strict_bool)]


def comma_separated(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError:
        raise ValueError("must be networks like 10.20.0.0/16, without host bits") from None


Network = Annotated[str, AfterValidator(_network)]
Country = Annotated[str, StringConstraints(to_upper=True, pattern=r"^[A-Za-z]{2}$")]
NumberPrefix = Annotated[str, StringConstraints(pattern=r"^\+?[0-9]{1,20}$")]


_NAME = r"(/(?!\.\.?(/|\?|$))[^/%?#\\\s\x00-\x1f\x7f]+)"  # of a folder
_OPTION = r"(region=[a-z0-9-]+|endpoint=https?://[A-Za-z0-9.:\[\]-]+)"
_STORE = re.compile(
    rf"file://{_NAME}+/?"
    rf"|s3://[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9]{_NAME}*/?(\?{_OPTION}(&{_OPTION})?)?"
)


def _store_url(value: str) -> str:
    if not _STORE.fullmatch(value):
        raise ValueError("must be like file:///path or s3://bucket/prefix?region=eu-central-1")
    return value


StoreUrl = Annotated[str, AfterValidator(_store_url)]


def recording_keys(text: str) -> list[bytes]:
    try:
        keys = [base64.b64decode(part, validate=True) for part in comma_separated(text)]
    except ValueError:
        keys = []
    if not keys or any(len(key) != 32 for key in keys):
        raise ValueError("must be keys of 32 bytes in base64, separated by commas")
    return keys


def _recording_keys(value: SecretStr) -> SecretStr:
    recording_keys(value.get_secret_value())
    return value


RecordingKeys = Annotated[SecretStr, AfterValidator(_recording_keys)]
