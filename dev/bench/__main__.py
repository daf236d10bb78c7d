"""``python -m dev.bench [NAME …]``: run some benchmarks and write their sections of the report."""

from __future__ import annotations

import argparse
import asyncio
import sys

from core import settings
from dev.bench.chaos import trial as chaos
from dev.bench.endurance import soak
from dev.bench.recording import alignment
from dev.bench.runner import BENCHMARKS, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dev.bench")
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], metavar="NAME")
    parser.add_argument(
        "--minutes",
        type=float,
        help=f"length of the soak ({soak.MINUTES:g}), of the chaos ({chaos.MINUTES:g}), or of a "
        f"call of recording-alignment ({alignment.MINUTES:g})",
    )
    parser.add_argument("--seed", type=int, default=chaos.SEED, help="of the chaos")
    parser.add_argument(
        "--at-once", action="store_true", help="recording-alignment: all lines at the same time"
    )
    parser.add_argument("--no-report", action="store_true", help="do not write to docs/")
    given = parser.parse_args()
    return asyncio.run(
        run(
            settings.load(),
            given.names,
            minutes=given.minutes,
            at_once=given.at_once,
            seed=given.seed,
            into_report=not given.no_report,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
