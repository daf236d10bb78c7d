"""Commands to a call's worker about what is kept of the call, and its confirmation.

A worker on a stream gets them by HTTP. In a room, LiveKit delivers them to the agent as data,
signed for this call: no participant can send one, whatever LiveKit's token permits. In both cases
the worker confirms on the call's timeline, which any gateway reads.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from livekit.api import LiveKitAPI
from livekit.protocol.models import DataPacket
from livekit.protocol.room import SendDataRequest

from core.errors import Conflict, Unavailable
from core.jobs import agent_identity
from core.models import Model, Timestamp, new_id
from core.recordings.command import COMMAND_TOPIC, Action, Command
from core.tokens import TokenIssuer
from gateway.calls.streams.sessions import StreamSessions
from gateway.calls.timeline import Timeline
from gateway.store.call_status import Call
from gateway.store.calls import Store
from sip.twirp import livekit_errors

_DONE = ("recording.paused", "recording.resumed", "recording.masked")
_OVER = {
    "call.ended": ("The call has already ended", "CALL_ENDED"),
    "agent.left": ("The agent has left the call", "AGENT_LEFT"),
}


class RecordingState(Model):
    """``on``: neither paused nor masked. A call that is not recorded has these states, too: they
    also decide about its words and keys."""

    recording: Literal["on", "paused", "masked"]
    until: Timestamp | None = None
    """When the mask ends by itself."""


class RecordingControl:
    """Has workers pause, resume and mask."""

    def __init__(
        self,
        *,
        livekit: LiveKitAPI,
        store: Store,
        timeline: Timeline,
        tokens: TokenIssuer,
        sessions: StreamSessions,
        confirmed_within_s: float = 3.0,
    ) -> None:
        self._livekit = livekit
        self._store = store
        self._timeline = timeline
        self._tokens = tokens
        self._sessions = sessions
        self._confirmed_within_s = confirmed_within_s

    async def command(
        self, call: Call, action: Action, seconds: int | None = None
    ) -> RecordingState:
        """Return the state when the worker has confirmed it.

        Raises Conflict: the call was not answered, or is over for the agent; ServerFault,
        Unavailable: it is not known whether the worker has done it; a repeat is harmless.
        """
        if call.status != "in-progress":
            if call.ended:
                raise _over("call.ended")
            raise Conflict("The call has not been answered", code="CALL_NOT_ANSWERED")
        command = Command(id=new_id("cmd"), action=action, seconds=seconds)
        try:
            async with (
                asyncio.timeout(self._confirmed_within_s),
                self._timeline.listen(call.id) as news,
            ):
                await self._raise_if_over(call.id)
                await self._send(call, command)
                while (done := await self._done(call.id, command)) is None:
                    await news.wait()
                return done
        except TimeoutError:
            raise Unavailable(
                "The agent's worker has not confirmed in time", code="AGENT_UNAVAILABLE"
            ) from None

    async def _send(self, call: Call, command: Command) -> None:
        if call.type == "stream":
            return await self._sessions.command(call.id, command)
        token = self._tokens.for_command(call.id, command.wire())
        with livekit_errors():
            await self._livekit.room.send_data(
                SendDataRequest(
                    room=call.room_name,
                    data=token.encode(),
                    kind=DataPacket.Kind.RELIABLE,
                    topic=COMMAND_TOPIC,
                    # An agent has one of these (worker.job).
                    destination_identities=[
                        agent_identity(call.id),
                        agent_identity(call.room_name),
                    ],
                )
            )

    async def _done(self, call_id: str, command: Command) -> RecordingState | None:
        for event in await self._store.events(call_id, types=_DONE):
            if event.data.get("command") == command.id:
                return RecordingState.model_validate(event.data)
        await self._raise_if_over(call_id)
        return None

    async def _raise_if_over(self, call_id: str) -> None:
        for event in await self._store.events(call_id, types=tuple(_OVER)):
            raise _over(event.type)


def _over(event: str) -> Conflict:
    message, code = _OVER[event]
    return Conflict(message, code=code)
