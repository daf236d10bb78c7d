"""Recordings on a disk that is really full, and that has the store as well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.recordings.config import Format
from core.recordings.plan import RecordingPlan
from recordings.spool import RecordingFile
from tests.support.small_disk import SmallDisk
from tests.support.small_disk import disk as disk

pytestmark = pytest.mark.store


_SWEEP = """
import asyncio, sys
from pathlib import Path
from core.settings import Settings
from recordings.stores import Stores
from recordings.upload import Sweeper

async def report(call_id, event):
    print(event.type)

async def main(folder, times):
    settings = Settings(_env_file=None, recordings_url=f"file://{folder}/store")
    sweeper = Sweeper(Path(folder, "spool"), Stores.from_settings(settings), report)
    for _ in range(int(times)):
        print(await sweeper.sweep())

asyncio.run(main(*sys.argv[1:]))
"""


def swept(disk: SmallDisk, times: int) -> list[str]:
    """Sweep; return what was reported, and whether each sweep did all."""
    found = subprocess.run(
        [*disk.inside, sys.executable, "-c", _SWEEP, str(disk.mounted), str(times)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    return found.stdout.split()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", ["wav", "ogg"])
def test_a_recording_waits_until_there_is_space_to_store_it(
    disk: SmallDisk, format: Format
) -> None:
    spool, store = disk.folder / "spool", disk.folder / "store"
    file = RecordingFile.create(spool, "call_1", RecordingPlan(key=f"a.{format}", format=format))
    file.append(np.random.default_rng(1).integers(-9000, 9000, (80_000, 2), dtype=np.int16))
    file.close()
    content = (spool / "call_1.wav").read_bytes()
    disk.fill(leave=16_384)
    assert swept(disk, 3) == ["False"] * 3
    assert files(store) == set()
    assert (spool / "call_1.wav").read_bytes() == content
    disk.relieve()
    assert swept(disk, 1) == ["recording.stored", "True"]
    assert files(disk.folder) == {f"store/a.{format}"}
    if format == "wav":
        assert (store / "a.wav").read_bytes() == content
