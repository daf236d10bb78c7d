"""``/livekit/*``: tokens, rooms and participants, limited to the requesting tenant's rooms."""

from __future__ import annotations

import datetime
from typing import Literal

from aiohttp import web
from livekit.api import ServerError
from livekit.protocol.models import ParticipantInfo, Room, TrackInfo, TrackSource, TrackType
from livekit.protocol.room import MuteRoomTrackRequest
from pydantic import BaseModel, Field, StrictBool

from core.errors import Conflict, NotFound
from core.events import ended
from core.models import CallEvent, Timestamp
from gateway.api import faults
from gateway.calls.livekit import participant, participants, send_away
from gateway.calls.room_tokens import PersonsIdentity, join_token
from gateway.calls.rooms import may_use, not_accessible
from gateway.fields.names import Name
from gateway.http.body import parse_body
from gateway.http.principal import PRINCIPAL
from gateway.http.route import Route
from gateway.keys import SETTINGS, STORE, TIMELINE, call_services
from gateway.store.database import Scope
from sip.twirp import livekit_errors

TOKEN_TTL = datetime.timedelta(hours=1)
"""How long a token allows a join. It does not limit the stay: LiveKit renews it in the room."""

_SOURCES = ("microphone", "camera", "screen_share", "screen_share_audio")


class TokenRequest(BaseModel):
    room_name: Name
    participant_name: Name
    participant_identity: PersonsIdentity


class TokenAnswer(BaseModel):
    token: str
    room_name: str
    participant_identity: str
    livekit_url: str = Field(examples=["wss://livekit.example.com"])


class RoomAnswer(BaseModel):
    room_name: str
    room_sid: str = Field(examples=["RM_abc123"])
    num_participants: int
    num_publishers: int
    created_at: Timestamp
    metadata: str = Field(description="LiveKit's metadata; a tenant's room has auth_id.")


class RoomsAnswer(BaseModel):
    rooms: list[RoomAnswer]


class TrackAnswer(BaseModel):
    track_sid: str = Field(examples=["TR_abc123"])
    name: str
    type: Literal["audio", "video", "data"]
    source: str = Field(examples=["microphone"])
    muted: bool


class ParticipantAnswer(BaseModel):
    participant_identity: str
    participant_id: str = Field(examples=["PA_abc123"])
    participant_name: str
    state: Literal["joining", "joined", "active", "disconnected"]
    kind: str = Field(examples=["standard", "sip", "agent"])
    joined_at: Timestamp
    attributes: dict[str, str]
    tracks: list[TrackAnswer]


class RoomDetailAnswer(RoomAnswer):
    participants: list[ParticipantAnswer]


class ParticipantRequest(BaseModel):
    room_name: Name
    participant_identity: Name


class RemovedAnswer(ParticipantRequest):
    status: Literal["removed"] = "removed"


class MuteRequest(ParticipantRequest):
    track_sid: Name
    muted: StrictBool


class MutedAnswer(MuteRequest):
    """The track's new state."""


async def token(request: web.Request) -> web.StreamResponse:
    """Return a token to join one room. For a tenant, a missing room is created first."""
    body = await parse_body(request, TokenRequest)
    settings = request.app[SETTINGS]
    rooms = call_services(request.app).rooms
    with livekit_errors():
        claim = await rooms.admit(
            request[PRINCIPAL], body.room_name, body.participant_identity, TOKEN_TTL
        )
    signed = join_token(
        settings,
        claim,
        identity=body.participant_identity,
        name=body.participant_name,
        sources=_SOURCES,
        data=True,
        valid=TOKEN_TTL,
    )
    return json_answer(
        TokenAnswer(
            token=signed,
            room_name=body.room_name,
            participant_identity=body.participant_identity,
            livekit_url=settings.livekit_browser_url,
        )
    )


async def index(request: web.Request) -> web.StreamResponse:
    """List the rooms that exist now: a tenant's own, or all for an operator."""
    services = call_services(request.app)
    with livekit_errors():
        rooms = await services.rooms.all()
    principal = request[PRINCIPAL]
    return json_answer(RoomsAnswer(rooms=[_room(r) for r in rooms if may_use(principal, r)]))


async def show(request: web.Request) -> web.StreamResponse:
    """Return one room and its participants."""
    services = call_services(request.app)
    name = request.match_info["name"]
    with livekit_errors(not_accessible()):
        room = await services.rooms.check(request[PRINCIPAL], name)
        listed = await participants(services.livekit, name)
    shown = [_participant(info) for info in listed]
    return json_answer(RoomDetailAnswer(**_room(room).model_dump(), participants=shown))


async def remove(request: web.Request) -> web.StreamResponse:
    """Remove a participant from a room; a SIP participant's call is hung up."""
    body = await parse_body(request, ParticipantRequest)
    livekit = call_services(request.app).livekit
    await find_participant(request, body)
    noted = await _note_hang_up(request, body)
    with livekit_errors():
        gone = await send_away(livekit, body.room_name, body.participant_identity)
    # The task that follows the call hangs up once it has ended, and may have been faster.
    if not gone and not noted:
        raise no_participant()
    return json_answer(RemovedAnswer(**body.model_dump()))


