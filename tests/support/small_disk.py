"""A file system of 1 MiB that can really be full: a tmpfs in a mount namespace of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

# The namespace ends with the shell, which ends with its input: also when the tests are killed.
_MOUNT = 'mount -t tmpfs -o size=1m,mode=0700 tmpfs "$0" && echo mounted && read _'


class SmallDisk:
    """``folder`` is its root, through a link of the kernel's that has no real path.

    Commands after ``inside`` see it as ``mounted``, which is a real path.
    """

    def __init__(self, shell: int, mounted: Path) -> None:
        self.folder = Path(f"/proc/{shell}/root{mounted}")
        self.mounted = mounted
        self.inside = ["nsenter", "--target", str(shell), "--mount", f"--wd={os.getcwd()}"]
        if os.geteuid() != 0:
            self.inside += ["--user", "--preserve-credentials"]
        self._ballast = self.folder / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Write another file until so many bytes are free."""
        with self._ballast.open("ab", buffering=0) as file:
            with suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            file.truncate(file.tell() - leave)

    def relieve(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    private = "-m" if os.geteuid() == 0 else "-rm"
    try:
        shell = subprocess.Popen(
            ["unshare", private, "sh", "-c", _MOUNT, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except OSError as error:
        pytest.skip(f"cannot mount a file system: {error}")
    with shell:
        assert shell.stdin is not None and shell.stdout is not None and shell.stderr is not None
        if shell.stdout.readline() != "mounted\n":
            pytest.skip(f"cannot mount a file system: {shell.stderr.read().strip()}")
        yield SmallDisk(shell.pid, folder)
        shell.stdin.close()
