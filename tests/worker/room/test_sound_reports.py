"""Asking a phone's leg for its reports, in a room that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
from livekit import rtc

from core.sound.reports import TOPIC, SoundReport
from worker.room import sound_reports
from worker.room.sound_reports import SoundReports

pytestmark = pytest.mark.unit

LEVELS = np.array([1, 2], np.uint8)
REPORT = SoundReport(7, LEVELS, LEVELS)


@dataclass
class Sender:
    identity: str


@dataclass
class Packet:
    data: bytes
    participant: Sender | None = None
    topic: str | None = TOPIC


class Room:
    """``refuses`` times the leg has no such method (yet)."""

    def __init__(self, refuses: int = 0) -> None:
        self.local_participant = self
        self.refuses = refuses
        self.asked: list[str] = []
        self.handlers: list[Callable[[Any], None]] = []
        self.got: list[SoundReport] = []

    def on(self, _: str, handler: Callable[[Any], None]) -> None:
        self.handlers.append(handler)

    def off(self, _: str, handler: Callable[[Any], None]) -> None:
        self.handlers.remove(handler)

    async def perform_rpc(self, *, destination_identity: str, method: str, **_: object) -> str:
        self.asked.append(f"{method} of {destination_identity}")
        if len(self.asked) <= self.refuses:
            raise rtc.RpcError(rtc.RpcError.ErrorCode.UNSUPPORTED_METHOD, "no such method")
        return "{}"

    def asks(self) -> SoundReports:
        return SoundReports(cast(rtc.Room, self), "phone", self.got.append)

    def send(self, packet: Packet) -> None:
        for handler in self.handlers:
            handler(packet)


@pytest.mark.parametrize("refuses", [0, 1, 9])
async def test_the_leg_is_asked_until_it_agrees(
    refuses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the question once its audio runs; a browser never does."""
    monkeypatch.setattr(sound_reports, "_AGAIN_AFTER_S", 0.0)
    room = Room(refuses)
    reports = room.asks()
    for _ in range(20):
        await asyncio.sleep(0)
    assert room.asked == ["switchroom.reportSound of phone"] * min(refuses + 1, 3)
    await reports.aclose()
    assert not room.handlers


async def test_only_the_legs_reports_are_taken() -> None:
    room = Room()
    reports = room.asks()
    data = REPORT.encode()
    for packet in (
        Packet(data),
        Packet(data, Sender("visitor")),
        Packet(data, Sender("phone"), "another"),
        Packet(b"no report", Sender("phone")),
        Packet(b"", Sender("phone")),
    ):
        room.send(packet)
    assert not room.got
    room.send(Packet(data, Sender("phone")))
    assert [report.first for report in room.got] == [7]
    await reports.aclose()
