"""A gateway with the LiveKit stub of dev.standins.livekit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from livekit.api import LiveKitAPI

from dev.standins.livekit import LiveKitStub, Refusal, agent, phone
from tests.support.edge import served
from tests.support.inprocess import KEY, SECRET, Running, running, settings_in

__all__ = ["LiveKitStub", "Refusal", "agent", "phone", "reached", "running_with"]


@asynccontextmanager
async def reached(livekit: LiveKitStub) -> AsyncIterator[LiveKitAPI]:
    """Serve the stub, and yield a client of it."""
    async with (
        served(livekit.app()) as edge,
        LiveKitAPI(f"http://127.0.0.1:{edge.port}", KEY, SECRET, failover=False) as api,
    ):
        yield api


@asynccontextmanager
async def running_with(
    livekit: LiveKitStub, folder: Path, **changes: Any
) -> AsyncIterator[Running]:
    """Run a gateway; ``livekit`` serves both rooms and SIP."""
    async with served(livekit.app()) as edge:
        url = f"http://127.0.0.1:{edge.port}"
        async with running(settings_in(folder, livekit_url=url, **changes)) as gateway:
            yield gateway
