"""The environment of the benchmark's Pipecat bot is made once for each lock file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dev.setup import pipecat
from dev.setup.python_environment import InstallFailed

pytestmark = pytest.mark.repo


def prefix(python: Path) -> Path:
    asked = [str(python), "-c", "import sys; print(sys.prefix)"]
    return Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())


async def test_it_is_made_once_for_each_lock(tmp_path: Path) -> None:
    cache, lock = tmp_path / "pipecat", tmp_path / "requirements.txt"
    lock.write_text("# nothing to install\n")
    lines: list[str] = []
    python = await pipecat.ensure(report=lines.append, cache=cache, lock=lock)
    assert lines and python.is_relative_to(cache)
    assert prefix(python) == cache
    lines.clear()
    assert await pipecat.ensure(report=lines.append, cache=cache, lock=lock) == python
    assert not lines

    lock.write_text("--no-index\nmissing==1.0\n")
    with pytest.raises(InstallFailed, match="missing==1.0"):
        await pipecat.ensure(report=lines.append, cache=cache, lock=lock)
    # What is half installed does not count.
    with pytest.raises(InstallFailed):
        await pipecat.ensure(report=lines.append, cache=cache, lock=lock)
