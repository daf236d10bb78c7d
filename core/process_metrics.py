"""What each of our processes tells Prometheus of itself, so that a leak shows while it is small."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class TaskCollector(Collector):
    """``switchroom_asyncio_tasks``, counted when asked for, from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "switchroom_asyncio_tasks",
            "Asyncio tasks that are not done.",
            value=len(asyncio.all_tasks(self._loop)),
        )


def watch_process(registry: CollectorRegistry) -> None:
    """Add this process's memory, CPU time, file descriptors and tasks of the running loop."""
    ProcessCollector(registry=registry)
    registry.register(TaskCollector(asyncio.get_running_loop()))
