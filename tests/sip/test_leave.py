"""Sending a phone's leg out of its room: who has left already is fine, and there is one door."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from livekit.api import RoomParticipantIdentity, ServerError

from sip.leave import remove_leg

pytestmark = pytest.mark.unit

WHOM = RoomParticipantIdentity(room="room", identity="phone")
SIP = Path(__file__).parent.parent.parent / "sip"


def livekit(answer: Exception | None) -> Any:
    async def remove_participant(whom: RoomParticipantIdentity) -> None:
        assert whom == WHOM
        if answer is not None:
            raise answer

    return SimpleNamespace(room=SimpleNamespace(remove_participant=remove_participant))


@pytest.mark.parametrize("answer", [None, ServerError("not_found", "no", status=404)])
async def test_one_who_is_there_or_has_left(answer: Exception | None) -> None:
    await remove_leg(livekit(answer), WHOM)


@pytest.mark.parametrize("answer", [ServerError("unavailable", "", status=503), TimeoutError()])
async def test_what_could_not_be_done_is_told(answer: Exception) -> None:
    with pytest.raises(type(answer)):
        await remove_leg(livekit(answer), WHOM)


def test_nobody_else_in_sip_removes() -> None:
    asks = [path for path in SIP.rglob("*.py") if "remove_participant(" in path.read_text()]
    assert asks == [SIP / "leave.py"]
