"""Files readable by their owner only: numbers, transcripts, stored responses with tokens, keys.

Each process calls ``keep_private`` before it writes anything. Its children inherit the umask, and
SQLite gives its ``-wal`` and ``-shm`` files the mode of the database.
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
# Paths within DATA_DIR, which may be a folder that holds files of others too.
_OURS = ("spool", "secrets.key*", "bridge.json*")


def keep_private(settings: Settings) -> None:
    """Set the umask, and remove the rights of others from files that already exist.

    A path whose mode cannot be changed is logged: another owner's folder is left to the operator.
    """
    os.umask(_OTHERS)
    for path in _kept(settings):
        try:
            _close(path)
        except FileNotFoundError:
            pass  # another process has just removed it
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
        return  # its target is foreign, or is listed here itself
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
        return  # shared by design, as /tmp is
    if found.st_mode & _OTHERS:
        path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)


def _sqlite_file(url: str) -> Path | None:
    scheme, _, rest = url.partition(":///")
    path = rest.partition("?")[0]
    return Path(path) if scheme.startswith("sqlite") and path and path != ":memory:" else None
