"""The temporary folder of one run. The next run removes the folders of runs that were killed."""

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
# A younger folder may belong to a run that has not locked it yet.
YOUNG_S = 60.0


@contextlib.contextmanager
def run_dir(*, keep: bool = False, parent: Path | None = None) -> Iterator[Path]:
    """Make a folder in ``parent`` (default: the system's temporary folder); remove it at the end.

    With ``keep`` it stays.
    """
    parent = parent or Path(tempfile.gettempdir())
    if keep:
        yield Path(tempfile.mkdtemp(prefix=KEPT_PREFIX, dir=parent))
        return
    _sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    # Only this process holds the lock, and the kernel drops it when the process ends.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove the folders of runs that were killed."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # in use, not ours, or removed by another sweep
            if time.time() - folder.stat().st_mtime < YOUNG_S:
                continue
            with (folder / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
