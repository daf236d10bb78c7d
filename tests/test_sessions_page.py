"""docs/sessions.md against the code: its client, and the messages and close codes that it lists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from gateway.api.streams import first_message
from worker.streams import socket

pytestmark = pytest.mark.repo

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/sessions.md").read_text()


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_its_client_is_the_example() -> None:
    client = (ROOT / "examples/socket_client.py").read_text()
    assert f"```python\n{client}```\n" in PAGE
    assert len(client.splitlines()) <= 40


def listed(title: str) -> set[str]:
    """Return the first cells of the section's table."""
    cells = re.findall(r"(?m)^\| (`[^|]+) \|", section(title))
    return {name for cell in cells for name in re.findall(r"`([\w.]+)`", cell)}


def test_it_lists_every_message() -> None:
    assert listed("Client messages") == {*socket._TYPES, *first_message._KINDS}
    sent = set(re.findall(r'self\._(?:render|keep)\(\s*"(\w+)"', inspect.getsource(socket)))
    assert listed("Server messages") == sent


def test_the_browsers_client_knows_which_codes_are_final() -> None:
    script = (ROOT / "gateway/static/switchroom.js").read_text()
    final = re.search(r"const FINAL = new Set\(\[(.*)\]\)", script)
    assert final is not None
    rows = re.findall(r"(?m)^\| ([0-9, ]+) \|.*\| no \|$", section("Close codes"))
    assert {code.strip() for code in final[1].split(",")} == set(rows)
