"""Tests of core.process_metrics: a process's memory, file descriptors and tasks."""

from __future__ import annotations

import asyncio
import os

import pytest
from prometheus_client import CollectorRegistry

from core.process_metrics import watch_process

pytestmark = pytest.mark.unit


def value(registry: CollectorRegistry, name: str) -> float:
    found = registry.get_sample_value(name)
    assert found is not None
    return found


async def test_tasks_are_counted_from_any_thread() -> None:
    registry = CollectorRegistry()
    watch_process(registry)
    name = "switchroom_asyncio_tasks"
    before = value(registry, name)
    tasks = [asyncio.create_task(asyncio.Event().wait()) for _ in range(3)]
    assert value(registry, name) == before + 3
    assert await asyncio.to_thread(value, registry, name) == before + 3
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert value(registry, name) == before


async def test_open_files_and_memory_are_told() -> None:
    registry = CollectorRegistry()
    watch_process(registry)
    before = value(registry, "process_open_fds")
    descriptors = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
    try:
        assert value(registry, "process_open_fds") == before + 5
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    assert value(registry, "process_resident_memory_bytes") > 1_000_000
