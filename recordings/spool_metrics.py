"""Prometheus metrics about the recordings that are spooled on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from recordings import spool


class SpoolCollector(Collector):
    """Lists the directory when scraped. Processes that share it report the same values."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def describe(self) -> Iterable[Metric]:
        """Name the metrics. Without it, a registry collects them, on the event loop."""
        return _spooled(), _size()

    def collect(self) -> Iterable[Metric]:
        """Read the directory. Blocks."""
        found, size = _spooled(), _size()
        for state, suffix in (("waiting", ".json"), ("rejected", ".rejected")):
            found.add_metric([state], len(spool.with_suffix(self._directory, suffix)))
        size.add_metric([], spool.size(self._directory))
        return found, size


def _spooled() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "switchroom_recordings_spooled",
        "Recordings on this machine's disk: in progress or not uploaded yet, and set aside.",
        labels=["state"],
    )


def _size() -> GaugeMetricFamily:
    return GaugeMetricFamily("switchroom_recordings_spooled_bytes", "The size of their audio.")
