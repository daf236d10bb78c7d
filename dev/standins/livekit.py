"""The part of LiveKit's HTTP API that the gateway uses, answered from a dictionary.

For tests of cases that a real LiveKit server cannot produce, and for benchmarks of the gateway
alone:

    python -m dev.standins.livekit --port 7880
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvloop
from aiohttp import web
from google.protobuf.message import Message
from livekit.protocol.agent import Job
from livekit.protocol.agent_dispatch import (
    AgentDispatch,
    AgentDispatchState,
    CreateAgentDispatchRequest,
    ListAgentDispatchRequest,
    ListAgentDispatchResponse,
)
from livekit.protocol.models import ParticipantInfo, Room
from livekit.protocol.room import (
    CreateRoomRequest,
    DeleteRoomRequest,
    DeleteRoomResponse,
    ListParticipantsRequest,
    ListParticipantsResponse,
    ListRoomsRequest,
    ListRoomsResponse,
    PerformRpcRequest,
    RemoveParticipantResponse,
    RoomParticipantIdentity,
    SendDataRequest,
    SendDataResponse,
    UpdateRoomMetadataRequest,
)
from livekit.protocol.sip import (
    CreateSIPParticipantRequest,
    SIPParticipantInfo,
    TransferSIPParticipantRequest,
    TransferSIPParticipantResponse,
)

_NO_METHOD = "invalid_argument"
_AGENT_NAME = "switchroom"  # the default of AGENT_NAME
# Twirp's HTTP statuses; all other codes that are used here have 400.
_STATUSES = {
    "canceled": 408,
    "deadline_exceeded": 408,
    "failed_precondition": 412,
    "internal": 500,
    "not_found": 404,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "unavailable": 503,
    "unimplemented": 501,
    "unknown": 500,
}


class Refusal(Exception):
    """A Twirp error's code, and its metadata."""

    def __init__(self, code: str, **meta: str) -> None:
        super().__init__(code)
        self.status = _STATUSES.get(code, 400)
        self.meta = meta


