"""Builds a program from the Go module proxy, once, into the cache folder.

Standard library only: ``dev.setup.livekit_server`` is imported before anything is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from dev.process import ManagedProcess, inherited_environment, run_to_end
from dev.setup import go_toolchain
from dev.setup.go_toolchain import Report

BUILD_TIMEOUT_S = 1200.0
LOCK_INTERVAL_S = 0.2

OLDEST_GO = ".".join(map(str, go_toolchain.OLDEST))


class BuildFailed(RuntimeError):
    """``go install`` failed; the message ends with its output."""


@dataclass(frozen=True, slots=True)
class Program:
    name: str
    version: str
    package: str
    """The package's path, whose last part is the binary's name."""

    def cached(self, cache: Path) -> Path:
        return cache / f"{self.name}-v{self.version}"


async def ensure(program: Program, cache: Path, report: Report) -> bool:
    """Build the program into the cache unless it is there. Return True if it was built now.

    Several processes may run this at once: one builds, the others wait for it.
    Raise GoMissing and BuildFailed.
    """
    target = program.cached(cache)
    if await asyncio.to_thread(is_executable, target):
        return False
    await asyncio.to_thread(cache.mkdir, parents=True, exist_ok=True)
    async with _build_lock(program, cache, report):
        if is_executable(target):  # another process built it while this one waited
            return False
        go = await go_toolchain.ensure(cache, report)
        await _build(program, go, target, report)
    return True


async def _build(program: Program, go: Path, target: Path, report: Report) -> None:
    # Built beside its final name: a rename within one file system is atomic, so that no process
    # finds an incomplete binary.
    with tempfile.TemporaryDirectory(prefix="build-", dir=target.parent) as folder:
        process = ManagedProcess(
            "go install",
            [str(go), "install", "-v", "-trimpath", f"{program.package}@v{program.version}"],
            log_path=Path(folder) / "log",
            # Without cgo no C compiler is needed; the release binaries are built like this too.
            # Debian's Go fetches a newer toolchain only with GOTOOLCHAIN=auto.
            env=inherited_environment()
            | {"GOBIN": folder, "CGO_ENABLED": "0", "GOTOOLCHAIN": "auto"},
            cwd=Path(folder),
        )

        def building(spent_s: float) -> None:
            report(_progress(program, process.log_text(), spent_s))

        try:
            code = await run_to_end(process, timeout_s=BUILD_TIMEOUT_S, meanwhile=building)
        except TimeoutError:
            raise BuildFailed(
                f"building {program.name} took more than {BUILD_TIMEOUT_S:g} s"
            ) from None
        if code != 0:
            tail = "\n  ".join(process.log_text().splitlines()[-15:])
            raise BuildFailed(
                f"{' '.join(process.command)} failed (it needs Go {OLDEST_GO} or newer):\n  {tail}"
            )
        os.replace(Path(folder) / program.package.rpartition("/")[2], target)


def _progress(program: Program, log: str, elapsed_s: float) -> str:
    """Summarise the output of ``go install -v``: "go: downloading …", then a line per package."""
    lines = log.splitlines()
    downloads = sum(line.startswith("go: downloading") for line in lines)
    compiled = sum(not line.startswith("go: ") for line in lines)
    return (
        f"building {program.name} {program.version} with Go: {downloads} modules downloaded, "
        f"{compiled} packages compiled, {elapsed_s:.0f} s (once, about 2 minutes)"
    )


@contextlib.asynccontextmanager
async def _build_lock(program: Program, cache: Path, report: Report) -> AsyncIterator[None]:
    """Allow one build at a time. The kernel drops the lock when its holder ends."""
    with (cache / f"{program.name}.lock").open("w") as file:
        waiting_since = time.monotonic()
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = time.monotonic() - waiting_since
                report(f"waiting for another build of {program.name}, {waited:.0f} s")
                await asyncio.sleep(LOCK_INTERVAL_S)
        yield


def is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
