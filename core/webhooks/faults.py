"""Messages for failed webhook requests that may be shown to tenants.

The text of an exception may name hosts of the private network, and a server's text may contain
what is not meant for the tenant, so neither is passed on.
"""

from __future__ import annotations

import aiohttp

from core.url_guard import AddressRefused

_PROBLEMS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (TimeoutError, "No answer within {} s"),
    (aiohttp.ClientConnectorDNSError, "The name cannot be resolved"),
    ((aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError), "TLS failed"),
    (aiohttp.ClientConnectorError, "No connection"),
    (aiohttp.InvalidURL, "The address is not valid"),
    ((aiohttp.ClientConnectionError, aiohttp.ClientPayloadError), "The connection broke"),
    (aiohttp.ClientResponseError, "The answer is not HTTP"),
)
_REFUSALS = {
    1: "Not a final answer",
    3: "Redirects are not followed",
    4: "The endpoint refused it",
    5: "The endpoint failed",
}


def problem(error: Exception, timeout_s: int) -> str:
    """Return why there was no response. ``error`` is aiohttp's, an OSError or a ValueError."""
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(
        error.os_error, AddressRefused
    ):
        return "The address is not public"
    for kinds, words in _PROBLEMS:
        if isinstance(error, kinds):
            return words.format(timeout_s)
    return "The request failed"


def refusal(status: int) -> str | None:
    """Return why an HTTP status is no success, or None for a success."""
    if 200 <= status < 300:
        return None
    return _REFUSALS.get(status // 100, "Not an HTTP status")
