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
from collections.abc import Iterator
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
    arguments: tuple[str, ...]
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
    alone = _Pytest(folder / "alone", ("-m", "alone"))
    print("tests that hold calls; the others beside them, shown afterwards", flush=True)
    ended = _beside_each_other(calls, others, output)
    print("tests that need the machine to themselves", flush=True)
    ended[alone] = _run_one(alone)
    again = [*calls.failed(), *others.failed()]
    failed, unsteady = alone.failed(), list[str]()
    if len(again) > AGAIN_AT_MOST:
        failed += again
    elif again:
        print(f"what failed beside others, by itself: {len(again)}", flush=True)
        # One process for each: what the first leaves behind cannot help the second.
        for number, test in enumerate(again):
            (unsteady if _passes(folder / f"again{number}", test) else failed).append(test)
    failed += [
        f"{run.cache.name}: exit code {code}" for run, code in ended.items() if _broke(run, code)
    ]
    if not failed and _NONE_FAILED not in ended.values() and not unsteady:
        failed.append("there are no tests")
    if failed:
        print(f"make test: FAILED: {' '.join(failed)}", file=sys.stderr)
        return 1
    but = f"; passed only by themselves: {' '.join(unsteady)}" if unsteady else ""
    print(f"make test: all tests passed{but}")
    return 0


def _passes(cache: Path, test: str) -> bool:
    """Run the test by itself; a skip is no pass."""
    report = cache.with_suffix(".xml")
    code = _run_one(_Pytest(cache, (test, f"--junitxml={report}")))
    return code == _NONE_FAILED and "<skipped" not in report.read_text()


def _broke(run: _Pytest, code: int) -> bool:
    """Return True if the run failed otherwise than by tests that it names."""
    return code not in {_NONE_FAILED, _NONE_COLLECTED} and not (
        code == _SOME_FAILED and run.failed()
    )


def _beside_each_other(calls: _Pytest, others: _Pytest, output: IO[bytes]) -> dict[_Pytest, int]:
    """Run both, show the second's output at its end, and return their exit codes."""
    with _ended(others.start(output)) as second, _ended(calls.start()) as first:
        codes = {calls: first.wait(), others: second.wait()}
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
