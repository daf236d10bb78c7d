"""One baresip runtime for all phones of this process.

baresip's state is global to the process, so all instances of :class:`dev.phone.Phone` share
one runtime: the first phone starts it, and closing the last one stops it. Signalling passes
each phone's own relay; media goes directly to and from baresip.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from baresip import Account, BaresipError, Call, Config, Event, Runtime, StackEvent, UserAgent

from dev.phone.media import MediaPump
from dev.sip.messages import Address

logger = logging.getLogger(__name__)

_BIND_ATTEMPTS = 10

# Without a jitter buffer received frames reach us when their packets arrive, so that we know
# their times. UDP only, like the relays.
_CONFIG = """\
sip_listen {host}:{port}
sip_transports udp
audio_jitter_buffer_type off
audio_buffer 20-60
audio_buffer_mode fixed
"""

_locks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
    weakref.WeakKeyDictionary()
)
_current: Stack | None = None


@dataclass(frozen=True)
class Identity:
    """A user agent's identity: its SIP user, its phone's address, its credentials."""

    user: str
    phone: Address
    auth_user: str | None = None
    auth_password: str = ""

    def __repr__(self) -> str:
        return f"Identity(user={self.user!r}, phone={self.phone!r}, auth_user={self.auth_user!r})"


class Stack:
    """The shared runtime. Get it with :func:`acquire`, give it back with :meth:`release`."""

    def __init__(self, address: Address, runtime: Runtime) -> None:
        self.address = address
        self.pump = MediaPump()
        self._runtime = runtime
        self._users = 0
        self._numbers = itertools.count(1)
        self._agents: dict[Identity, UserAgent] = {}
        self._handlers: dict[int, Callable[[StackEvent], None]] = {}
        self._early: defaultdict[int, list[StackEvent]] = defaultdict(list)
        runtime.subscribe(self._on_event)

    @classmethod
    async def _start(cls) -> Stack:
        for _ in range(_BIND_ATTEMPTS):
            port = _free_udp_port()
            runtime = Runtime()
            config = Config(
                net_interface="127.0.0.1",
                max_concurrent_calls=None,
                native_log_level="error",
                extra_config_text=_CONFIG.format(host="127.0.0.1", port=port),
            )
            try:
                await runtime.start(config)
            except BaresipError as error:
                # Another process took the port between our probe and baresip's bind.
                if "already in use" not in str(error):
                    raise
                continue
            return cls(("127.0.0.1", port), runtime)
        raise OSError(f"no free UDP port in {_BIND_ATTEMPTS} attempts")

    def next_number(self) -> int:
        """Return a number that no other phone of this runtime has."""
        return next(self._numbers)

    async def agent(
        self, identity: Identity, on_incoming: Callable[[Call], None] | None = None
    ) -> UserAgent:
        """Return the user agent for an identity; make it at the first use.

        All its requests leave through its phone's relay (a preloaded Route).
        """
        agent = self._agents.get(identity)
        if agent is None:
            host, port = identity.phone
            account = Account(
                user=identity.user,
                domain=f"{host}:{port}",
                password=identity.auth_password,
                auth_user=identity.auth_user,
                registrar=f"sip:{host}:{port};lr",
                reg_interval=0,
            )
            agent = await UserAgent.create(self._runtime, account)
            self._agents[identity] = agent
        if on_incoming is not None:
            agent.on_incoming(on_incoming)
        return agent

    def watch(self, call: Call, handler: Callable[[StackEvent], None]) -> None:
        """Deliver a call's events to the handler, first those that have come already."""
        self._handlers[call.handle] = handler
        for event in self._early.pop(call.handle, ()):
            self._deliver(event)

    def _on_event(self, event: StackEvent) -> None:
        if not event.call:
            return
        if event.call in self._handlers:
            self._deliver(event)
        else:
            # A dialled call's first events may come before dial() has returned.
            self._early[event.call].append(event)

    def _deliver(self, event: StackEvent) -> None:
        handler = self._handlers[event.call]
        if event.event is Event.CALL_CLOSED:
            del self._handlers[event.call]
        handler(event)

    async def release(self) -> None:
        """Give the runtime back; the last user stops it and its threads."""
        global _current
        async with _lock():
            self._users -= 1
            if self._users:
                return
            _current = None
            await asyncio.to_thread(self.pump.stop)
            await self._runtime.close()


async def acquire() -> Stack:
    """Return the runtime of this process; start it if needed.

    Raises:
        RuntimeError: phones of another event loop still use it.
    """
    global _current
    async with _lock():
        if _current is None:
            _current = await Stack._start()
        elif _current.pump.loop is not asyncio.get_running_loop():
            raise RuntimeError("phones of another event loop are still open in this process")
        _current._users += 1
        return _current


def _lock() -> asyncio.Lock:
    return _locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())


def _free_udp_port() -> int:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
