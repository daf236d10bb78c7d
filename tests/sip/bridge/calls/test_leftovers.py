"""sip.bridge.calls.leftovers: legs of an earlier run are removed, whatever ends meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from livekit import api

from core.legs import BRIDGE, LOST
from sip.bridge.calls import leftovers
from sip.participant import LiveKit

pytestmark = pytest.mark.unit

MARK = leftovers.mark_of("127.0.0.1:5060")
GONE = api.ServerError("not_found", "it is gone", status=404)


def leg(identity: str, mark: str = MARK) -> api.ParticipantInfo:
    return api.ParticipantInfo(identity=identity, attributes={BRIDGE: mark})


class Rooms:
    """LiveKit's room service, with a room and a leg that end between two requests."""

    def __init__(self) -> None:
        self.there = {"ended": None, "one": [leg("ended"), leg("a"), leg("b", "theirs")]}
        self.asked: list[tuple[str, str]] = []

    async def list_rooms(self, _: object) -> Any:
        return api.ListRoomsResponse(rooms=[api.Room(name=name) for name in self.there])

    async def list_participants(self, asked: api.ListParticipantsRequest) -> Any:
        if (legs := self.there[asked.room]) is None:
            raise GONE
        return api.ListParticipantsResponse(participants=legs)

    async def update_participant(self, asked: api.UpdateParticipantRequest) -> None:
        if asked.identity == "ended":
            raise GONE
        assert asked.attributes[LOST]
        self.asked.append(("lost", asked.identity))

    async def remove_participant(self, asked: api.RoomParticipantIdentity) -> None:
        self.asked.append(("removed", asked.identity))


async def test_what_has_ended_meanwhile_keeps_no_other_from_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rooms = Rooms()

    async def aclose() -> None:
        return None

    client = SimpleNamespace(room=rooms, aclose=aclose)
    monkeypatch.setattr(LiveKit, "client", lambda _self: client)
    await leftovers.remove(LiveKit("ws://127.0.0.1:7880", "key", "secret", mark=MARK))
    assert rooms.asked == [("lost", "a"), ("removed", "a")], "and nobody else's"


def test_the_mark_is_the_addresses() -> None:
    assert leftovers.mark_of("127.0.0.1:5060") == MARK != leftovers.mark_of("127.0.0.1:5061")
