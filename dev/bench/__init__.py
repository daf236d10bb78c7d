"""Benchmarks: what this system adds, measured beside what it is compared with, in one run.

One module a benchmark, each with ``NAME``, ``TITLE`` and ``async def measure(context)``
returning a ``Section`` of the report. ``make bench`` runs all and writes docs/benchmarks.md.
"""

from dev.bench.runner import run

__all__ = ["run"]
