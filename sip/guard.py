"""The guard of SIP addresses that tenants choose: they must be public, and not our own listeners.

    addresses = await guard.check("trunk.example.com:5060", tls=False, tenant="acme")

A host name is resolved, and all of its addresses must pass. Every refusal has the same text, also
for a name without an address, so that a tenant learns nothing about our network and its names.
SIP_ALLOW_PRIVATE and SIP_ALLOWED_NETWORKS admit private addresses, but never our own listeners: a
call to our SIP service would reach other tenants' numbers.

The gateway checks before it dials. The SIP service resolves the name again, and DNS may answer
differently by then. The embedded service recognises a tenant's dial by TENANT_DIAL, checks again,
and connects to the address that it checked. livekit-sip does neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from core.errors import BadRequest, Forbidden
from core.settings import Settings
from core.url_guard import IPAddress, is_localhost, is_public, literal, unwrapped
from sip.addresses import Address, parse_outbound_address

TENANT_DIAL: Final = "switchroom.tenantDial"
"""Attribute of a dial's participant: the mark of the tenant that chose the address
(``tenant_mark``). Only the gateway sets it: a phone's headers become attributes of other names.
"""

SIP_PORT: Final = 5060
SIP_TLS_PORT: Final = 5061

LOOKUP_DEADLINE_S: Final = 3.0
# Threads that wait for DNS; the C library decides how long (10 s and more).
LOOKUPS_PER_TENANT: Final = 8
# Every check needs the addresses of our own listeners, which hardly ever change.
OWN_KEPT_S: Final = 30.0
# EAI_NODATA: the name exists but has no address.
_NO_SUCH_NAME: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None)})

_LOOPBACK: Final = ("127.0.0.1", "::1")
_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")

Resolver = Callable[[str, str | None], Awaitable[Sequence[str]]]
"""Returns the numeric addresses of a name, on behalf of a tenant or (None) of ourselves.

Empty: no such name. Raises NoAnswer."""

GetAddrInfo = Callable[..., Sequence[tuple[Any, ...]]]


class NoAnswer(Exception):
    """The name could not be resolved: no answer in time, a failure, or too many lookups."""


class AddressRefused(Forbidden):
    """403 DESTINATION_NOT_ALLOWED, with the same message whatever the cause."""

    def __init__(self) -> None:
        super().__init__(
            "The SIP address is not allowed: it must lead to public addresses, and not to "
            "this service itself",
            code="DESTINATION_NOT_ALLOWED",
        )


@dataclass(frozen=True, slots=True)
class Listener:
    """One of our own listeners, at a name, an address, or every address of the machine."""

    host: str
    port: int
    tls_only: bool = False


class SipGuard:
    """Decides if a tenant's SIP address may be used."""

    def __init__(
        self,
        *,
        own: Iterable[Listener] = (),
        allow_private: bool = False,
        allowed_networks: Iterable[str] = (),
        resolve: Resolver | None = None,
        own_kept_s: float = OWN_KEPT_S,
    ) -> None:
        """``own`` is always refused. ``allowed_networks``: CIDR. Raises ValueError."""
        self._own = frozenset(own)
        self._allow_private = allow_private
        self._networks = tuple(ipaddress.ip_network(each) for each in allowed_networks)
        self._resolve = Lookups().resolve if resolve is None else resolve
        self._own_names = OwnNames(self._resolve, own_kept_s)

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        *,
        also_own: Iterable[Listener] = (),
        resolve: Resolver | None = None,
    ) -> SipGuard:
        return cls(
            own=[*own_listeners(settings), *also_own],
            allow_private=settings.sip_allow_private,
            allowed_networks=settings.sip_allowed_networks,
            resolve=resolve,
        )

    def check_literal(self, address: str, *, tls: bool | None = False) -> None:
        """Check ``address`` as far as that needs no DNS. Raises AddressRefused.

        For addresses that are only stored; ``check`` follows when they are used.
        """
        parsed = _parsed(address)
        numeric = _numeric(parsed.host)
        if not all(map(self._may_be_used, numeric)):
            raise AddressRefused
        for listener in self._own_at(parsed, tls):
            if _same_name(listener.host, parsed.host) or _meet(numeric, _numeric(listener.host)):
                raise AddressRefused

    async def check(self, address: str, *, tenant: str, tls: bool | None = False) -> list[str]:
        """Return the current numeric addresses of ``host[:port]``. Raises AddressRefused.

        ``tls`` None: the transport is not known. ``tenant``: the lookup counts towards its limit.
        """
        self.check_literal(address, tls=tls)
        parsed = _parsed(address)
        try:
            found = _numeric(parsed.host) or list(await self._resolve(parsed.host, tenant))
        except NoAnswer:
            raise AddressRefused from None
        if not found or not all(map(self._may_be_used, found)):
            raise AddressRefused
        hosts = {one.host for one in self._own_at(parsed, tls)}
        for ours in await asyncio.gather(*map(self._own_names.addresses, hosts)):
            # If our listener's address is unknown, it may be this one.
            if ours is None or _meet(found, ours):
                raise AddressRefused
        return found

    def _own_at(self, address: Address, tls: bool | None) -> list[Listener]:
        found = []
        for each in (False, True) if tls is None else (tls,):
            port = port_of(address, tls=each)
            found += [one for one in self._own if one.port == port and (each or not one.tls_only)]
        return found

    def _may_be_used(self, numeric: str) -> bool:
        ip = _ip(numeric)
        # 0.0.0.0 is this machine, and a multicast group is no phone.
        if ip.is_unspecified or ip.is_multicast or ip == _BROADCAST:
            return False
        if self._allow_private or is_public(numeric):
            return True
        return any(ip in network for network in self._networks)


