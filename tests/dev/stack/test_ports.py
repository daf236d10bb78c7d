"""dev.stack.ports: no two processes of one machine get the same port."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import pytest

from dev.stack.options import ROOT
from dev.stack.ports import FIRST_PORT, PORTS, PortLocks

pytestmark = pytest.mark.stack

# Takes ports, prints them, and holds them until its input ends.
TAKER = """
import sys
from pathlib import Path
from dev.stack.ports import PortLocks
locks = PortLocks(Path(sys.argv[1]))
print(*[locks.take() for _ in range(200)], flush=True)
sys.stdin.read()
"""


async def test_processes_get_different_ports(tmp_path: Path) -> None:
    takers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", TAKER, str(tmp_path / "locks")),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(4)
    ]
    ports: list[int] = []
    for taker in takers:
        assert taker.stdout is not None
        ports += map(int, (await asyncio.wait_for(taker.stdout.readline(), 20)).split())
    for taker in takers:
        await asyncio.wait_for(taker.communicate(b""), 20)  # closes its input
    assert len(ports) == 800
    assert len(set(ports)) == 800


def test_a_port_in_use_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        busy = server.getsockname()[1]
        offers = iter([busy, FIRST_PORT + 7])
        monkeypatch.setattr("dev.stack.ports.random.randint", lambda *_: next(offers))
        assert PortLocks(tmp_path / "locks").take() == FIRST_PORT + 7


def test_a_port_given_back_can_be_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = PortLocks(tmp_path / "locks")
    one, other = PORTS.take(), PORTS.take()  # nobody else on this machine listens there
    offers = iter([one, one, other, one])
    monkeypatch.setattr("dev.stack.ports.random.randint", lambda *_: next(offers))
    first = locks.take()
    assert first == one
    assert locks.take() == other  # the second offer is held
    locks.give_back(first)
    assert locks.take() == first
    PORTS.give_back(one)
    PORTS.give_back(other)
