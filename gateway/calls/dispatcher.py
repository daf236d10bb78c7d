"""Sends agents into rooms."""

from __future__ import annotations

import logging

from livekit.api import LiveKitAPI
from livekit.protocol.agent_dispatch import CreateAgentDispatchRequest, RoomAgentDispatch

from core.jobs import JobMetadata
from core.tokens import TokenIssuer
from gateway.calls.livekit import LIVEKIT_ERRORS

log = logging.getLogger(__name__)


class Dispatcher:
    """Sends our agents into rooms, each with the token of its call."""

    def __init__(self, livekit: LiveKitAPI, tokens: TokenIssuer, agent_name: str) -> None:
        self._livekit = livekit
        self._tokens = tokens
        self.agent_name = agent_name

    def dispatch(self, call_id: str) -> RoomAgentDispatch:
        """For a room that is created with it."""
        metadata = JobMetadata(call_id=call_id, token=self._tokens.for_call(call_id))
        return RoomAgentDispatch(
            agent_name=self.agent_name, metadata=metadata.model_dump_json(by_alias=True)
        )

    async def send(self, call_id: str, room_name: str) -> None:
        """Into a room that exists. A failure is logged: whether an agent comes is seen later."""
        wanted = self.dispatch(call_id)
        try:
            await self._livekit.agent_dispatch.create_dispatch(
                CreateAgentDispatchRequest(
                    room=room_name, agent_name=wanted.agent_name, metadata=wanted.metadata
                )
            )
        except LIVEKIT_ERRORS:
            log.warning("dispatch failed", extra={"call_id": call_id})

    async def taken(self, room_name: str) -> bool:
        """Whether a worker has taken a dispatch of this room; True, too, if LiveKit does not say.

        One that finds no worker is forgotten by LiveKit: it stays listed, without a job.
        """
        try:
            listed = await self._livekit.agent_dispatch.list_dispatch(room_name)
        except LIVEKIT_ERRORS:
            return True
        ours = (one for one in listed if one.agent_name == self.agent_name)
        return any(one.state.jobs for one in ours)