def tenant_mark(tenant: str) -> str:
    """Return TENANT_DIAL's value: a hash, since everyone in the room can read it."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:16]


def port_of(address: Address, *, tls: bool) -> int:
    """Return the port that is dialled (RFC 3261 §19.1.2)."""
    return address.port or (SIP_TLS_PORT if tls else SIP_PORT)


def with_port(address: str, *, tls: bool) -> str:
    """Return ``address`` with an explicit port.

    For a name without a port, a SIP service looks up SRV records (RFC 3263 §4.2), which may
    lead anywhere. With a port it uses only the name's own addresses, which ``check`` has seen.
    """
    parsed = _parsed(address)
    return str(Address(parsed.host, port_of(parsed, tls=tls)))


def own_listeners(settings: Settings) -> set[Listener]:
    """Return every listener of this installation that the settings name."""
    found: set[Listener] = set()
    host, _, port = settings.bridge_sip_listen.rpartition(":")
    if port.isdecimal():
        found |= sip_listeners(host.strip("[]"), int(port))
    if settings.sip_public_address is not None:
        host, _, port = settings.sip_public_address.partition(";")[0].partition(":")
        found |= sip_listeners(host, int(port or SIP_PORT)) | sip_listeners(host, SIP_PORT)
    for url in (
        settings.livekit_url,
        settings.livekit_public_url,
        settings.livekit_sip_url,
        settings.gateway_url,
        settings.cache_url,
        settings.database_url,
    ):
        found |= _listener_of(url or "")
    # livekit-sip runs where its API is, on the usual ports unless SIP_PUBLIC_ADDRESS has others.
    # If that is this machine, it listens on every address, including the public one.
    sip_host = urlsplit(settings.sip_http_url).hostname
    if sip_host:
        found |= sip_listeners("0.0.0.0" if _is_loopback(sip_host) else sip_host, SIP_PORT)
    for host, number in (
        (settings.listen_host, settings.gateway_port),
        (settings.listen_host, settings.metrics_port),
        (settings.bridge_host, settings.bridge_port),
        (settings.worker_http_host, settings.worker_http_port),
        (settings.worker_http_host, settings.worker_metrics_port),
    ):
        if number:
            found.add(Listener(host, number))
    return found


def sip_listeners(host: str, port: int) -> set[Listener]:
    """Return a SIP service's listeners: TLS is on the next port."""
    return {Listener(host, port), Listener(host, port + 1, tls_only=True)}


_PORTS: Final = {"ws": 80, "http": 80, "wss": 443, "https": 443, "redis": 6379, "rediss": 6379}


def _listener_of(url: str) -> set[Listener]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return set()
    if parts.scheme.startswith("postgres"):
        port = port or 5432
    port = port or _PORTS.get(parts.scheme)
    return {Listener(host, port)} if host and port else set()


