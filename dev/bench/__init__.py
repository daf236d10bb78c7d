"""Benchmarks: what this system adds, measured beside what it is compared with, in one run.

One module a benchmark, some in a folder with what they need, each with ``async def
measure(settings, step)`` returning a ``Section`` of the report (report.py); runner.py names them.
``make bench`` runs all and writes docs/benchmarks.md, and docs/benchmarks/ with the samples (JSON)
and a plot (SVG) for each.
"""

from dev.bench.runner import run

__all__ = ["run"]
