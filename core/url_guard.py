"""Requests to URLs that a tenant chose: they reach public addresses, never the private network.

A host name says nothing about its address, and may resolve differently the second time. So the
address is checked where the socket is created, which is then connected to that very address.
Literal addresses, in every spelling, pass through there too. No more of a response is read than
asked for, and nothing is decompressed. The caller must refuse redirects:

    async with guarded_session(allow_private=False) as session:
        async with session.post(url, allow_redirects=False, …) as response:
            text = await read_bounded(response, 4096)
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_V6_PREFIXES_WITH_V4 = (
    ipaddress.IPv6Network("::ffff:0:0/96"),  # mapped
    ipaddress.IPv6Network("::ffff:0:0:0/96"),  # translated, RFC 2765
    ipaddress.IPv6Network("64:ff9b::/96"),  # NAT64, RFC 6052
    ipaddress.IPv6Network("::/96"),  # compatible, long deprecated
)
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
_UNIQUE_LOCAL = ipaddress.IPv6Network("fc00::/7")


# inet_aton(3) ignores the text after a blank, so only these characters are accepted.
_SPELLED = re.compile(r"[0-9A-Fa-fXx.]+")


class UrlRefused(ValueError):
    """The URL leads where no webhook may; the text may be shown to the tenant."""


class AddressRefused(OSError):
    """A connection was refused because none of the host's addresses is public."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "the address is not public")


def is_public(address: str) -> bool:
    """Return True if a numeric IP address, or the IPv4 address it embeds, is public."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    ip = unwrapped(ip)
    if isinstance(ip, ipaddress.IPv6Address) and (
        ip.is_site_local or ip in _LOCAL_NAT64 or ip in _UNIQUE_LOCAL
    ):
        return False
    # is_global is false for private, loopback, link-local, CGNAT (100.64.0.0/10) and the like.
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def unwrapped(ip: IPAddress) -> IPAddress:
    """Return the IPv4 address that ``ip`` embeds and routes to, if any; else ``ip``."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if any(ip in prefix for prefix in _V6_PREFIXES_WITH_V4):
        # :: and ::1 embed no IPv4 address.
        return ip if int(ip) <= 1 else ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if ip.sixtofour is not None:
        return ip.sixtofour
    return ip.teredo[1] if ip.teredo is not None else ip


def check_url(url: str) -> None:
    """Refuse a URL that can be refused without DNS. Raises UrlRefused.

    The connection has the real guard. This check gives a tenant who registers
    ``http://127.1/`` the error at once.
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        usable = parts.scheme in {"http", "https"} and bool(host) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UrlRefused("must be an http:// or https:// address")
    if is_localhost(host):
        raise UrlRefused("must not lead to a private address")
    for address in literal(host):
        if not is_public(address):
            raise UrlRefused("must not lead to a private address")


def is_localhost(name: str) -> bool:
    """Return True if the name always means the local machine (RFC 6761 §6.3)."""
    name = name.rstrip(".").lower()
    return name == "localhost" or name.endswith(".localhost")


def literal(host: str) -> list[str]:
    """Return the address that ``host`` spells without DNS: 127.0.0.1, 127.1, 2130706433, [::1]."""
    try:
        return [str(ipaddress.ip_address(host.partition("%")[0]))]
    except ValueError:
        pass
    try:
        # Every spelling that the resolver takes for an IPv4 address without a DNS query.
        return [socket.inet_ntoa(socket.inet_aton(host))] if _SPELLED.fullmatch(host) else []
    except OSError:
        return []


OpenSession = Callable[..., aiohttp.ClientSession]
"""``guarded_session`` with the addresses decided; takes its other arguments."""


def guarded_session(
    *, allow_private: bool, limit: int = 100, keepalive_s: float = 15.0, **options: Any
) -> aiohttp.ClientSession:
    """Return an ``aiohttp.ClientSession`` that connects to public addresses only.

    A refused connection fails with ``aiohttp.ClientConnectorError``, whose ``os_error`` is an
    AddressRefused. Idle connections are kept for ``keepalive_s``. Proxies from the environment are
    not used: behind a proxy the address could not be checked here.
    """
    connector = aiohttp.TCPConnector(
        limit=limit,
        keepalive_timeout=keepalive_s,
        socket_factory=None if allow_private else _public_socket,
    )
    return aiohttp.ClientSession(
        connector=connector,
        auto_decompress=False,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        **options,
    )


def _public_socket(address: Any) -> socket.socket:
    family, kind, protocol, _, sockaddr = address
    if not is_public(str(sockaddr[0])):
        raise AddressRefused
    return socket.socket(family, kind, protocol)


async def read_bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Return at most ``limit`` bytes of the body, as received (not decompressed).

    The rest of a longer body is not read, and its connection is closed.
    """
    received = bytearray()
    async for chunk in response.content.iter_any():
        received += chunk
        if len(received) > limit:
            response.close()
            break
    return bytes(received[:limit])
