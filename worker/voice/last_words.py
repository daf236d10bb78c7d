"""Puts what was said so far on the record, before the agent stops hearing or leaves."""

from __future__ import annotations

import asyncio
import contextlib

from livekit.agents import AgentSession, ConversationItemAddedEvent, UserInputTranscribedEvent, llm

_WITHIN_S = 1.0


class LastWords:
    """Knows whether the caller has said something that is no turn yet."""

    def __init__(self, session: AgentSession[None]) -> None:
        self._session = session
        self._open = False
        session.on("user_input_transcribed", self._heard)
        session.on("conversation_item_added", self._added)

    def commit(self) -> asyncio.Future[str]:
        """Make the caller's words so far a turn, without an answer. Takes up to a second."""
        kept = self._session.commit_user_turn(skip_reply=True, transcript_timeout=_WITHIN_S)
        kept.add_done_callback(lambda done: done.cancelled() or done.exception())
        return kept

    async def conclude(self) -> None:
        """Stop the agent's speech and commit the caller's. Takes up to a second; raises nothing."""
        with contextlib.suppress(RuntimeError, TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(_WITHIN_S):
                # livekit-agents waits for more words also when there are none.
                speaking = self._open or self._session.user_state == "speaking"
                kept = self.commit() if speaking else None
                await self._session.interrupt(force=True)
                if kept is not None:
                    await kept

    def _heard(self, event: UserInputTranscribedEvent) -> None:
        self._open = self._open or bool(event.transcript)

    def _added(self, event: ConversationItemAddedEvent) -> None:
        if isinstance(event.item, llm.ChatMessage) and event.item.role == "user":
            self._open = False
