"""Which tenant a LiveKit room belongs to: ``metadata.auth_id``, written when it is created."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from livekit.api import LiveKitAPI
from livekit.protocol.agent_dispatch import RoomAgentDispatch
from livekit.protocol.models import Room
from livekit.protocol.room import CreateRoomRequest, ListRoomsRequest

from core.errors import NotFound
from core.store import Store
from gateway.auth import Principal
from sip.dispatch import DEPARTURE_TIMEOUT_S, EMPTY_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Claimed:
    """``created``: the room did not exist before, and its agents were dispatched with it."""

    room: Room
    created: bool


class LiveKitRooms:
    """The RoomAccess of gateway.keys, on LiveKit's room service and the store's claims."""

    def __init__(self, livekit: LiveKitAPI, store: Store) -> None:
        self._livekit = livekit
        self._store = store

    async def find(self, room_name: str) -> Room | None:
        listed = await self._livekit.room.list_rooms(ListRoomsRequest(names=[room_name]))
        return listed.rooms[0] if listed.rooms else None

    async def check(self, principal: Principal, room_name: str) -> Room:
        """The room. Raises NotFound ``ROOM_NOT_FOUND`` when absent or another's."""
        room = await self.find(room_name)
        if room is None or not may_use(principal, room):
            raise not_accessible()
        return room

    async def claim(self, principal: Principal, room_name: str) -> None:
        await self.enter(principal, room_name)

    async def enter(
        self, principal: Principal, room_name: str, agents: Sequence[RoomAgentDispatch] = ()
    ) -> Claimed:
        """Find the room, or create it as the principal's. Raises NotFound ``ROOM_NOT_FOUND``.

        LiveKit's create_room would give an existing room new metadata, so the
        right to create is settled in the database first.
        """
        room = await self.find(room_name)
        if room is not None:
            if not may_use(principal, room):
                raise not_accessible()
            return Claimed(room, created=False)
        if not await self._store.claim_room(room_name, principal.auth_id) and principal.auth_id:
            raise not_accessible()
        metadata = {} if principal.auth_id is None else {"auth_id": principal.auth_id}
        room = await self._livekit.room.create_room(
            CreateRoomRequest(
                name=room_name,
                metadata=json.dumps(metadata) if metadata else "",
                agents=agents,
                empty_timeout=EMPTY_TIMEOUT_S,
                departure_timeout=DEPARTURE_TIMEOUT_S,
            )
        )
        return Claimed(room, created=True)


def may_use(principal: Principal, room: Room) -> bool:
    """An unscoped principal may use every room; a tenant those that name it."""
    return principal.auth_id is None or owner(room) == principal.auth_id


def owner(room: Room) -> str | None:
    """``metadata.auth_id``; None when the metadata is no JSON object with a string there."""
    try:
        metadata = json.loads(room.metadata)
    except (ValueError, RecursionError):
        return None
    auth_id = metadata.get("auth_id") if isinstance(metadata, dict) else None
    return auth_id if isinstance(auth_id, str) else None


def not_accessible() -> NotFound:
    """The one answer for absent, foreign and unlabelled rooms alike."""
    return NotFound("Room not found or not accessible", code="ROOM_NOT_FOUND")
