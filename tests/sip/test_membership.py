"""sip.membership: LiveKit is asked for a participant whose own connection reports nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from livekit import api

from sip import membership

pytestmark = [pytest.mark.unit, pytest.mark.attack]


class Rooms:
    """LiveKit's answers about a participant, one per look; the last one repeats."""

    def __init__(self, *looks: str | None) -> None:
        self._looks = list(looks)
        self.room = self

    async def get_participant(self, _whom: object) -> api.ParticipantInfo:
        look = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        if look is None:
            raise TimeoutError
        if look == "":
            raise api.ServerError("not_found", "no", status=404)
        return api.ParticipantInfo(sid="PA_1", attributes={"sip.callID": look})


class TestMembership:
    @pytest.mark.parametrize(
        ("looks", "came"),
        [
            (["SCL_1", ""], True),
            (["", "", "SCL_1", "SCL_1", ""], True),
            ([""], False),
            (["SCL_of_another"], False),  # the identity's present holder
            (["SCL_1", "SCL_of_another"], True),
            ([None, None, ""], False),
            (["SCL_1", None, None, ""], True),
        ],
    )
    async def test_one_who_is_not_there(self, looks: list[str | None], came: bool) -> None:
        client: Any = Rooms(*looks)
        gone = membership.absent(
            client, "room", "phone", "SCL_1", look_s=0.001, comes_within_s=0.005
        )
        async with asyncio.timeout(2):
            assert await gone is came

    @pytest.mark.parametrize("looks", [["SCL_1"], [None], ["", "SCL_1"]])
    async def test_one_who_is_or_of_whom_nothing_is_known(self, looks: list[str | None]) -> None:
        client: Any = Rooms(*looks)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await membership.absent(client, "room", "phone", "SCL_1", look_s=0.001)
