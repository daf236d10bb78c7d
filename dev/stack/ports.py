"""Free ports for children that cannot bind port 0 and report which port they got.

Another process can take a free port before the child binds it. Two measures make
this rare: the ports are below the kernel's ephemeral range, so that no outgoing
connection and no port-0 bind gets them, and a record lock reserves each of them
among all users of this module on this machine, including pytest's parallel workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

# Linux's ephemeral ports start at 32768 (net.ipv4.ip_local_port_range), IANA's at 49152.
FIRST_PORT, LAST_PORT = 20000, 32000


class PortsExhausted(RuntimeError):
    """No free port was found."""


class PortLocks:
    """Record locks on one file: byte N for port N. The kernel drops them when the process ends.

    One instance per process (``PORTS`` below): record locks belong to the process, and closing
    any descriptor of the file would drop them all.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._held: set[int] = set()

    def take(self, host: str = "127.0.0.1") -> int:
        """Reserve a port that is free for TCP and UDP on the host, until ``give_back``."""
        for _ in range(1000):
            port = random.randint(FIRST_PORT, LAST_PORT)
            if port not in self._held and self._lock(port):
                if _is_free(host, port):
                    self._held.add(port)
                    return port
                self._unlock(port)
        raise PortsExhausted(f"no free port between {FIRST_PORT} and {LAST_PORT} on {host}")

    def give_back(self, port: int) -> None:
        if port in self._held:
            self._held.remove(port)
            self._unlock(port)

    def _lock(self, port: int) -> bool:
        if self._fd is None:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _unlock(self, port: int) -> None:
        if self._fd is not None:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, port)


def _is_free(host: str, port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            # The servers set it too: a port with connections in TIME_WAIT is usable.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


PORTS = PortLocks(Path(tempfile.gettempdir()) / f"switchroom-ports-{os.getuid()}.lock")


async def listening(port: int, host: str = "127.0.0.1") -> bool:
    """Return True if the port accepts TCP connections; a probe for ``wait_ready``."""
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
