"""The temporary folder of one run; that of a run that was killed is removed by the next one."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "switchroom-run-"
KEPT_PREFIX = "switchroom-"
# A folder this young may belong to a run that has not locked it yet.
YOUNG_S = 60.0


@contextlib.contextmanager
def run_dir(*, keep: bool = False, parent: Path | None = None) -> Iterator[Path]:
    """A new folder in ``parent`` (the system's temporary folder), left behind only if ``keep``."""
    parent = parent or Path(tempfile.gettempdir())
    if keep:
        yield Path(tempfile.mkdtemp(prefix=KEPT_PREFIX, dir=parent))
        return
    _sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    # Held by this process alone: when it ends, however, the kernel drops the lock.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove the folders of runs that were killed."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, or just removed by another sweep
            if time.time() - folder.stat().st_mtime < YOUNG_S:
                continue
            with (folder / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
