"""HTTP headers that an agent's owner wants on the requests of a tool; their values are secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

MAX_HEADERS = 20

# RFC 9110 §5.1: a token.
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}"
# RFC 9110 §5.5, without obs-text; a space at either end would be taken off on the way.
_VALUE = r"([!-~]([ \t!-~]{0,4094}[!-~])?)?"
_RESERVED = frozenset(
    {
        # Of the connection, not of the request (RFC 9110 §7.6.1), or the client's own business.
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        # Ours: they say who asks, and how an answer must come.
        "accept-encoding",
        "x-call-id",
        "x-tool-name",
    }
)


def _without_nulls(given: Any) -> Any:
    """Clients may write null for a header that is not wanted."""
    if not isinstance(given, Mapping):
        return given
    return {name: value for name, value in given.items() if value is not None}


def _checked(headers: dict[str, str]) -> dict[str, str]:
    if len({name.lower() for name in headers}) < len(headers):
        raise ValueError("a header is there twice")
    for name, value in headers.items():
        if not re.fullmatch(_NAME, name):
            raise ValueError("a name is not that of an HTTP header")
        if name.lower() in _RESERVED:
            raise ValueError(f"{name} cannot be set")
        if not re.fullmatch(_VALUE, value):
            # Never with the value.
            raise ValueError(f"the value of {name} cannot be sent, or has more than 4096 bytes")
    return headers


ToolHeaders = Annotated[
    dict[str, str],
    Field(
        max_length=MAX_HEADERS,
        description="Sent with each request. Encrypted at rest, shown to the agent's owner.",
    ),
    BeforeValidator(_without_nulls),
    AfterValidator(_checked),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MAX_HEADERS,
            "propertyNames": {"pattern": f"^{_NAME}$"},
            "additionalProperties": {"type": ["string", "null"], "pattern": f"^{_VALUE}$"},
        }
    ),
]
"""By name; empty: none."""
