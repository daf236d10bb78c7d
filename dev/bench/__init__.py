"""Benchmarks: this system and its peers, measured in the same run.

Each benchmark is a module, or a folder for the larger ones, with ``async def measure(settings,
step)``, which returns a ``Section`` of the report (report.py). runner.py lists them. ``make bench``
runs all of them and writes docs/benchmarks.md, and the samples (JSON) and a plot (SVG) of each
into docs/benchmarks/.
"""

from dev.bench.runner import run

__all__ = ["run"]
