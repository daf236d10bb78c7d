"""What went wrong with a request to a webhook, in our own words.

An exception's own may name what is in our network, and a server's what is none of the tenant's
business; these may be shown.
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
    """Why there was no answer. ``error``: of aiohttp, an OSError or a ValueError."""
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(
        error.os_error, AddressRefused
    ):
        return "The address is not public"
    for kinds, words in _PROBLEMS:
        if isinstance(error, kinds):
            return words.format(timeout_s)
    return "The request failed"


def refusal(status: int) -> str | None:
    """What an HTTP status says against the answer; None: it is a success."""
    if 200 <= status < 300:
        return None
    return _REFUSALS.get(status // 100, "Not an HTTP status")
