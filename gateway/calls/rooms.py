"""Which tenant a LiveKit room belongs to, and who may join it.

``metadata.auth_id`` of the room decides, written when the gateway creates it; who may create a
room of a name, and for how long nobody else, is in gateway.store.room_names. A join with one of our
tokens makes a room, too, when LiveKit has closed it: the token then gives it a label instead of the
tenant's name, which the gateway puts in the label's place as soon as it sees the room.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from livekit.api import LiveKitAPI
from livekit.protocol.agent_dispatch import RoomAgentDispatch
from livekit.protocol.models import ParticipantInfo, Room
from livekit.protocol.room import (
    CreateRoomRequest,
    ListRoomsRequest,
    RoomConfiguration,
    UpdateRoomMetadataRequest,
)

from core.errors import Conflict, NotFound, TooManyRequests
from gateway.calls.livekit import LIVEKIT_ERRORS, participants
from gateway.store.database import Principal
from gateway.store.room_names import (
    MARGIN,
    MAX_IDENTITIES,
    Claim,
    HeldByCall,
    RoomNames,
    TooManyIdentities,
    joining_as,
)
from sip.dispatch import DEPARTURE_TIMEOUT_S, EMPTY_TIMEOUT_S
from sip.trunks import read_label

log = logging.getLogger(__name__)

LABEL = "switchroom.claim"
"""In the metadata of a room that a join has made: the label of its name's claim."""

# livekit-sip's legs have tokens for that long (protocol/sip/token.go), agents and our bridge for
# less (protocol/agent/token.go: 1 h; the SDK's default: 6 h).
_SERVICES_TOKENS = timedelta(hours=24)
# Tokens end one by one; how soon the next does is not worth a question to the database.
_RETRY_TOKENS_S = 60


@dataclass(frozen=True, slots=True)
class Claimed:
    """``created``: the room did not exist before, and its agents were dispatched with it."""

    room: Room
    claim: Claim
    created: bool


