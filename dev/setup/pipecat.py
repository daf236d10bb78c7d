"""Makes the environment of the benchmark's Pipecat bot, which the project does not depend on."""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import distributions
from pathlib import Path

from dev.setup.go_toolchain import Report
from dev.setup.python_environment import install

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "dev" / "peers" / "pipecat_twilio" / "requirements.txt"
CACHE = ROOT / ".cache" / "peers" / "pipecat"
_LOCK_COPY = "lock"


async def ensure(
    *, report: Report = lambda _: None, cache: Path = CACHE, lock: Path = LOCK
) -> Path:
    """Return the path of the environment's ``python``; make the environment if the lock is new.

    Raise InstallFailed.
    """
    if not installed(cache, lock):
        with tempfile.TemporaryDirectory() as folder:
            await install(
                cache,
                lock,
                Path(folder) / "log",
                lambda spent_s: report(f"installing Pipecat, {spent_s:.0f} s (once, 450 MB)"),
            )
        # Last, so that an interrupted installation does not count.
        shutil.copyfile(lock, cache / _LOCK_COPY)
    return cache / "bin" / "python"


def installed(cache: Path = CACHE, lock: Path = LOCK) -> bool:
    """Return True if the environment was made from this lock."""
    copy = cache / _LOCK_COPY
    return copy.is_file() and copy.read_bytes() == lock.read_bytes()


def version(cache: Path = CACHE) -> str:
    """Return the installed version of Pipecat."""
    packages = map(str, cache.glob("lib/python*/site-packages"))
    (found,) = distributions(name="pipecat-ai", path=list(packages))
    return found.version
