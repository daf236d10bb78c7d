"""The LiveKit stub with legs that can be asked to leave."""

from __future__ import annotations

from google.protobuf.message import Message
from livekit.protocol.room import PerformRpcRequest, PerformRpcResponse, RoomParticipantIdentity

from core.legs import LEAVE_METHOD
from dev.standins.livekit import LiveKitStub, Refusal, phone


class Legs(LiveKitStub):
    """Asks legs to leave, as LiveKit passes a remote procedure call on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.obeys = True
        """Whether a leg that says that it leaves does so."""
        self.returns = False
        """Whether somebody else takes the identity of one that has left."""
        self.refusals: list[str] = []
        """Codes that the next removals are refused with."""
        self.vanishes = False
        """Whether one whose removal is refused is gone by then."""

    def _perform_rpc(self, asked: PerformRpcRequest) -> Message:
        if asked.method != LEAVE_METHOD:
            return super()._perform_rpc(asked)
        self.asked.append(asked.destination_identity)
        if self.obeys:
            self._leave(asked.room, asked.destination_identity)
        if self.returns:
            self.enter(asked.room, phone(asked.destination_identity, "PA_next"))
        return PerformRpcResponse(payload="{}")

    def _remove(self, asked: RoomParticipantIdentity) -> Message:
        if self.refusals:
            if self.vanishes:
                self._leave(asked.room, asked.identity)
            raise Refusal(self.refusals.pop(0))
        return super()._remove(asked)

    def _leave(self, room: str, identity: str) -> None:
        self.rooms[room] = [one for one in self.rooms[room] if one.identity != identity]
