"""How long the gateway waits for what may never come; tests pass shorter waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aiohttp import web

from gateway.store.once import LEASE


@dataclass(frozen=True, slots=True)
class Pace:
    """All in seconds."""

    heartbeat_s: float = 15.0
    """The longest silence of an event stream; proxies close silent connections."""
    settle_s: float = 2.0
    """After a call's end, the wait for the agent's last turns; a killed agent sends none."""
    twin_wait_s: float = 10.0
    """A repeated request's wait for the first one with its Idempotency-Key."""
    renew_key_s: float = LEASE.total_seconds() / 3
    """Between two renewals of a running request's lease on its Idempotency-Key."""
    first_words_s: float = 10.0
    """A new socket's time to say which session it belongs to."""
    first_message_s: float = 1.0
    """A client's time to say what it wants, before its session begins with the defaults."""
    ping_s: float = 2.0
    """Between two pings of a client's socket."""
    patience_s: float = 4.5
    """After so long without a pong, or with a write that does not drain, a client's socket is
    broken."""
    worker_ping_s: float = 0.5
    """A worker's socket is pinged when nothing has come from it for so long."""
    worker_patience_s: float = 1.5
    """When nothing has come from a worker for so long, or a write does not drain, its process may
    be frozen, or its event loop blocked. It gets half a second more to take another socket
    (gateway.calls.streams.agents); then its agent is lost."""


USUAL: Final = Pace()
PACE = web.AppKey("pace", Pace)
