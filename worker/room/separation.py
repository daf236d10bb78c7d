"""Controls who hears whom in a room with an agent, its caller, and a human not yet on the call.

The agent sets who may subscribe to its own tracks. Subscriptions to the phones' tracks are set
through the server, because a phone's SIP service subscribes to all tracks once the phone answers.
So the human may subscribe to nothing before the answer. After it, the human is unsubscribed from
all tracks that are not for them, and only then allowed to subscribe. Caller and human can hear
each other too early only if a phone answers within the milliseconds between its joining and that
first request. (Moving participants between rooms would be simpler, but LiveKit's open-source
server cannot do it.)
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
    """Separates one caller and one human. Methods that ask the server raise LIVEKIT_ERRORS."""

    def __init__(self, room: rtc.Room, livekit: api.LiveKitAPI, caller: str, human: str) -> None:
        """``caller`` and ``human`` are identities."""
        self._room = room
        self._livekit = livekit
        self._caller = caller
        self._human = human

    def divide(self, for_human: Collection[str]) -> None:
        """Give the human the agent's tracks ``for_human`` (ids), and everybody else the others.

        Call it before dialling the human. Call it with an empty ``for_human`` before publishing a
        track for the human: nobody may subscribe to a track that is in neither list.
        """
        sids = set(self._room.local_participant.track_publications) - set(for_human)
        everybody = {self._caller, *self._room.remote_participants} - {self._human}
        permissions = [_permission(identity, sids) for identity in everybody]
        self._room.local_participant.set_track_subscription_permissions(
            allow_all_participants=False,
            participant_permissions=[*permissions, _permission(self._human, for_human)],
        )

    def reunite(self) -> None:
        """Let everybody subscribe to the agent's tracks again."""
        self._room.local_participant.set_track_subscription_permissions(allow_all_participants=True)

    async def deafen_human(self) -> None:
        """Forbid the human to subscribe. Call it when they have joined, before the answer."""
        await self._may_subscribe(False)

    async def mute_human(self) -> None:
        """Unsubscribe everybody but the agent from the human's tracks."""
        if tracks := self._tracks_of(self._human):
            for identity in self._others():
                await self._subscribe(identity, tracks, False)

    async def let_human_hear(self) -> None:
        """Let the human hear the agent's tracks for them, and nothing else, after the answer."""
        tracks = [sid for identity in self._others() for sid in self._tracks_of(identity)]
        if tracks:
            await self._subscribe(self._human, tracks, False)
        await self._may_subscribe(True)

    async def connect(self) -> None:
        """Let the human and all others in the room, the caller included, hear each other."""
        await self._say_taken()
        for identity in self._others():
            if tracks := self._tracks_of(self._human):
                await self._subscribe(identity, tracks, True)
            if tracks := self._tracks_of(identity):
                await self._subscribe(self._human, tracks, True)

    async def _say_taken(self) -> None:
        """Tell the phones' SIP service that the human has taken the call.

        Keys reach everybody in the room; until then the service drops the human's and the caller's.
        """
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
