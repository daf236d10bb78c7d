"""The SIP endpoint: one stack, one listening address, one user agent per calling identity."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

import baresip

from sip._private import hear
from sip.bridge.stack import trace
from sip.bridge.stack.phone import PhoneCall
from sip.bridge.stack.trace import DialogTrace, TraceBook

log = logging.getLogger(__name__)

# Another thread traces a message, within a millisecond of its event.
TRACE_WAIT_S: Final = 0.25
# At this number of calls in both directions the stack refuses an INVITE (486) by itself.
MAX_CALLS: Final = 300
# The stack cannot free a user agent, and tenants choose the identities that they call from.
MAX_AGENTS: Final = 10_000
# The lowest latency: no jitter buffer of its own, two packets of playout buffer.
_STACK_SETTINGS: Final = (
    "audio_jitter_buffer_type off\naudio_buffer 20-60\naudio_buffer_mode fixed\n"
)


@dataclass(frozen=True, slots=True)
class Identity:
    """The caller of an outbound call, with the credentials for a digest challenge."""

    user: str
    host: str
    display_name: str | None
    transport: Literal["udp", "tcp", "tls"]
    auth_user: str
    auth_password: str = field(repr=False)

    def address_of_record(self) -> str:
        """Return the stack's account line, with the password.

        Raises ValueError for a value that the stack would misread.
        """
        account = baresip.Account(
            user=self.user,
            domain=self.host,
            password=self.auth_password,
            reg_interval=0,
            transport=self.transport,
            auth_user=self.auth_user or None,
        )
        if self.display_name is None:
            return account.aor()
        return f'"{self.display_name}" {account.aor()}'


class TooManyIdentities(Exception):
    """This process has its maximum of calling identities; only known ones can dial."""


class Endpoint:
    """Owns the SIP stack of this process (the library allows one)."""

    def __init__(self, listen: str, *, max_agents: int = MAX_AGENTS) -> None:
        """``listen``: ``address:port``, port 0 for a free one. Raises ValueError."""
        host, _, port = listen.rpartition(":")
        try:
            self._host = str(ipaddress.ip_address(host.strip("[]")))
            self._port = int(port)
        except ValueError:
            raise ValueError("BRIDGE_SIP_LISTEN must be an IP address and a port") from None
        self._runtime: baresip.Runtime | None = None
        self._agents: dict[str, baresip.UserAgent] = {}
        self._max_agents = max_agents
        self._agents_lock = asyncio.Lock()
        self._dialled: weakref.WeakValueDictionary[str, PhoneCall] = weakref.WeakValueDictionary()
        self._dialling = 0
        self._early: dict[int, list[baresip.StackEvent]] = {}
        self._book = TraceBook()
        self._waiting: dict[str, asyncio.Event] = {}
        self._tracer: _TraceHandler | None = None
        self.on_invite: Callable[[PhoneCall], None] = lambda _call: None

    @property
    def host(self) -> str:
        return self._host

    @property
    def address(self) -> str:
        """The listening address, with the actual port."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Start the stack. Raises OSError if the address is not available, or BaresipError."""
        self._port = _free_port(self._host, self._port)
        # TLS listens on the next port; if that is taken, UDP and TCP still work.
        transports = "" if _is_free(self._host, self._port + 1) else "sip_transports udp,tcp\n"
        if transports:
            log.warning("no SIP over TLS: its port is taken", extra={"port": self._port + 1})
        self._tracer = _TraceHandler(asyncio.get_running_loop(), self._on_trace)
        self._tracer.attach()
        self._runtime = baresip.Runtime()
        # For a wildcard address the stack chooses the interface, and skips loopback.
        interface = None if ipaddress.ip_address(self._host).is_unspecified else self._host
        await self._runtime.start(
            baresip.Config(
                net_interface=interface,
                max_concurrent_calls=MAX_CALLS,
                expose_headers=("To",),
                sip_trace=True,
                extra_config_text=f"sip_listen {self.address}\n{transports}{_STACK_SETTINGS}",
            )
        )
        self._runtime.subscribe(self._on_event)
        # This agent takes every call that is not for a calling identity.
        await self._agent(
            baresip.Account("switchroom", self._host, "", reg_interval=0).aor() + ";catchall=yes"
        )

    async def close(self) -> None:
        if self._runtime is not None:
            runtime, self._runtime = self._runtime, None
            await runtime.close()
        if self._tracer is not None:
            self._tracer.detach()

    async def dial(self, identity: Identity, uri: str, headers: dict[str, str]) -> PhoneCall:
        """Send an INVITE. Raises ValueError, BaresipError or TooManyIdentities if none was sent."""
        agent = await self._agent(identity.address_of_record())
        self._dialling += 1
        try:
            call = await agent.dial(uri, headers)
            phone = PhoneCall(call, dialled=True)
            # The library's call listens to events only when dial() returns, one loop iteration
            # after the INVITE was sent. A phone nearby answers sooner: replay what was missed.
            for event in self._early.pop(call.handle, ()):
                hear(call, event)
            self._dialled[phone.call_id or ""] = phone
            return phone
        finally:
            self._dialling -= 1
            if self._dialling == 0:
                self._early.clear()

    async def dialog(self, call_id: str | None) -> DialogTrace:
        """Return the trace of a dialog, after a short wait for its opening message."""
        if call_id is not None and self._book.of(call_id).opening is None:
            opened = self._waiting.setdefault(call_id, asyncio.Event())
            try:
                async with asyncio.timeout(TRACE_WAIT_S):
                    await opened.wait()
            except TimeoutError:
                pass
            finally:
                self._waiting.pop(call_id, None)
        return self._book.of(call_id)

    def seen(self, call_id: str | None) -> DialogTrace:
        """Return the trace of a dialog so far."""
        return self._book.of(call_id)

    async def _agent(self, address_of_record: str) -> baresip.UserAgent:
        # Each identity keeps its user agent until the process ends (about 2 kB).
        async with self._agents_lock:
            agent = self._agents.get(address_of_record)
            if agent is None:
                if self._runtime is None:
                    raise baresip.BaresipError("the SIP endpoint is not running")
                if len(self._agents) >= self._max_agents:
                    log.warning("no further identity can be dialled from until a restart")
                    raise TooManyIdentities
                agent = await baresip.UserAgent.create(
                    self._runtime, address_of_record, transfer_policy="reject"
                )
                agent.on_incoming(lambda call: self.on_invite(PhoneCall(call)))
                self._agents[address_of_record] = agent
            return agent

    def _on_event(self, event: baresip.StackEvent) -> None:
        if self._dialling and event.call:
            self._early.setdefault(event.call, []).append(event)

    def _on_trace(self, message: trace.SipMessage) -> None:
        self._book.add(message)
        call_id = message.call_id or ""
        opened = self._waiting.get(call_id)
        if opened is not None and self._book.of(call_id).opening is not None:
            opened.set()
        if message.status in {401, 407} and message.method == "INVITE" and not message.is_challenge:
            # After a 401 or 407 without a challenge header, the stack would wait for ever.
            phone = self._dialled.get(call_id)
            if phone is not None:
                phone.give_up(message.first_line.partition(" ")[2])


class _TraceHandler(logging.Handler):
    """Receives the stack's message trace, which must not be logged: it holds digest responses."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sink: Callable[[trace.SipMessage], object],
    ) -> None:
        super().__init__(logging.DEBUG)
        self._loop = loop
        self._sink = sink
        self._logger = logging.getLogger("baresip.native.sip")

    def attach(self) -> None:
        self._logger.addHandler(self)
        self._logger.setLevel(logging.DEBUG)
        self._logger.propagate = False

    def detach(self) -> None:
        self._logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        message = trace.parse(record.getMessage())
        if message is not None and message.received and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._sink, message)


def _free_port(host: str, port: int) -> int:
    """Return ``port`` if UDP and TCP can be bound to it; for 0, a free one. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for attempt in range(20):
        with (
            socket.socket(family, socket.SOCK_DGRAM) as udp,
            socket.socket(family, socket.SOCK_STREAM) as tcp,
        ):
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            udp.bind((host, port))
            chosen = int(udp.getsockname()[1])
            try:
                tcp.bind((host, chosen))
            except OSError:
                if port or attempt == 19:
                    raise
                continue
            return chosen
    raise OSError(f"no free port on {host}")


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError):
            return False
    return True
