"""The connections by which workers send their heartbeats: one that breaks is a hint."""

from __future__ import annotations

import asyncio


class Connections:
    """Of the workers whose last heartbeat came to this gateway.

    The system closes the connections of a process that dies, at once, while a missing heartbeat
    takes seconds to be missed. But proxies and restarts close connections, too: whoever reads
    ``broken`` has to ask.
    """

    def __init__(self) -> None:
        self._open: dict[str, asyncio.BaseTransport] = {}

    def heard(self, worker_id: str, transport: asyncio.BaseTransport | None) -> None:
        """Note the connection of a heartbeat; None: it is closed already."""
        if transport is not None:
            self._open[worker_id] = transport

    def broken(self) -> set[str]:
        """Return the workers whose connection was closed since the last time."""
        closed = {worker for worker, transport in self._open.items() if transport.is_closing()}
        for worker in closed:
            del self._open[worker]
        return closed
