"""The whole gateway in the test's own process, with SQLite in a folder and LiveKit unreachable."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from core.jobs import Heartbeat
from core.models import Agent, AgentConfig, CallEvent, new_id
from core.settings import Settings
from dev.stack.environment import GivenSettings
from gateway.app import create_app
from gateway.http.pace import USUAL, Pace
from gateway.keys import SETTINGS, STORE
from gateway.store.call_status import Call
from gateway.store.calls import NewCall, Store
from sip.guard import Resolver
from tests.conftest import AUTH, write_agents
from tests.support.clock import Clock
from tests.support.databases import migrated
from tests.support.edge import served

KEY, SECRET = "APItest", "a-livekit-secret-of-32-bytes-at-least"
# Nothing listens on the discard port.
NOWHERE = "http://127.0.0.1:9"


def settings_in(folder: Path, **changes: Any) -> Settings:
    write_agents(folder)
    database = folder / "test.db"
    if not database.exists():
        database.write_bytes(migrated())
    values: dict[str, Any] = {
        **AUTH,
        "agents_dir": folder,
        "default_agent": "greeter",
        "database_url": f"sqlite:///{database}",
        "data_dir": folder,
        "livekit_url": NOWHERE,
        "livekit_api_key": KEY,
        "livekit_api_secret": SECRET,
        "shutdown_grace_s": 0,
        **changes,
    }
    return GivenSettings(**values)


@dataclass(frozen=True)
class Running:
    app: web.Application
    http: aiohttp.ClientSession
    clock: Clock
    """The gateway's; see gateway.app.create_app."""
    port: int

    @property
    def store(self) -> Store:
        return self.app[STORE]

    async def worker(self, **changes: Any) -> Heartbeat:
        """Store a worker's heartbeat, by default one with ten free places for calls in rooms."""
        name = self.app[SETTINGS].agent_name
        values = {"worker_id": "w1", "agent_name": name, "capacity": 10, "active": 0}
        beat = Heartbeat(**{**values, **changes})
        await self.store.heartbeat(beat)
        return beat

    async def call(self, **changes: Any) -> Call:
        """Store a call of the tenant acme, with an agent, and return it."""
        values: dict[str, Any] = {
            "id": new_id("call"),
            "auth_id": "acme",
            "direction": "outbound",
            "room_name": new_id("room"),
            "participant_identity": "caller",
            "from_number": "+15105550123",
            "to_number": "+15551234567",
            "max_duration_ms": 60_000,
            "agent": Agent(id="greeter", version=1, config=AgentConfig(name="Greeter")),
            "metadata": {"lead": 882},
        }
        if changes.get("direction") == "web":
            values["type"] = "web"
        queued = changes.pop("queued", None) or CallEvent(type="call.queued")
        return await self.store.insert_call(NewCall(**{**values, **changes}), queued)


async def somewhere(_name: str, _tenant: str | None) -> list[str]:
    """Resolve every name to a public address."""
    return ["93.184.216.34"]


@asynccontextmanager
async def running(
    settings: Settings,
    resolve: Resolver = somewhere,
    clock: Clock | None = None,
    pace: Pace = USUAL,
) -> AsyncIterator[Running]:
    clock = clock or Clock()
    app = await create_app(settings, resolve=resolve, clock=clock, pace=pace)
    async with served(app) as edge:
        yield Running(app, edge.http, clock, edge.port)
