"""What is really on the wire: the RTP packets of G.711 calls on the loopback, with their times.

A phone that plays audio knows when it gave a packet to its SIP stack, not when that sent it (13 to
50 ms later, measured). Only the packets themselves tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np

from core.audio import Pcm, ulaw_decode

RATE = 8000
_IPV4, _UDP, _PCMU = 0x0800, 17, 0
_AROUND_S = 1.0
_LONGEST = 160
_ETHERNET, _UDP_HEADER, _RTP_HEADER = 14, 8, 12

Flow = tuple[int, int]
"""Source and destination port."""


@dataclass
class _Packets:
    stamps: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class Flowed:
    """One flow: sample n was on the wire ``n / RATE`` seconds after ``origin`` (Unix seconds)."""

    origin: float
    pcm: Pcm

    def since(self, origin: float) -> Pcm:
        """Return the audio with silence from an earlier time on."""
        before = round((self.origin - origin) * RATE)
        return np.concatenate((np.zeros(before, np.int16), self.pcm))


class Wire:
    def __init__(self) -> None:
        self._flows: dict[Flow, _Packets] = defaultdict(_Packets)

    def take(self, frame: bytes, at: float) -> None:
        if len(frame) < _ETHERNET + 20 or frame[_ETHERNET + 9] != _UDP:
            return
        udp = _ETHERNET + (frame[_ETHERNET] & 15) * 4
        source, target, length = struct.unpack_from(">HHH", frame, udp)
        rtp = frame[udp + _UDP_HEADER : udp + length]
        if len(rtp) <= _RTP_HEADER or rtp[0] != 0x80 or rtp[1] & 0x7F != _PCMU:
            return
        flow = self._flows[source, target]
        flow.stamps.append(struct.unpack_from(">I", rtp, 4)[0])
        flow.times.append(at)
        flow.payloads.append(rtp[_RTP_HEADER:])

    def call(self, port: int) -> tuple[Pcm, Pcm]:
        """Return what the phone with this RTP port sent and was sent, at RATE on one clock.

        Packets that are lost on their way to a socket are on the wire.
        """
        there = next(flow for flow in self._flows if flow[0] == port and flow[::-1] in self._flows)
        said, heard = self._flow(there), self._flow(there[::-1])
        origin = min(said.origin, heard.origin)
        return said.since(origin), heard.since(origin)

    def _flow(self, ports: Flow) -> Flowed:
        """Return one flow's audio; what was not sent or was lost is silence.

        A sender's timestamps follow its clock; a packet is late if those around it are not.
        """
        packets = self._flows[ports]
        stamps = np.unwrap(np.array(packets.stamps, np.float64), period=2.0**32)
        times = np.array(packets.times)
        zeros = times - (stamps - stamps[0]) / RATE
        due = [
            zeros[np.abs(times - at) <= _AROUND_S].min() + (stamp - stamps[0]) / RATE
            for at, stamp in zip(times, stamps, strict=True)
        ]
        origin = min(due)
        pcm = np.zeros(round((max(due) - origin) * RATE) + 10 * _LONGEST, np.int16)
        for at, payload in zip(due, packets.payloads, strict=True):
            first = round((at - origin) * RATE)
            pcm[first : first + len(payload)] = ulaw_decode(payload)
        return Flowed(origin, pcm)


@contextlib.asynccontextmanager
async def wire() -> AsyncIterator[Wire]:
    """Watch the loopback. Raises PermissionError without CAP_NET_RAW."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_IPV4)) as watched:
        watched.bind(("lo", 0))
        watched.setblocking(False)
        found = Wire()
        watching = asyncio.create_task(_watch(watched, found))
        try:
            yield found
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def _watch(watched: socket.socket, found: Wire) -> None:
    loop = asyncio.get_running_loop()
    while True:
        frame, address = await loop.sock_recvfrom(watched, 4096)
        if address[2] != socket.PACKET_OUTGOING:  # each packet passes twice
            found.take(frame, time.time())
