"""Prometheus metrics about each process itself, so that a leak shows while it is small."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class TaskCollector(Collector):
    """Collector of ``switchroom_asyncio_tasks``; counts when scraped, from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "switchroom_asyncio_tasks",
            "Asyncio tasks that are not done.",
            value=len(asyncio.all_tasks(self._loop)),
        )


def watch_process(registry: CollectorRegistry) -> None:
    """Register this process's memory, CPU time, file descriptors, and the running loop's tasks."""
    ProcessCollector(registry=registry)
    registry.register(TaskCollector(asyncio.get_running_loop()))