class LiveKitRooms:
    """LiveKit's room service, and the claims on names."""

    def __init__(self, livekit: LiveKitAPI, names: RoomNames) -> None:
        self._livekit = livekit
        self._names = names
        self._looked_at = time.monotonic()
        self._catching_up = asyncio.Lock()

    # --- looking at rooms

    async def find(self, room_name: str) -> Room | None:
        listed = await self._livekit.room.list_rooms(ListRoomsRequest(names=[room_name]))
        return await self._settled(listed.rooms[0]) if listed.rooms else None

    async def all(self) -> list[Room]:
        listed = await self._livekit.room.list_rooms(ListRoomsRequest())
        return [await self._settled(room) for room in listed.rooms]

    async def check(self, principal: Principal, room_name: str) -> Room:
        """The room. Raises NotFound ``ROOM_NOT_FOUND`` when absent or another's."""
        room = await self.find(room_name)
        if room is None or not may_use(principal, room):
            raise not_accessible()
        return room

    async def exists(self, principal: Principal, room_name: str) -> bool:
        """Whether ``enter`` would find it, or make it. Raises NotFound as ``enter`` would."""
        room = await self.find(room_name)
        await self._catch_up()
        holder = await self._names.holder(room_name)
        if not _may_enter(principal, room, holder):
            raise not_accessible()
        return room is not None

    # --- entering them

    async def enter(
        self,
        principal: Principal,
        room_name: str,
        agents: Sequence[RoomAgentDispatch] = (),
        *,
        valid: timedelta = _SERVICES_TOKENS,
    ) -> Claimed:
        """Find the room, or create it as the principal's. Raises NotFound ``ROOM_NOT_FOUND``.

        LiveKit's create_room may give an existing room new metadata, so the right to create is
        settled in the database first. Of a name that is held for a tenant an operator makes that
        tenant's room. ``valid``: how long the tokens are that whoever joins will have.
        """
        room, claim = await self._claim(principal, room_name, valid)
        if room is not None:
            return Claimed(room, claim, created=False)
        metadata = {} if claim.auth_id is None else {"auth_id": claim.auth_id}
        room = await self._livekit.room.create_room(
            CreateRoomRequest(
                name=room_name,
                metadata=json.dumps(metadata) if metadata else "",
                agents=agents,
                empty_timeout=EMPTY_TIMEOUT_S,
                departure_timeout=DEPARTURE_TIMEOUT_S,
            )
        )
        return Claimed(room, claim, created=True)

    async def admit(
        self, principal: Principal, room_name: str, identity: str, valid: timedelta
    ) -> Claim:
        """Somebody is to join as ``identity``, with a token that is ``valid`` so long.

        A tenant's new room is created. Raises NotFound ``ROOM_NOT_FOUND``, Conflict
        ``PARTICIPANT_EXISTS`` when a phone or an agent is, or is about to be, of that identity,
        TooManyRequests ``RATE_LIMITED`` when tokens for too many others are valid.
        """
        if principal.auth_id is None:
            room, claim = await self._claim(principal, room_name, valid)
        else:
            claimed = await self.enter(principal, room_name, valid=valid)
            room, claim = None if claimed.created else claimed.room, claimed.claim
        present = [] if room is None else await participants(self._livekit, room_name)
        for other in present:
            # Phones that others have dialled, and whatever is no person.
            if other.kind != ParticipantInfo.Kind.STANDARD and identity in joining_as(
                other.identity
            ):
                raise _not_a_phone()
        try:
            await self._names.admit(room_name, identity, valid)
        except HeldByCall:
            raise _not_a_phone() from None
        except TooManyIdentities:
            raise TooManyRequests(
                f"Tokens for {MAX_IDENTITIES} other identities are valid in the room",
                retry_after_s=_RETRY_TOKENS_S,
            ) from None
        return claim

    async def admit_to_call(self, call_id: str, identity: str, valid: timedelta) -> None:
        """The call's own participant is to join its room, which is named after it.

        Raises Conflict ``PARTICIPANT_EXISTS`` when a phone of another call is to be there.
        """
        try:
            await self._names.admit(call_id, identity, valid, call_id=call_id)
        except HeldByCall:
            raise _not_a_phone() from None

    async def _claim(
        self, principal: Principal, room_name: str, valid: timedelta
    ) -> tuple[Room | None, Claim]:
        room = await self.find(room_name)
        if room is not None and not may_use(principal, room):
            raise not_accessible()
        await self._catch_up()
        if principal.auth_id is None:
            whose = None if room is None else owner(room)
            return room, await self._names.keep(room_name, whose, valid)
        claim = await self._names.claim(room_name, principal.auth_id, valid)
        if claim is None:
            raise not_accessible()
        return room, claim

    # --- holding their names while they live

    async def saw(self, room: Room, participant: ParticipantInfo) -> None:
        """LiveKit has told of the room, and of the participant (without an identity: of nobody).

        Its failures are logged; raises Unavailable.
        """
        if LABEL in read_label(room.metadata):
            try:
                # As it is now: what was told may be old.
                room = await self.find(room.name) or room
            except LIVEKIT_ERRORS as error:
                log.warning("cannot look at a room", extra={"problem": type(error).__name__})
        await self._names.seen(_owners([room]))
        if not participant.identity or participant.kind != ParticipantInfo.Kind.STANDARD:
            return  # tokens are signed for persons
        # A token may have been renewed as soon as its holder joined. When a room is over, each
        # who was in it has been told of, or was there at the last look.
        ending = await self._names.ending([room.name])
        connected = set(joining_as(participant.identity))
        await self._names.renew({name: ending[name] & connected for name in ending})

    async def resume(self) -> None:
        """Before the first request: nobody may have looked at LiveKit's rooms for a while."""
        await self._names.resume()
        self._looked_at = time.monotonic()

    async def _catch_up(self) -> None:
        """After a while in which nobody could look, hold what LiveKit may have renewed meanwhile.

        Before any name is given away: the first request may come before the next look.
        """
        async with self._catching_up:
            if time.monotonic() - self._looked_at > MARGIN.total_seconds() / 2:
                await self.resume()

    async def look(self) -> list[Room]:
        """All rooms, each of whose names is now held for as long as LiveKit may renew tokens.

        To be called more often than every MARGIN; names that nobody holds are forgotten.
        """
        begun = time.monotonic()
        rooms = await self.all()
        await self._catch_up()
        await self._names.seen(_owners(rooms))
        await self._renew(rooms)
        await self._names.sweep()
        self._looked_at = begun
        return rooms

    async def _renew(self, rooms: Iterable[Room]) -> None:
        """Keep the identities of those who are connected, whose tokens LiveKit renews."""
        ending = await self._names.ending(room.name for room in rooms)
        for room_name, identities in ending.items():
            try:
                present = await participants(self._livekit, room_name)
            except LIVEKIT_ERRORS as error:
                # Anybody may be there, or may have been a moment ago.
                facts = {"room": room_name, "problem": type(error).__name__}
                log.warning("LiveKit does not tell who is in a room", extra=facts)
                continue
            identities &= {one for other in present for one in joining_as(other.identity)}
        await self._names.renew(ending)

    async def _settled(self, room: Room) -> Room:
        """With the tenant's name in place of the label, if a join with our token has made it."""
        metadata = read_label(room.metadata)
        label = metadata.pop(LABEL, None)
        if not isinstance(label, str) or "auth_id" in metadata:
            return room
        claim = await self._names.labelled(room.name, label)
        if claim is None:
            return room
        room.metadata = _labelled_by(claim, metadata)
        try:
            await self._livekit.room.update_room_metadata(
                UpdateRoomMetadataRequest(room=room.name, metadata=room.metadata)
            )
        except LIVEKIT_ERRORS as error:
            # The next look tries again; whose it is is known without.
            log.warning("a room keeps its label", extra={"problem": type(error).__name__})
        return room


