"""The LiveKit stub with legs that can be asked to leave."""

from __future__ import annotations

from aiohttp import web
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

    def app(self) -> web.Application:
        async def perform_rpc(request: web.Request) -> web.Response:
            asked = PerformRpcRequest.FromString(await request.read())
            assert asked.method == LEAVE_METHOD
            self.asked.append(asked.destination_identity)
            if self.obeys:
                self._leave(asked.room, asked.destination_identity)
            if self.returns:
                self.enter(asked.room, phone(asked.destination_identity, "PA_next"))
            return web.Response(
                body=PerformRpcResponse(payload="{}").SerializeToString(),
                content_type="application/protobuf",
            )

        app = super().app()
        app.router.add_post("/twirp/livekit.RoomService/PerformRpc", perform_rpc)
        return app

    def _remove(self, asked: RoomParticipantIdentity) -> Message:
        if self.refusals:
            if self.vanishes:
                self._leave(asked.room, asked.identity)
            raise Refusal(self.refusals.pop(0))
        return super()._remove(asked)

    def _leave(self, room: str, identity: str) -> None:
        self.rooms[room] = [one for one in self.rooms[room] if one.identity != identity]
