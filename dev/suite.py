"""``python -m dev.suite``: run all tests, so that those that hold calls have the processor.

1. The tests that hold calls, in two processes; they mostly wait. The others run beside them in
   what processor time is left.
2. The tests that are marked ``alone``, one after the other.
3. What failed in 1, once more and by itself: in 1 a busy machine may have torn its audio. A test
   that passes here is named in the last line, and is still to be looked into.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

CALLS = "(stack or sip or providers) and not alone"
OTHERS = "not (stack or sip or providers or alone)"
_TWO_PROCESSES = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
# A quarter of a contested core (sched(7)): a call's process gets it first.
_NICE = 6
AGAIN_AT_MOST = 5
"""With more failures than that, something is broken, and nothing runs again."""
_CLEANED_UP_WITHIN_S = 30.0

_NONE_FAILED, _SOME_FAILED, _NONE_COLLECTED = 0, 1, 5  # pytest's exit codes


@dataclass(frozen=True)
class _Pytest:
    """One run of pytest, which remembers in its own folder what failed."""

    cache: Path
    arguments: Sequence[str]
    nice: int = 0

    def start(self, output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        # Unbuffered: otherwise a pipe gets the progress in blocks.
        python = ("nice", "-n", str(self.nice), sys.executable, "-u")
        cache = ("-o", f"cache_dir={self.cache}")
        return subprocess.Popen(
            (*python, "-m", "pytest", "-q", *cache, *self.arguments),
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
        )

    def failed(self) -> list[str]:
        try:
            return sorted(json.loads((self.cache / "v/cache/lastfailed").read_text()))
        except FileNotFoundError:
            return []


def main() -> int:
    # The parent may ignore SIGINT, as a shell does for background jobs; children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="tests-") as folder, contextlib.ExitStack() as stack:
        output = stack.enter_context((Path(folder) / "others.log").open("w+b"))
        return _run(Path(folder), output)


def _run(folder: Path, output: IO[bytes]) -> int:
    calls = _Pytest(folder / "calls", (*_TWO_PROCESSES, "-m", CALLS))
    others = _Pytest(folder / "others", ("-m", OTHERS), nice=_NICE)
    print("tests that hold calls; the others beside them, shown afterwards", flush=True)
    codes = _beside_each_other(calls, others, output)
    print("tests that need the machine to themselves", flush=True)
    alone = _run_one(_Pytest(folder / "alone", ("-m", "alone")))
    again = [test for run in (calls, others) for test in run.failed()]
    healthy = {_NONE_FAILED, _SOME_FAILED, _NONE_COLLECTED}
    unsteady: list[str] = []
    if codes <= healthy and 0 < len(again) <= AGAIN_AT_MOST:
        print(f"what failed beside others, by itself: {len(again)}", flush=True)
        # One process for each: what the first leaves behind cannot help the second.
        for number, test in enumerate(again):
            if _run_one(_Pytest(folder / f"again{number}", (test,))) == _NONE_FAILED:
                unsteady.append(test)
    if alone in (_NONE_FAILED, _NONE_COLLECTED) and codes <= healthy and unsteady == again:
        but = f"; passed only by themselves: {' '.join(unsteady)}" if unsteady else ""
        print(f"make test: all tests passed{but}")
        return 0
    listed = ", ".join(map(str, sorted(codes)))
    print(f"make test: FAILED (pytest's exit codes: {listed}, alone {alone})", file=sys.stderr)
    return 1


def _beside_each_other(calls: _Pytest, others: _Pytest, output: IO[bytes]) -> set[int]:
    """Run both, show the second's output at its end, and return their exit codes."""
    with _ended(others.start(output)) as second, _ended(calls.start()) as first:
        codes = {first.wait()}
        codes.add(second.wait())
        output.seek(0)
        for line in output:
            sys.stdout.write(line.decode(errors="replace"))
        sys.stdout.flush()
    return codes


def _run_one(run: _Pytest) -> int:
    with _ended(run.start()) as process:
        return process.wait()


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Let the process clean up when this one is interrupted, as a terminal interrupts both."""
    try:
        yield process
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):
            process.send_signal(signal.SIGINT)
        try:
            process.wait(_CLEANED_UP_WITHIN_S)
        finally:
            process.kill()
        raise


if __name__ == "__main__":
    sys.exit(main())