async def mute(request: web.Request) -> web.StreamResponse:
    """Mute or unmute a participant's track."""
    body = await parse_body(request, MuteRequest)
    livekit = call_services(request.app).livekit
    found = await find_participant(request, body)
    missing = NotFound("Track not found", code="TRACK_NOT_FOUND")
    if body.track_sid not in {track.sid for track in found.tracks}:
        raise missing
    wanted = MuteRoomTrackRequest(
        room=body.room_name,
        identity=body.participant_identity,
        track_sid=body.track_sid,
        muted=body.muted,
    )
    with livekit_errors(missing):
        try:
            answer = await livekit.room.mute_published_track(wanted)
        except ServerError as error:
            if error.code != "failed_precondition" or body.muted:
                raise
            message = "LiveKit opens nobody's microphone (room.enable_remote_unmute is off)"
            raise Conflict(message, code="REMOTE_UNMUTE_DISABLED") from None
    return json_answer(MutedAnswer(**{**body.model_dump(), "muted": answer.track.muted}))


async def _note_hang_up(request: web.Request, body: ParticipantRequest) -> bool:
    """End the call, if any, on the timeline before LiveKit reports that the participant left."""
    store = request.app[STORE]
    call_id = await store.find_live_call(body.room_name, body.participant_identity)
    call = await store.call(Scope(None), call_id) if call_id else None
    if call is None:
        return False
    answered = call.answered_at is not None
    data = ended("completed", "agent_hangup") if answered else ended("canceled", "canceled")
    event = CallEvent(type="call.ended", data={**data, "by": "api"})
    await request.app[TIMELINE].append(call.id, [event], "gateway")
    return True


async def find_participant(request: web.Request, body: ParticipantRequest) -> ParticipantInfo:
    """Return the participant.

    Raises NotFound ``ROOM_NOT_FOUND``, then ``PARTICIPANT_NOT_FOUND``; ServerFault.
    """
    services = call_services(request.app)
    with livekit_errors():
        await services.rooms.check(request[PRINCIPAL], body.room_name)
        found = await participant(services.livekit, body.room_name, body.participant_identity)
    if found is None:
        raise no_participant()
    return found


def no_participant() -> NotFound:
    return NotFound("Participant not found", code="PARTICIPANT_NOT_FOUND")


def json_answer(answer: BaseModel) -> web.Response:
    return web.Response(text=answer.model_dump_json(), content_type="application/json")


def _room(room: Room) -> RoomAnswer:
    return RoomAnswer(
        room_name=room.name,
        room_sid=room.sid,
        num_participants=room.num_participants,
        num_publishers=room.num_publishers,
        created_at=_moment(room.creation_time_ms),
        metadata=room.metadata,
    )


def _participant(info: ParticipantInfo) -> ParticipantAnswer:
    return ParticipantAnswer.model_validate(
        {
            "participant_identity": info.identity,
            "participant_id": info.sid,
            "participant_name": info.name,
            "state": ParticipantInfo.State.Name(info.state).lower(),
            "kind": ParticipantInfo.Kind.Name(info.kind).lower(),
            "joined_at": _moment(info.joined_at_ms),
            "attributes": dict(info.attributes),
            "tracks": [_track(track) for track in info.tracks],
        }
    )


def _track(track: TrackInfo) -> TrackAnswer:
    return TrackAnswer.model_validate(
        {
            "track_sid": track.sid,
            "name": track.name,
            "type": TrackType.Name(track.type).lower(),
            "source": TrackSource.Name(track.source).lower(),
            "muted": track.muted,
        }
    )


def _moment(milliseconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)


ROUTES: tuple[Route, ...] = (
    Route(
        "POST /livekit/token",
        token,
        "A token to join one room with",
        body=TokenRequest,
        answer=TokenAnswer,
        errors=(faults.NO_ROOM, faults.PARTICIPANT_EXISTS, faults.RATE, *faults.LIVEKIT),
    ),
    Route(
        "GET /livekit/rooms",
        index,
        "The caller's rooms",
        answer=RoomsAnswer,
        errors=faults.LIVEKIT,
    ),
    Route(
        "GET /livekit/rooms/{name}",
        show,
        "One room, with its participants",
        answer=RoomDetailAnswer,
        errors=(faults.NO_ROOM, *faults.LIVEKIT),
    ),
    Route(
        "DELETE /livekit/participant",
        remove,
        "Remove a participant; a phone is hung up",
        body=ParticipantRequest,
        answer=RemovedAnswer,
        errors=(*faults.NO_PARTICIPANT, *faults.LIVEKIT),
    ),
    Route(
        "POST /livekit/participant/mute",
        mute,
        "Mute or unmute a participant's track",
        body=MuteRequest,
        answer=MutedAnswer,
        errors=(
            *faults.NO_PARTICIPANT,
            (404, "TRACK_NOT_FOUND"),
            (409, "REMOTE_UNMUTE_DISABLED"),
            *faults.LIVEKIT,
        ),
    ),
)
