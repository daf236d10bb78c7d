"""Who hears whom in a room with an agent, its caller, and a human who has not taken the call.

LiveKit decides: of the agent's tracks the agent says who may subscribe; of the phones' tracks
the server is told, because a phone's SIP service takes all tracks there are as soon as it is
answered. So the human may take none until its answer, and then, before that is lifted, it is
unsubscribed from all that are not for it: nobody hears a word too many, unless a phone is
answered within the milliseconds between its joining and our word. (Moving participants
between rooms would be simpler, but LiveKit's open server does not.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import aiohttp
from livekit import api, rtc

from core.legs import TAKEN

_REQUEST_WITHIN_S = 5.0

LIVEKIT_ERRORS = (api.TwirpError, aiohttp.ClientError, TimeoutError)


class Separation:
    """Raises LIVEKIT_ERRORS from what asks the server."""

    def __init__(self, room: rtc.Room, livekit: api.LiveKitAPI, caller: str, human: str) -> None:
        """``caller``, ``human``: identities."""
        self._room = room
        self._livekit = livekit
        self._caller = caller
        self._human = human

    def divide(self, for_human: Collection[str]) -> None:
        """Of the agent's tracks the human gets those (their ids), everybody else the others.

        Before the human is dialled, and before a track for the human is published with
        ``for_human`` empty: what is in neither list is nobody's.
        """
        sids = set(self._room.local_participant.track_publications) - set(for_human)
        everybody = {self._caller, *self._room.remote_participants} - {self._human}
        permissions = [_permission(identity, sids) for identity in everybody]
        self._room.local_participant.set_track_subscription_permissions(
            allow_all_participants=False,
            participant_permissions=[*permissions, _permission(self._human, for_human)],
        )

    def reunite(self) -> None:
        """The agent's tracks are everybody's again."""
        self._room.local_participant.set_track_subscription_permissions(allow_all_participants=True)

    async def deafen_human(self) -> None:
        """It may take no track; once it is in the room, and not answered yet."""
        await self._may_subscribe(False)

    async def mute_human(self) -> None:
        """Nobody but the agent hears it."""
        if tracks := self._tracks_of(self._human):
            for identity in self._others():
                await self._subscribe(identity, tracks, False)

    async def let_human_hear(self) -> None:
        """What the agent has for it, and nothing else; once it is answered."""
        tracks = [sid for identity in self._others() for sid in self._tracks_of(identity)]
        if tracks:
            await self._subscribe(self._human, tracks, False)
        await self._may_subscribe(True)

    async def connect(self) -> None:
        """Caller and human hear each other, and whoever else is in the room."""
        await self._say_taken()
        for identity in self._others():
            if tracks := self._tracks_of(self._human):
                await self._subscribe(identity, tracks, True)
            if tracks := self._tracks_of(identity):
                await self._subscribe(self._human, tracks, True)

    async def _say_taken(self) -> None:
        """To the phones' SIP service, which keeps keys apart: those reach all in the room."""
        taken = api.UpdateParticipantRequest(
            room=self._room.name, identity=self._human, attributes={TAKEN: "true"}
        )
        async with asyncio.timeout(_REQUEST_WITHIN_S):
            await self._livekit.room.update_participant(taken)

    def _others(self) -> list[str]:
        return [identity for identity in self._room.remote_participants if identity != self._human]

    def _tracks_of(self, identity: str) -> list[str]:
        participant = self._room.remote_participants.get(identity)
        return [] if participant is None else list(participant.track_publications)

    async def _subscribe(self, identity: str, tracks: list[str], subscribe: bool) -> None:
        async with asyncio.timeout(_REQUEST_WITHIN_S):
            await self._livekit.room.update_subscriptions(
                api.UpdateSubscriptionsRequest(
                    room=self._room.name, identity=identity, track_sids=tracks, subscribe=subscribe
                )
            )

    async def _may_subscribe(self, allowed: bool) -> None:
        whom = api.RoomParticipantIdentity(room=self._room.name, identity=self._human)
        async with asyncio.timeout(_REQUEST_WITHIN_S):
            participant = await self._livekit.room.get_participant(whom)
            permission = participant.permission
            permission.can_subscribe = allowed
            await self._livekit.room.update_participant(
                api.UpdateParticipantRequest(
                    room=self._room.name, identity=self._human, permission=permission
                )
            )


def _permission(identity: str, sids: Collection[str]) -> rtc.ParticipantTrackPermission:
    return rtc.ParticipantTrackPermission(
        participant_identity=identity, allow_all=False, allowed_track_sids=list(sids)
    )
