"""Samples of a stack's resources: memory, file descriptors, threads, tasks, rooms, records."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp
import psutil
from livekit.api import LiveKitAPI
from livekit.protocol.room import ListRoomsRequest
from prometheus_client.parser import text_string_to_metric_families

from dev.bench.usage import MIB
from dev.stack import Stack
from worker.link.spool import leftovers

OPEN_STATUSES = ("queued", "ringing", "in-progress")
MISHAPS = ("busy", "no-answer", "failed", "canceled")
FORK_SERVER = "fork server"
"""The worker's child from which the job processes, one per call, are forked."""


@dataclass(frozen=True, slots=True)
class Sample:
    """``values`` by "process, quantity", for example ``gateway, RSS (MiB)``."""

    at_s: float
    calls: int
    values: Mapping[str, float]


@dataclass(slots=True)
class Watch:
    """Takes samples of a running stack. ``metrics``: the components' metrics URLs."""

    stack: Stack
    http: aiohttp.ClientSession
    livekit: LiveKitAPI
    metrics: Mapping[str, str]
    started: float = field(default_factory=time.monotonic)

    async def sample(self, calls: int) -> Sample:
        at_s = time.monotonic() - self.started
        pids = {name: part.pid for name, part in self.stack.components.items() if part.pid}
        pids.pop("providers", None)  # stand-ins
        values = await asyncio.to_thread(held_by, pids)
        for name, url in self.metrics.items():
            values[f"{name}, tasks"] = await self._tasks(url)
        return Sample(at_s, calls, values | await self.left())

    async def left(self) -> dict[str, float]:
        """Return the counts that must be 0 when there is no call."""
        rooms = await self.livekit.room.list_rooms(ListRoomsRequest())
        async with self.http.get(f"{self.stack.bridge_url}/") as response:
            legs = (await response.json())["live_calls"]
        spool = self.stack.settings.data_dir / "spool" / "worker"
        return {
            "rooms": len(rooms.rooms),
            "phone legs": legs,
            "unfinished records": sum([await self.records(each) for each in OPEN_STATUSES]),
            "spooled calls": len(leftovers(spool)),
        }

    async def mishaps(self) -> list[str]:
        """Return the records of calls that did not end by a hang-up."""
        found = []
        for status in MISHAPS:
            async with self.http.get("/v1/calls", params={"status": status}) as response:
                response.raise_for_status()
                listed = (await response.json())["data"]
            found += [f"{call['id']}: {status}, {call['disconnectionReason']}" for call in listed]
        return found

    async def records(self, status: str) -> int:
        """Return the number of calls with that status."""
        async with self.http.get("/v1/calls", params={"status": status, "limit": 1}) as response:
            response.raise_for_status()
            return int((await response.json())["total"])

    async def _tasks(self, url: str) -> float:
        async with self.http.get(url) as response:
            response.raise_for_status()
            text = await response.text()
        for family in text_string_to_metric_families(text):
            if family.name == "switchroom_asyncio_tasks":
                return family.samples[0].value
        raise LookupError(f"{url} has no metric of the tasks")


def held_by(pids: Mapping[str, int]) -> dict[str, float]:
    """Return the resources of processes, and of the worker's fork server, by name."""
    processes = {name: psutil.Process(pid) for name, pid in pids.items()}
    values: dict[str, float] = {}
    if "worker" in processes:
        children = processes["worker"].children()
        servers = [
            each for each in children if any("forkserver" in word for word in each.cmdline())
        ]
        if servers:
            processes[FORK_SERVER] = servers[0]
            values["job processes"] = len(servers[0].children())
        values["worker's children"] = len(children)
    for name, process in processes.items():
        memory = process.memory_full_info()
        values |= {
            f"{name}, RSS (MiB)": memory.rss / MIB,
            f"{name}, PSS (MiB)": memory.pss / MIB,
            f"{name}, files": process.num_fds(),
            f"{name}, threads": process.num_threads(),
        }
    return values
