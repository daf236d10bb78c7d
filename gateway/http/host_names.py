"""The host names under which a gateway without authentication accepts requests.

A malicious page in a developer's browser can reach servers on that machine: after the page has
loaded, its host name resolves to 127.0.0.1 (DNS rebinding), and the browser treats the gateway as
the page's origin. The page cannot forge the name in ``Host``, nor its origin in ``Origin``. So a
request without a token must name this machine.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from core.errors import BadRequest, Forbidden
from core.settings import Settings

# RFC 3986 §3.2 without userinfo; any other host is not a name of this machine.
_LABEL = r"[A-Za-z0-9_-]+"
_AUTHORITY = re.compile(rf"(?:\[([0-9A-Fa-f:.]+)\]|({_LABEL}(?:\.{_LABEL})*\.?))(?::[0-9]{{1,5}})?")
_LOCAL = "localhost"


def check_listen_address(settings: Settings) -> None:
    """Raise ValueError if anybody in the network could place calls at the operator's cost."""
    open_to_others = not (settings.auth_required or is_loopback(settings.listen_host))
    if open_to_others and not settings.allow_open_gateway:
        raise ValueError(
            "GATEWAY_HOST is not a loopback address and AUTH_REQUIRED is not true: whoever reaches "
            "the gateway could place calls at your cost. Set AUTH_REQUIRED=true; or, where "
            "something else decides who reaches it, ALLOW_OPEN_GATEWAY=true"
        )


class Names:
    """This machine's names, according to the settings."""

    def __init__(self, settings: Settings) -> None:
        told = (settings.listen_host, urlsplit(settings.gateway_base_url).hostname or "")
        self._told = frozenset(name for text in told if (name := _canonical(text)))
        # DNS rebinding needs a name, so an IP address is safe. Clients of a gateway that listens on
        # the network may know only its address.
        self._any_address = not is_loopback(settings.listen_host)

    def check(self, request: web.Request) -> None:
        """Check Host and Origin. Raises BadRequest (not one Host), Forbidden (a foreign one)."""
        named = request.headers.getall(hdrs.HOST, [])
        if len(named) != 1:
            raise BadRequest("A request must name exactly one host", code="INVALID_HOST")
        host = _host_of(named[0])
        if not self._is_here(host) or not self._is_here(_target(request, host)):
            raise Forbidden(
                "This gateway has no authentication (AUTH_REQUIRED), and so serves requests to "
                "loopback names, GATEWAY_HOST and the host of GATEWAY_URL only",
                code="HOST_NOT_ALLOWED",
            )
        for origin in request.headers.getall(hdrs.ORIGIN, []):
            page = _host_of(origin.partition("://")[2])
            if page is None or not (page == host or self._is_ours(page)):
                raise Forbidden(
                    "This gateway has no authentication (AUTH_REQUIRED), and so serves no "
                    "requests from pages of other sites",
                    code="ORIGIN_NOT_ALLOWED",
                )

    def _is_here(self, host: str | None) -> bool:
        if host is None:
            return False
        return self._is_ours(host) or (self._any_address and _address(host) is not None)

    def _is_ours(self, host: str) -> bool:
        return is_loopback(host) or host in self._told


def is_loopback(host: str) -> bool:
    """Return True for ``localhost``, a name below it (RFC 6761 §6.3), or a loopback address."""
    if (address := _address(host)) is not None:
        mapped = getattr(address, "ipv4_mapped", None)
        return bool((mapped or address).is_loopback)
    name = _canonical(host)
    return name == _LOCAL or name.endswith(f".{_LOCAL}")


def _host_of(authority: str) -> str | None:
    """Return the host of ``host``, ``host:port`` or ``[v6]:port``; None for anything else."""
    match = _AUTHORITY.fullmatch(authority)
    return _canonical(match[1] or match[2]) if match else None


def _target(request: web.Request, host: str | None) -> str | None:
    """Return the host in the request line, which overrides Host (RFC 9112 §3.2.2).

    The request line rarely names one; then ``host`` is returned.
    """
    if request.raw_path.startswith("/"):
        return host
    _, _, rest = request.raw_path.partition("://")
    return _host_of(re.split(r"[/?#]", rest, maxsplit=1)[0])


def _canonical(host: str) -> str:
    address = _address(host.strip("[]"))
    return host.lower().removesuffix(".") if address is None else str(address)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
