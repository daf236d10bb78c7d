"""The base class of both kinds of agents, hosted and webhook."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable

from livekit import rtc
from livekit.agents import Agent, ModelSettings, StopResponse, llm, stt


class TurnAgent(Agent):
    """``takes_turn`` decides whether a turn of the caller is answered; by default each is.
    ``listens`` gets the audio on its way to the STT, and returns it."""

    takes_turn: Callable[[llm.ChatMessage], bool] | None = None
    listens: Callable[[AsyncIterable[rtc.AudioFrame]], AsyncIterator[rtc.AudioFrame]] | None = None

    def stt_node(
        self, audio: AsyncIterable[rtc.AudioFrame], model_settings: ModelSettings
    ) -> AsyncIterable[stt.SpeechEvent | str]:
        """Pass the audio through ``listens`` to livekit-agents' default STT node."""
        if self.listens is not None:
            audio = self.listens(audio)
        return Agent.default.stt_node(self, audio, model_settings)

    async def on_user_turn_completed(
        self, turn_ctx: llm.ChatContext, new_message: llm.ChatMessage
    ) -> None:
        """Stop the response if ``takes_turn`` rejects the turn; livekit-agents' hook."""
        if self.takes_turn is not None and not self.takes_turn(new_message):
            raise StopResponse