class Lookups:
    """Resolves names by the system's resolver, without a cache, in threads of its own.

    The event loop's executor is small and shared: a name server that never answers would block
    all of it. Here it blocks only the LOOKUPS_PER_TENANT threads of the tenant that chose the
    name. Our own names are few and have no limit that a tenant could use up.
    """

    def __init__(
        self,
        getaddrinfo: GetAddrInfo = socket.getaddrinfo,
        *,
        deadline_s: float = LOOKUP_DEADLINE_S,
    ) -> None:
        self._getaddrinfo = getaddrinfo
        self._deadline_s = deadline_s
        self._under_way: dict[tuple[str, str | None], asyncio.Future[list[str] | None]] = {}
        self._waiting: Counter[str | None] = Counter()

    async def resolve(self, name: str, tenant: str | None) -> list[str]:
        """Return the A and AAAA addresses; empty if there is no such name. Raises NoAnswer."""
        key = (name.lower(), tenant)
        asked = self._under_way.get(key)
        if asked is None:
            if tenant is not None and self._waiting[tenant] >= LOOKUPS_PER_TENANT:
                raise NoAnswer
            asked = self._ask(key)
        try:
            async with asyncio.timeout(self._deadline_s):
                found = await asyncio.shield(asked)
        except TimeoutError:
            raise NoAnswer from None
        if found is None:
            raise NoAnswer
        return found

    def _ask(self, key: tuple[str, str | None]) -> asyncio.Future[list[str] | None]:
        name, tenant = key
        loop = asyncio.get_running_loop()
        asked: asyncio.Future[list[str] | None] = loop.create_future()

        def done(found: list[str] | None) -> None:
            del self._under_way[key]
            self._waiting[tenant] -= 1
            if not self._waiting[tenant]:
                del self._waiting[tenant]
            asked.set_result(found)

        def work() -> None:
            found = _ask_system(self._getaddrinfo, name)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(done, found)

        try:
            # A daemon, so that a pending lookup does not delay the process's exit.
            threading.Thread(target=work, name="sip-dns", daemon=True).start()
        except RuntimeError:  # the machine has no more threads
            raise NoAnswer from None
        self._under_way[key] = asked
        self._waiting[tenant] += 1
        return asked


def _ask_system(getaddrinfo: GetAddrInfo, name: str) -> list[str] | None:
    """Return the addresses of ``name``, empty if there is no such name; None if no answer."""
    try:
        answers = getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    except UnicodeError:
        return []
    except socket.gaierror as error:
        return [] if error.errno in _NO_SUCH_NAME else None
    except OSError:
        return None
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


class OwnNames:
    """The addresses of our own listeners. An old answer counts until there is a new one."""

    def __init__(self, resolve: Resolver, kept_s: float) -> None:
        self._resolve = resolve
        self._kept_s = kept_s
        self._known: dict[str, tuple[float, Sequence[str]]] = {}

    async def addresses(self, host: str) -> Sequence[str] | None:
        """Return the addresses of ``host``; None if no lookup has ever succeeded."""
        if numeric := _numeric(host):
            return numeric
        asked_at, found = self._known.get(host, (0.0, None))
        if found is None or time.monotonic() - asked_at >= self._kept_s:
            with contextlib.suppress(NoAnswer):
                found = await self._resolve(host, None)
            if found is not None:
                self._known[host] = (time.monotonic(), found)
        return found


def _parsed(address: str) -> Address:
    """Raises AddressRefused for rows that were stored before addresses were checked."""
    try:
        return parse_outbound_address(address)
    except BadRequest:
        raise AddressRefused from None


def _numeric(host: str) -> list[str]:
    """Return the addresses of a ``host`` that needs no DNS: 127.0.0.1, 0x7f000001, localhost."""
    return [*_LOOPBACK] if is_localhost(host) else literal(host)


def _is_loopback(host: str) -> bool:
    return any(_ip(each).is_loopback for each in _numeric(host))


def _same_name(one: str, other: str) -> bool:
    return one.rstrip(".").lower() == other.rstrip(".").lower()


def _meet(found: Iterable[str], own: Iterable[str]) -> bool:
    """Return True if packets to one of ``found`` reach a listener on one of ``own``."""
    theirs = {_ip(each) for each in found}
    for ours in {_ip(each) for each in own}:
        if ours in theirs or (ours.is_unspecified and any(map(_is_local, theirs))):
            return True
    return False


def _is_local(ip: IPAddress) -> bool:
    """Return True for an address of this machine, which is one that a socket can be bound to."""
    if ip.is_loopback:
        return True
    family = socket.AF_INET if isinstance(ip, ipaddress.IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(ip), 0))
    except OSError:
        return False
    return True


def _ip(numeric: str) -> IPAddress:
    return unwrapped(ipaddress.ip_address(numeric.partition("%")[0]))
