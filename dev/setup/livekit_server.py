"""Finds a livekit-server binary, or builds the pinned version with Go.

Order: LIVEKIT_SERVER_BIN (or its value at the last ``python -m dev setup``, for tests,
which do not read settings), PATH, the cache folder, a build into the cache folder.
LiveKit publishes no binary on a package registry, but the Go module proxy has its
source. dev.setup.go_toolchain finds the Go for the build.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dev.setup import go_build, go_toolchain
from dev.setup.go_build import OLDEST_GO, is_executable
from dev.setup.go_toolchain import Report

VERSION = "1.13.5"
PROGRAM = go_build.Program(
    "livekit-server", VERSION, "github.com/livekit/livekit-server/cmd/server"
)
CHOSEN = "chosen"  # a link in the cache folder

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
        if not is_executable(configured):
            raise LiveKitServerMissing(f"LIVEKIT_SERVER_BIN={configured} is not an executable file")
        return LiveKitServer(configured, "LIVEKIT_SERVER_BIN")
    cache = cache or default_cache()
    if is_executable(cache / CHOSEN):
        return LiveKitServer((cache / CHOSEN).resolve(), "LIVEKIT_SERVER_BIN")
    on_path = shutil.which("livekit-server")
    if on_path is not None:
        return LiveKitServer(Path(on_path), "PATH")
    cached = PROGRAM.cached(cache)
    return LiveKitServer(cached, "cache") if is_executable(cached) else None


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
    try:
        built = await go_build.ensure(PROGRAM, cache, report)
    except go_toolchain.GoMissing as error:
        raise LiveKitServerMissing(HOW_TO_GET_ONE.format(cache=cache, why=error)) from None
    except go_build.BuildFailed as error:
        raise LiveKitServerMissing(str(error)) from None
    return LiveKitServer(PROGRAM.cached(cache), "built" if built else "cache")
