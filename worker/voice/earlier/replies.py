"""Has a session answer what it has not heard: keys, written words, a turn of a former agent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial

from livekit.agents import AgentSession, llm
from livekit.agents.voice import SpeechHandle

log = logging.getLogger(__name__)


async def reply_to(
    session: AgentSession[None], message: llm.ChatMessage, *, wanted: Callable[[], bool]
) -> None:
    """Answer ``message`` instead of going on with the current speech, if that is still ``wanted``
    once it has stopped."""
    try:
        # Stop the current speech first, so that its heard part precedes the keys.
        await session.interrupt()
    except RuntimeError:
        # The current speech cannot be interrupted. Answer after it, unless it was a goodbye.
        if (speech := session.current_speech) is not None:
            await speech.wait_for_playout()
    if not wanted():
        return
    try:
        session.generate_reply(user_input=message)
    except RuntimeError:
        log.info("keys pressed during a goodbye, or after it")


def reply_after(session: AgentSession[None], first: Iterable[SpeechHandle]) -> None:
    """Answer the last turn of the history after the speeches ``first``, unless the caller
    interrupts them: then one answer is for both turns.

    The answer is asked for now, so that it is there when they have been said.
    """
    answer = session.generate_reply()
    for said in first:
        said.add_done_callback(partial(_give_way, answer))


def _give_way(answer: SpeechHandle, said: SpeechHandle) -> None:
    if said.interrupted:
        answer.interrupt(force=True)
