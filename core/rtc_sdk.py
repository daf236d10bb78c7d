"""What the LiveKit SDK needs to be quick: its library loaded early, its signals sent at once.

The SDK (livekit 1.1.21, and 1.2.1) opens its WebSocket with Nagle's algorithm on: a signal
that follows another one waits in the kernel until the server has acknowledged the first, which
a Linux server puts off for 40 ms. Publishing a track took 40 ms that way, and takes 6 without;
a call has several such waits before its first word (measured, docs/latency.md). The SDK has no
setting for it and does not show its socket, so the option is set on all of the process's.
"""

from __future__ import annotations

import ctypes
import os
import socket
from typing import Final

from livekit import rtc

_LIBC: Final = ctypes.CDLL(None)
_ON: Final = ctypes.c_int(1)
_OPEN_FILES: Final = "/dev/fd"


async def load() -> None:
    """Load the SDK's native library now: whoever uses it first holds up the event loop."""
    await rtc.AudioSource(8000, 1).aclose()


def signal_at_once(room: rtc.Room) -> None:
    """For a room that is about to be joined: as soon as it is, and whenever it reconnects."""
    room.on("connection_state_changed", _connection_changed)


def _connection_changed(state: rtc.ConnectionState.ValueType) -> None:
    if state == rtc.ConnectionState.CONN_CONNECTED:
        disable_nagle()


def disable_nagle() -> None:
    """On every TCP connection of this process.

    Two microseconds for each open file: what is no TCP socket, or was closed meanwhile, refuses
    the option. Nothing happens where a process cannot list its files.
    """
    try:
        files = os.listdir(_OPEN_FILES)
    except OSError:
        return
    for name in files:
        _LIBC.setsockopt(
            int(name),
            socket.IPPROTO_TCP,
            socket.TCP_NODELAY,
            ctypes.byref(_ON),
            ctypes.sizeof(_ON),
        )
