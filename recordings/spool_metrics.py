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

    def collect(self) -> Iterable[Metric]:
        found = GaugeMetricFamily(
            "switchroom_recordings_spooled",
            "Recordings on this machine's disk: in progress or not uploaded yet, and set aside.",
            labels=["state"],
        )
        for state, suffix in (("waiting", ".json"), ("rejected", ".rejected")):
            found.add_metric([state], len(spool.with_suffix(self._directory, suffix)))
        yield found
        yield GaugeMetricFamily(
            "switchroom_recordings_spooled_bytes",
            "The size of their audio.",
            value=spool.size(self._directory),
        )
