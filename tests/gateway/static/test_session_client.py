"""The browser's session client in node: its sockets are fakes, its audio blocks are real."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NODE = shutil.which("node")

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(NODE is None, reason="there is no node here"),
]


@pytest.mark.parametrize("name", ["audio", "wire"])
def test_it(name: str) -> None:
    assert NODE is not None
    script = Path(__file__).parent / f"{name}.test.mjs"
    ran = subprocess.run(
        (NODE, "--test", str(script)), capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stdout
    assert "# pass 0" not in ran.stdout
