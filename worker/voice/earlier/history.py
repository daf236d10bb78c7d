"""The conversation's history, of which the brain makes its answers."""

from __future__ import annotations

import time
from collections.abc import Collection

from livekit.agents import Agent
from livekit.agents.llm import ChatContext, ChatMessage

from core.models import Turn
from core.recovery import Recovered
from worker.voice.earlier.tools import in_order, items
from worker.voice.keys import DIGITS, keys_in
from worker.voice.transcript import message_id_of


def history(so_far: Recovered | None) -> ChatContext:
    """Return what a former agent and the caller said, and the tools that ran, as livekit-agents
    would have kept it.

    Of an answer it has what the caller heard; of masked or redacted words, what is on record.
    """
    context = ChatContext.empty()
    if so_far is None:
        return context
    began = so_far.answered_at.timestamp() if so_far.answered_at is not None else None
    for part in in_order(so_far):
        if isinstance(part, Turn):
            context.items += _messages(part, began)
        elif began is not None:
            context.items += items(part, began)
    return context


def _messages(turn: Turn, began: float | None) -> list[ChatMessage]:
    messages = []
    if turn.transcript:
        keys = keys_in(turn.transcript)
        messages.append(
            ChatMessage(
                id=message_id_of(turn.id),  # by which a webhook knows the turn again
                role="user",
                content=[turn.transcript],
                transcript_confidence=turn.confidence,
                extra={} if keys is None else {DIGITS: keys},
                created_at=_at(turn, turn.start_ms, began),
            )
        )
    if turn.response:
        messages.append(
            ChatMessage(
                role="assistant",
                content=[turn.response],
                interrupted=turn.interrupted,
                created_at=_at(turn, turn.response_start_ms, began),
            )
        )
    return messages


def _at(turn: Turn, ms: int | None, began: float | None) -> float:
    at = turn.created_at.timestamp() if ms is None or began is None else began + ms / 1000
    # livekit-agents orders by time, and the former agent's clock may have been ahead of ours.
    return min(at, time.time())


async def forget(agent: Agent, ids: Collection[str]) -> None:
    """Take these items out of the agent's history."""
    kept = agent.chat_ctx.copy()
    kept.items = [item for item in kept.items if item.id not in ids]
    await agent.update_chat_ctx(kept)


async def note(agent: Agent, text: str) -> None:
    """Let the agent's model know a fact that nobody said."""
    kept = agent.chat_ctx.copy()
    kept.add_message(role="system", content=text)
    await agent.update_chat_ctx(kept)