@dataclass
class LiveKitStub:
    """The rooms by name, with their participants."""

    rooms: dict[str, list[ParticipantInfo]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    failing: dict[str, str] = field(default_factory=dict)
    """Rooms for which every request fails, with the Twirp code of the error."""
    removed: list[tuple[str, str]] = field(default_factory=list)
    dispatched: list[CreateAgentDispatchRequest] = field(default_factory=list)
    sent: list[SendDataRequest] = field(default_factory=list)
    """Data packets for participants."""
    on_sent: Callable[[SendDataRequest], None] | None = None
    workers_full: bool = False
    """True if no worker accepts a dispatched job."""
    frozen: set[str] = field(default_factory=set)
    """Identities of participants whose process does not respond."""
    pinged: list[str] = field(default_factory=list)
    """Identities that were asked for a sign of life."""
    created: list[CreateRoomRequest] = field(default_factory=list)
    dialled: list[CreateSIPParticipantRequest] = field(default_factory=list)
    referred: list[TransferSIPParticipantRequest] = field(default_factory=list)
    answer: Refusal | None = None
    """The error of a dialled phone or a transfer target; None if it answers."""
    _dispatches: dict[str, list[AgentDispatch]] = field(default_factory=dict)
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def enter(self, room: str, *participants: ParticipantInfo) -> None:
        self.rooms.setdefault(room, []).extend(participants)

    def _list_rooms(self, asked: ListRoomsRequest) -> Message:
        names = [name for name in asked.names or self.rooms if name in self.rooms]
        found = [Room(name=name, metadata=self.metadata.get(name, "")) for name in names]
        return ListRoomsResponse(rooms=found)

    def _create_room(self, asked: CreateRoomRequest) -> Message:
        if asked.name in self.failing:
            raise Refusal(self.failing[asked.name])
        self.created.append(asked)
        if asked.name not in self.rooms:
            self.rooms[asked.name] = []
            self.metadata[asked.name] = asked.metadata
            self._dispatches[asked.name] = [
                AgentDispatch(id=f"AD_{next(self._ids)}", agent_name=agent.agent_name)
                for agent in asked.agents
            ]
        return Room(name=asked.name, metadata=self.metadata.get(asked.name, ""))

    def _update_metadata(self, asked: UpdateRoomMetadataRequest) -> Message:
        if asked.room not in self.rooms:
            raise Refusal("not_found")
        self.metadata[asked.room] = asked.metadata
        return Room(name=asked.room, metadata=asked.metadata)

    def _delete_room(self, asked: DeleteRoomRequest) -> Message:
        if self.rooms.pop(asked.room, None) is None:
            raise Refusal("not_found")
        self._dispatches.pop(asked.room, None)
        return DeleteRoomResponse()

    def _list_participants(self, asked: ListParticipantsRequest) -> Message:
        return ListParticipantsResponse(participants=self._of(asked.room))

    def _remove(self, asked: RoomParticipantIdentity) -> Message:
        self._take(asked)
        self.removed.append((asked.room, asked.identity))
        return RemoveParticipantResponse()

    def _take(self, asked: RoomParticipantIdentity) -> None:
        self._of(asked.room).remove(self._get(asked))

    def _get(self, asked: RoomParticipantIdentity) -> ParticipantInfo:
        for other in self._of(asked.room):
            if other.identity == asked.identity:
                return other
        raise Refusal("not_found")

    def _send_data(self, asked: SendDataRequest) -> Message:
        self._of(asked.room)
        self.sent.append(asked)
        if self.on_sent is not None:
            self.on_sent(asked)
        return SendDataResponse()

    def _perform_rpc(self, asked: PerformRpcRequest) -> Message:
        """No participant has the method; LiveKit's SDKs say so."""
        self._get(RoomParticipantIdentity(room=asked.room, identity=asked.destination_identity))
        self.pinged.append(asked.destination_identity)
        raise Refusal("canceled" if asked.destination_identity in self.frozen else _NO_METHOD)

    def dial(self, asked: CreateSIPParticipantRequest) -> Message:
        """Dial a phone. Raise Refusal with the configured ``answer``."""
        self.dialled.append(asked)
        if self.answer is not None:
            raise self.answer
        attributes = {**asked.participant_attributes, "sip.callID": "SCL_h"}
        human = phone(asked.participant_identity, "PA_h", **attributes)
        human.attributes["sip.callStatus"] = "active"
        self.enter(asked.room_name, human)
        return SIPParticipantInfo(
            participant_id="PA_h",
            participant_identity=asked.participant_identity,
            room_name=asked.room_name,
            sip_call_id="SCL_h",
        )

    def _refer(self, asked: TransferSIPParticipantRequest) -> Message:
        self.referred.append(asked)
        if self.answer is not None:
            raise self.answer
        leg = RoomParticipantIdentity(room=asked.room_name, identity=asked.participant_identity)
        self._take(leg)
        return TransferSIPParticipantResponse()

    def _dispatch(self, asked: CreateAgentDispatchRequest) -> Message:
        if asked.room in self.failing:
            raise Refusal(self.failing[asked.room])
        self.dispatched.append(asked)
        if asked.room not in self.rooms:
            self.rooms[asked.room], self._dispatches[asked.room] = [], []
        made = AgentDispatch(
            id=f"AD_{next(self._ids)}", agent_name=asked.agent_name, metadata=asked.metadata
        )
        self._dispatches_of(asked.room).append(made)
        return AgentDispatch(id=made.id, agent_name=asked.agent_name, room=asked.room)

    def _list_dispatches(self, asked: ListAgentDispatchRequest) -> Message:
        if asked.room not in self.rooms or asked.room in self.failing:
            raise Refusal("unavailable")
        state = AgentDispatchState(jobs=[] if self.workers_full else [Job(id="AJ_1")])
        listed = [
            AgentDispatch(
                id=one.id,
                agent_name=one.agent_name,
                metadata=one.metadata,
                room=asked.room,
                state=state,
            )
            for one in self._dispatches_of(asked.room)
        ]
        return ListAgentDispatchResponse(agent_dispatches=listed)

    def _dispatches_of(self, room: str) -> list[AgentDispatch]:
        """Return a room's dispatches. A room without any was made by an inbound call, whose
        dispatch rule sends an agent."""
        by_rule = AgentDispatch(id="AD_0", agent_name=_AGENT_NAME)
        return self._dispatches.setdefault(room, [by_rule])

    def _of(self, room: str) -> list[ParticipantInfo]:
        if room in self.failing:
            raise Refusal(self.failing[room])
        return self.rooms.get(room, [])

    def app(self) -> web.Application:
        app = web.Application()

        def serve(path: str, kind: type[Any], answer: Callable[[Any], Message]) -> None:
            async def handler(request: web.Request) -> web.Response:
                try:
                    body = answer(kind.FromString(await request.read())).SerializeToString()
                except Refusal as error:
                    told = {"code": str(error), "msg": "", "meta": error.meta}
                    return web.json_response(told, status=error.status)
                return web.Response(body=body, content_type="application/protobuf")

            app.router.add_post(f"/twirp/livekit.{path}", handler)

        serve("RoomService/ListRooms", ListRoomsRequest, self._list_rooms)
        serve("RoomService/CreateRoom", CreateRoomRequest, self._create_room)
        serve("RoomService/DeleteRoom", DeleteRoomRequest, self._delete_room)
        serve("RoomService/UpdateRoomMetadata", UpdateRoomMetadataRequest, self._update_metadata)
        serve("RoomService/ListParticipants", ListParticipantsRequest, self._list_participants)
        serve("RoomService/RemoveParticipant", RoomParticipantIdentity, self._remove)
        serve("RoomService/PerformRpc", PerformRpcRequest, self._perform_rpc)
        serve("RoomService/SendData", SendDataRequest, self._send_data)
        serve("RoomService/GetParticipant", RoomParticipantIdentity, self._get)
        serve("SIP/CreateSIPParticipant", CreateSIPParticipantRequest, self.dial)
        serve("SIP/TransferSIPParticipant", TransferSIPParticipantRequest, self._refer)
        serve("AgentDispatchService/CreateDispatch", CreateAgentDispatchRequest, self._dispatch)
        serve("AgentDispatchService/ListDispatch", ListAgentDispatchRequest, self._list_dispatches)
        return app


def phone(identity: str, sid: str = "PA_1", **attributes: str) -> ParticipantInfo:
    return ParticipantInfo(
        sid=sid,
        identity=identity,
        kind=ParticipantInfo.Kind.SIP,
        state=ParticipantInfo.State.ACTIVE,
        attributes=attributes,
    )


def agent(identity: str = "agent-x") -> ParticipantInfo:
    return ParticipantInfo(sid="PA_a", identity=identity, kind=ParticipantInfo.Kind.AGENT)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.standins.livekit")
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    uvloop.install()
    web.run_app(LiveKitStub().app(), host="127.0.0.1", port=port, access_log=None, print=None)


if __name__ == "__main__":
    main()
