"""The base class of both kinds of agents, hosted and webhook."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable

from livekit import rtc
from livekit.agents import Agent, ModelSettings, StopResponse, llm, stt


class TurnAgent(Agent):
    """``takes_turn`` decides whether a turn of the caller is answered; by default each is.
    ``listens`` gets the audio on its way to the STT, and returns it. ``hears`` gets the events of
    the STT.
    """

    takes_turn: Callable[[llm.ChatMessage], bool] | None = None
    listens: Callable[[AsyncIterable[rtc.AudioFrame]], AsyncIterator[rtc.AudioFrame]] | None = None

    hears: Callable[[stt.SpeechEvent], None] | None = None

    async def stt_node(
        self, audio: AsyncIterable[rtc.AudioFrame], model_settings: ModelSettings
    ) -> AsyncGenerator[stt.SpeechEvent, None]:
        """Pass the audio through ``listens`` to livekit-agents' default STT node, and its events to
        ``hears``."""
        if self.listens is not None:
            audio = self.listens(audio)
        async with contextlib.aclosing(
            Agent.default.stt_node(self, audio, model_settings)
        ) as events:
            async for event in events:
                if self.hears is not None:
                    self.hears(event)
                yield event

    async def on_user_turn_completed(
        self, turn_ctx: llm.ChatContext, new_message: llm.ChatMessage
    ) -> None:
        """Stop the response if ``takes_turn`` rejects the turn; livekit-agents' hook."""
        if self.takes_turn is not None and not self.takes_turn(new_message):
            raise StopResponse
