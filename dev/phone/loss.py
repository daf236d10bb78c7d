"""Loses packets of a call between the wire and the sockets, in the kernel: nftables on Linux.

The rules stand in the input hook, which packets of the loopback pass after they were on the wire
(dev.phone.wire still sees them), and name one phone's RTP port. The table belongs to the ``nft``
process that made it, so the kernel removes it when that process ends, also if we are killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from typing import Final

_COMMANDS: Final = """\
add table inet {table} {{ flags owner; }}
add chain inet {table} lost {{ type filter hook input priority 0; }}
add rule inet {table} lost iif lo udp dport {port} numgen random mod 10000 < {share} counter drop
add rule inet {table} lost iif lo udp sport {port} numgen random mod 10000 < {share} counter drop
"""
_WITHIN_S: Final = 10.0
_POLL_S: Final = 0.05


class NoLoss(Exception):
    """Packets cannot be lost here; the text says why."""


class Loss:
    """The packets of one phone that are lost, by the table's counters."""

    def __init__(self, nft: str, table: str) -> None:
        self._nft = nft
        self._table = table

    async def count(self) -> tuple[int, int]:
        """Return how many packets to the phone and from it were lost. Raises NoLoss."""
        command = (self._nft, "list", "table", "inet", self._table)
        listing = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
        out, error = await listing.communicate()
        if listing.returncode:
            raise NoLoss(_last_line(error))
        # nft 1.0.6 writes invalid JSON for a table with an owner.
        counted = [int(number) for number in re.findall(rb"counter packets (\d+)", out)]
        if len(counted) != 2:
            raise NoLoss(f"{len(counted)} rules instead of 2")
        return counted[0], counted[1]


@contextlib.asynccontextmanager
async def loss(port: int, percent: float) -> AsyncIterator[Loss]:
    """Lose so much of what the phone with this RTP port sends and is sent.

    Raises NoLoss: no nftables, or no permission (CAP_NET_ADMIN).
    """
    nft = shutil.which("nft") or "/usr/sbin/nft"
    table = f"switchroom_loss_{os.getpid()}_{port}"
    try:
        owner = await asyncio.create_subprocess_exec(
            nft, "--interactive", stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
    except OSError:
        raise NoLoss("nft is not installed (nftables)") from None
    try:
        assert owner.stdin is not None
        commands = _COMMANDS.format(table=table, port=port, share=round(percent * 100))
        owner.stdin.write(commands.encode())
        found = Loss(nft, table)
        await _in_force(found, owner)
        yield found
    finally:
        if owner.returncode is None:
            owner.kill()
        await owner.wait()


async def _in_force(loss: Loss, owner: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(_WITHIN_S):
            while True:
                try:
                    await loss.count()
                    return
                except NoLoss:
                    if owner.returncode is not None:
                        raise
                await asyncio.sleep(_POLL_S)
    except (NoLoss, TimeoutError):
        if owner.returncode is None:
            owner.kill()
        _, error = await owner.communicate()
        raise NoLoss(_last_line(error)) from None


def _last_line(error: bytes) -> str:
    return (error.decode(errors="replace").strip().splitlines() or ["nft failed"])[-1]
