"""``python -m dev.bench [NAME …]``: run some of the benchmarks; their sections of the report."""

from __future__ import annotations

import argparse
import asyncio
import sys

from core import settings
from dev.bench.runner import BENCHMARKS, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dev.bench")
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], metavar="NAME")
    names = parser.parse_args().names
    return asyncio.run(run(settings.load(), names))


if __name__ == "__main__":
    sys.exit(main())