def configuration(claim: Claim) -> RoomConfiguration:
    """For a token: the room that a join with it makes is the claim's, without naming anybody."""
    labelled = claim.auth_id is not None
    return RoomConfiguration(
        metadata=json.dumps({LABEL: claim.label}) if labelled else "",
        empty_timeout=EMPTY_TIMEOUT_S,
        departure_timeout=DEPARTURE_TIMEOUT_S,
    )


def may_use(principal: Principal, room: Room) -> bool:
    """An unscoped principal may use every room; a tenant those that name it."""
    return principal.auth_id is None or owner(room) == principal.auth_id


def owner(room: Room) -> str | None:
    """``metadata.auth_id``; None when the metadata is no JSON object with a string there."""
    auth_id = read_label(room.metadata).get("auth_id")
    return auth_id if isinstance(auth_id, str) else None


def not_accessible() -> NotFound:
    """The one answer for absent, foreign and unlabelled rooms alike."""
    return NotFound("Room not found or not accessible", code="ROOM_NOT_FOUND")


def _may_enter(principal: Principal, room: Room | None, holder: Claim | None) -> bool:
    if principal.auth_id is None:
        return True
    free = holder is None or holder.auth_id == principal.auth_id
    return free and (room is None or may_use(principal, room))


def _owners(rooms: Iterable[Room]) -> dict[str, str | None]:
    return {room.name: owner(room) for room in rooms}


def _labelled_by(claim: Claim, metadata: Mapping[str, Any]) -> str:
    named = {} if claim.auth_id is None else {"auth_id": claim.auth_id}
    whole = {**metadata, **named}
    return json.dumps(whole) if whole else ""


def _not_a_phone() -> Conflict:
    return Conflict("A phone or an agent has this identity in the room", code="PARTICIPANT_EXISTS")
