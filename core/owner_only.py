"""What is kept on disk is for its owner alone: numbers, transcripts, answers with tokens, keys.

Each process of ours calls ``keep_private`` before it writes anything. Its children inherit the
umask, and SQLite gives its ``-wal`` and ``-shm`` the database's own mode.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from core.settings import Settings

log = logging.getLogger(__name__)

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
# In DATA_DIR, which may have been pointed at a folder with more in it than ours.
_OURS = ("spool", "secrets.key*", "bridge.json*")


def keep_private(settings: Settings) -> None:
    """From now on nothing is made that others may read; what was made before is mended.

    What cannot be is logged: a folder of another owner is the operator's to decide on.
    """
    os.umask(_OTHERS)
    for path in _kept(settings):
        try:
            _close(path)
        except FileNotFoundError:
            pass  # another process of ours has just removed it
        except OSError as error:
            log.warning(
                "others may read it", extra={"path": str(path), "reason": error.strerror or ""}
            )


def _kept(settings: Settings) -> Iterator[Path]:
    yield settings.data_dir
    for pattern in _OURS:
        for found in settings.data_dir.glob(pattern):
            yield found
            yield from found.rglob("*")
    database = _sqlite_file(settings.database_url)
    if database is not None:
        for ending in ("", "-wal", "-shm", "-journal"):
            yield database.with_name(database.name + ending)


def _close(path: Path) -> None:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return  # what it leads to is somebody else's folder, or is named here itself
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
        return  # shared by design, as /tmp is
    if found.st_mode & _OTHERS:
        path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)


def _sqlite_file(url: str) -> Path | None:
    scheme, _, rest = url.partition(":///")
    path = rest.partition("?")[0]
    return Path(path) if scheme.startswith("sqlite") and path and path != ":memory:" else None
