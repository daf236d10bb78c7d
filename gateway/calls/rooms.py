"""Which tenant a LiveKit room belongs to, and who may join it.

The room's ``metadata.auth_id`` decides; the gateway writes it when it creates the room. Who may
create a room under a name, and for how long, is in gateway.store.room_names. A join with one of our
tokens also creates the room again after LiveKit has closed it. The token then gives the room a
label instead of the tenant's name; the gateway replaces it with the name once it sees the room.
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
"""Key in the metadata of a room created by a join: the label of the claim on its name."""

# Lifetime of the tokens of livekit-sip's legs (protocol/sip/token.go). Those of agents and of our
# bridge are shorter (protocol/agent/token.go: 1 h; the SDK's default: 6 h).
_SERVICES_TOKENS = timedelta(hours=24)
# Tokens expire one by one; a fixed time saves a query for the next expiry.
_RETRY_TOKENS_S = 60


@dataclass(frozen=True, slots=True)
class Claimed:
    """``created``: True if the room is new; its agents were then dispatched with it."""

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
        """Return the room. Raises NotFound ``ROOM_NOT_FOUND`` if absent or another tenant's."""
        room = await self.find(room_name)
        if room is None or not may_use(principal, room):
            raise not_accessible()
        return room

    async def exists(self, principal: Principal, room_name: str) -> bool:
        """Return True if the room exists, False if ``enter`` would create it.

        Raises NotFound as ``enter`` would.
        """
        room = await self.find(room_name)
        await self._catch_up()
        holder = await self._names.holder(room_name)
        if not _may_enter(principal, room, holder):
            raise not_accessible()
        return room is not None

    # --- entering them

    async def claim(self, principal: Principal, room_name: str) -> bool:
        """Hold the name as ``enter`` does, before it; return True if the room exists.

        Raises NotFound ``ROOM_NOT_FOUND``.
        """
        room, _ = await self._claim(principal, room_name, _SERVICES_TOKENS)
        return room is not None

    async def enter(
        self,
        principal: Principal,
        room_name: str,
        agents: Sequence[RoomAgentDispatch] = (),
        *,
        valid: timedelta = _SERVICES_TOKENS,
    ) -> Claimed:
        """Find the room, or create it as the principal's. Raises NotFound ``ROOM_NOT_FOUND``.

        LiveKit's create_room may give an existing room new metadata, so the database first decides
        who may create it. Under a name that is held for a tenant, an operator creates that
        tenant's room. ``valid``: the lifetime of the tokens of those who will join.
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
        """Admit a person as ``identity``, with a token that lives for ``valid``.

        A tenant's room is created if missing. Raises NotFound ``ROOM_NOT_FOUND``; Conflict
        ``PARTICIPANT_EXISTS`` if a phone or an agent has that identity or is about to join with it;
        TooManyRequests ``RATE_LIMITED`` if tokens for too many other identities are valid.
        """
        if principal.auth_id is None:
            room, claim = await self._claim(principal, room_name, valid)
        else:
            claimed = await self.enter(principal, room_name, valid=valid)
            room, claim = None if claimed.created else claimed.room, claimed.claim
        present = [] if room is None else await participants(self._livekit, room_name)
        for other in present:
            # Covers phones that others have dialled: every participant that is not a person.
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
        """Admit the call's own participant to its room, which is named after the call.

        Raises Conflict ``PARTICIPANT_EXISTS`` if another call's phone has that identity there.
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

    # --- holding the names of existing rooms

    async def saw(self, room: Room, participant: ParticipantInfo) -> None:
        """Handle LiveKit's report of a room and a participant (without identity: the room only).

        LiveKit's failures are logged. Raises Unavailable.
        """
        if LABEL in read_label(room.metadata):
            try:
                # Read it again: the report may be old.
                room = await self.find(room.name) or room
            except LIVEKIT_ERRORS as error:
                log.warning("cannot look at a room", extra={"problem": type(error).__name__})
        await self._names.seen(_owners([room]))
        if not participant.identity or participant.kind != ParticipantInfo.Kind.STANDARD:
            return  # only people have tokens of ours
        # LiveKit may renew a token as soon as its holder has joined. By the time a room closes,
        # each of its participants was reported here or was present at the last ``look``.
        ending = await self._names.ending([room.name])
        connected = set(joining_as(participant.identity))
        await self._names.renew({name: ending[name] & connected for name in ending})

    async def resume(self) -> None:
        """Catch up before the first request: no gateway may have looked at rooms for a while."""
        await self._names.resume()
        self._looked_at = time.monotonic()

    async def _catch_up(self) -> None:
        """After a pause between looks, hold what LiveKit may have renewed meanwhile.

        Runs before any name is claimed: a request may come before the next look.
        """
        async with self._catching_up:
            if time.monotonic() - self._looked_at > MARGIN.total_seconds() / 2:
                await self.resume()

    async def look(self) -> list[Room]:
        """Return all rooms; hold their names for as long as LiveKit may renew tokens.

        Must run more often than every MARGIN. Names that nobody holds are deleted.
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
        """Keep reserving the identities of connected participants: LiveKit renews their tokens."""
        ending = await self._names.ending(room.name for room in rooms)
        for room_name, identities in ending.items():
            try:
                present = await participants(self._livekit, room_name)
            except LIVEKIT_ERRORS as error:
                # Keep them all: any of them may be connected.
                facts = {"room": room_name, "problem": type(error).__name__}
                log.warning("LiveKit does not list a room's participants", extra=facts)
                continue
            identities &= {one for other in present for one in joining_as(other.identity)}
        await self._names.renew(ending)

    async def _settled(self, room: Room) -> Room:
        """Replace the label of a room created by a join with its tenant's name; return the room."""
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
            # The next look retries; the returned room names its tenant anyway.
            log.warning("a room keeps its label", extra={"problem": type(error).__name__})
        return room


def configuration(claim: Claim) -> RoomConfiguration:
    """Return a token's room configuration: it labels a room that the join creates as the claim's.

    The label does not reveal the tenant's name.
    """
    labelled = claim.auth_id is not None
    return RoomConfiguration(
        metadata=json.dumps({LABEL: claim.label}) if labelled else "",
        empty_timeout=EMPTY_TIMEOUT_S,
        departure_timeout=DEPARTURE_TIMEOUT_S,
    )


def may_use(principal: Principal, room: Room) -> bool:
    """Return True if the principal may use the room: an operator every one, a tenant its own."""
    return principal.auth_id is None or owner(room) == principal.auth_id


def owner(room: Room) -> str | None:
    """Return ``metadata.auth_id``; None if the metadata has no such string."""
    auth_id = read_label(room.metadata).get("auth_id")
    return auth_id if isinstance(auth_id, str) else None


def not_accessible() -> NotFound:
    """Return the one error for absent rooms, other tenants' rooms, and rooms without a tenant."""
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
