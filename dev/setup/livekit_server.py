"""Finds a livekit-server binary, or builds the pinned version with Go.

Order: LIVEKIT_SERVER_BIN (or its value at the last ``python -m dev setup``, for tests,
which do not read settings), PATH, the cache folder, a build into the cache folder.
LiveKit publishes no binary on a package registry, but the Go module proxy has its
source. dev.setup.go_toolchain finds the Go for the build.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dev.process import ManagedProcess, inherited_environment, run_to_end
from dev.setup import go_toolchain
from dev.setup.go_toolchain import Report

VERSION = "1.13.5"
MODULE = f"github.com/livekit/livekit-server/cmd/server@v{VERSION}"
CHOSEN = "chosen"  # a link in the cache folder
BUILD_TIMEOUT_S = 1200.0
LOCK_INTERVAL_S = 0.2

OLDEST_GO = ".".join(map(str, go_toolchain.OLDEST))

HOW_TO_GET_ONE = f"""\
no livekit-server found, and no Go to build it with ({{why}}). One of these will do:
  - install Go {OLDEST_GO} or newer (https://go.dev/dl), then run this again: version {VERSION} is
    built once, in about two minutes, and kept in {{cache}}
  - install livekit-server {VERSION} so that it is on PATH
    (https://docs.livekit.io/home/self-hosting/local: brew, or the release's archive)
  - set LIVEKIT_SERVER_BIN to the path of a livekit-server binary"""


class LiveKitServerMissing(RuntimeError):
    """There is no livekit-server and none can be built; the message says what to do."""


@dataclass(frozen=True, slots=True)
class LiveKitServer:
    """A binary and its origin."""

    path: Path
    origin: Literal["LIVEKIT_SERVER_BIN", "PATH", "cache", "built"]


def default_cache() -> Path:
    """Return the checkout's ``.cache/bin``; without a checkout, the user's cache folder."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").exists():
        return checkout / ".cache" / "bin"
    return Path.home() / ".cache" / "switchroom" / "bin"


def find(configured: Path | None = None, *, cache: Path | None = None) -> LiveKitServer | None:
    """Return an existing binary, or None if it must be built.

    Raise LiveKitServerMissing if the configured path is not an executable file.
    """
    if configured is not None:
        if not _is_executable(configured):
            raise LiveKitServerMissing(f"LIVEKIT_SERVER_BIN={configured} is not an executable file")
        return LiveKitServer(configured, "LIVEKIT_SERVER_BIN")
    cache = cache or default_cache()
    if _is_executable(cache / CHOSEN):
        return LiveKitServer((cache / CHOSEN).resolve(), "LIVEKIT_SERVER_BIN")
    on_path = shutil.which("livekit-server")
    if on_path is not None:
        return LiveKitServer(Path(on_path), "PATH")
    cached = _cached(cache)
    return LiveKitServer(cached, "cache") if _is_executable(cached) else None


def obstacle() -> str | None:
    """Return why there can be no livekit-server here; None if there is one or it can be built.

    It is cheap, and runs before anything is installed. It ignores LIVEKIT_SERVER_BIN.
    """
    if find() is not None or (why := go_toolchain.obstacle()) is None:
        return None
    return HOW_TO_GET_ONE.format(cache=default_cache(), why=why)


def remember(configured: Path | None, *, cache: Path | None = None) -> None:
    """Store the configured path for later runs that do not read settings; None removes it."""
    cache = cache or default_cache()
    cache.mkdir(parents=True, exist_ok=True)
    (cache / CHOSEN).unlink(missing_ok=True)
    if configured is not None:
        (cache / CHOSEN).symlink_to(configured.resolve())


async def ensure(
    configured: Path | None = None,
    *,
    cache: Path | None = None,
    report: Report = lambda _: None,
) -> LiveKitServer:
    """Find a binary or build one. ``report`` gets the build's progress twice a second.

    Several processes may run this at once: one builds, the others wait for it.
    Raise LiveKitServerMissing if there is none and it cannot be built.
    """
    cache = cache or default_cache()
    found = find(configured, cache=cache)
    if found is not None:
        return found
    cache.mkdir(parents=True, exist_ok=True)
    async with _build_lock(cache, report):
        target = _cached(cache)
        if _is_executable(target):  # another process built it while this one waited
            return LiveKitServer(target, "cache")
        try:
            go = await go_toolchain.ensure(cache, report)
        except go_toolchain.GoMissing as error:
            raise LiveKitServerMissing(HOW_TO_GET_ONE.format(cache=cache, why=error)) from None
        await _build(go, target, report)
    return LiveKitServer(target, "built")


async def _build(go: Path, target: Path, report: Report) -> None:
    # Built beside its final name: a rename within one file system is atomic, so that no process
    # finds an incomplete binary.
    with tempfile.TemporaryDirectory(prefix="build-", dir=target.parent) as folder:
        process = ManagedProcess(
            "go install",
            [str(go), "install", "-v", "-trimpath", MODULE],
            log_path=Path(folder) / "log",
            # Without cgo no C compiler is needed; the release binaries are built like this too.
            # Debian's Go fetches a newer toolchain only with GOTOOLCHAIN=auto.
            env=inherited_environment()
            | {"GOBIN": folder, "CGO_ENABLED": "0", "GOTOOLCHAIN": "auto"},
            cwd=Path(folder),
        )

        def building(spent_s: float) -> None:
            report(_progress(process.log_text(), spent_s))

        try:
            code = await run_to_end(process, timeout_s=BUILD_TIMEOUT_S, meanwhile=building)
        except TimeoutError:
            raise LiveKitServerMissing(
                f"building livekit-server took more than {BUILD_TIMEOUT_S:g} s"
            ) from None
        if code != 0:
            tail = "\n  ".join(process.log_text().splitlines()[-15:])
            raise LiveKitServerMissing(
                f"{' '.join(process.command)} failed (it needs Go {OLDEST_GO} or newer):\n  {tail}"
            )
        os.replace(Path(folder) / "server", target)


def _progress(log: str, elapsed_s: float) -> str:
    """Summarise the output of ``go install -v``: "go: downloading …", then a line per package."""
    lines = log.splitlines()
    downloads = sum(line.startswith("go: downloading") for line in lines)
    compiled = sum(not line.startswith("go: ") for line in lines)
    return (
        f"building livekit-server {VERSION} with Go: {downloads} modules downloaded, "
        f"{compiled} packages compiled, {elapsed_s:.0f} s (once, about 2 minutes)"
    )


@contextlib.asynccontextmanager
async def _build_lock(cache: Path, report: Report) -> AsyncIterator[None]:
    """Allow one build at a time. The kernel drops the lock when its holder ends."""
    with (cache / "livekit-server.lock").open("w") as file:
        waiting_since = time.monotonic()
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = time.monotonic() - waiting_since
                report(f"waiting for another build of livekit-server, {waited:.0f} s")
                await asyncio.sleep(LOCK_INTERVAL_S)
        yield


def _cached(cache: Path) -> Path:
    return cache / f"livekit-server-v{VERSION}"


def _is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
