"""Packets that are lost behind the wire."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Iterator

import pytest

from dev.phone.loss import NoLoss, loss

pytestmark = [pytest.mark.sip, pytest.mark.asyncio(loop_scope="session")]

SENT = 400


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return a phone's socket and the far end's."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far,
    ):
        for each in (phone, far):
            each.bind(("127.0.0.1", 0))
            each.setblocking(False)
        yield phone, far


def arrived(sender: socket.socket, receiver: socket.socket) -> int:
    """Send packets; return how many arrive. On the loopback that is before ``sendto`` returns."""
    found = 0
    for _ in range(SENT):
        sender.sendto(b"audio", receiver.getsockname())
        try:
            receiver.recv(16)
            found += 1
        except BlockingIOError:
            pass
    return found


async def test_a_share_of_one_phones_packets_is_lost_for_a_while(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    phone, far = pair
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        async with loss(phone.getsockname()[1], 25) as losing:
            there, back = arrived(far, phone), arrived(phone, far)
            assert await losing.count() == (SENT - there, SENT - back)
            assert 0.6 < there / SENT < 0.9 and 0.6 < back / SENT < 0.9
            assert arrived(other, far) == SENT, "another call's"
        assert arrived(far, phone) == SENT, "over"
    except NoLoss as why:
        pytest.skip(str(why))
    finally:
        other.close()


async def test_it_says_why_nothing_can_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/nowhere/nft")
    with pytest.raises(NoLoss, match="not installed"):
        async with loss(9, 2):
            pass
    monkeypatch.setattr(shutil, "which", lambda _: shutil.__file__)
    with pytest.raises(NoLoss):
        async with asyncio.timeout(5), loss(9, 2):
            pass
