"""HTTP headers that an agent's owner sets for a tool's requests; their values are secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

MAX_HEADERS = 20

# RFC 9110 §5.1: a token.
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}"
# RFC 9110 §5.5, without obs-text. A space at either end would be stripped in transit.
_VALUE = r"([!-~]([ \t!-~]{0,4094}[!-~])?)?"
_RESERVED = frozenset(
    {
        # Headers of the connection, not the request (RFC 9110 §7.6.1), or set by the HTTP client.
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
        # Set by the worker: the call, the tool, and the encoding of the response.
        "accept-encoding",
        "x-call-id",
        "x-tool-name",
    }
)


def _without_nulls(given: Any) -> Any:
    """Drop headers that are null, which clients may send for a header they do not want."""
    if not isinstance(given, Mapping):
        return given
    return {name: value for name, value in given.items() if value is not None}


def _checked(headers: dict[str, str]) -> dict[str, str]:
    if len({name.lower() for name in headers}) < len(headers):
        raise ValueError("a header occurs twice")
    for name, value in headers.items():
        if not re.fullmatch(_NAME, name):
            raise ValueError("a name is not that of an HTTP header")
        if name.lower() in _RESERVED:
            raise ValueError(f"{name} cannot be set")
        if not re.fullmatch(_VALUE, value):
            # The value is a secret: never quote it.
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
"""Headers by name."""
