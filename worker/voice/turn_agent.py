"""What every agent of ours has in common, whatever answers its turns."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable

from livekit import rtc
from livekit.agents import Agent, ModelSettings, StopResponse, llm, stt


class TurnAgent(Agent):
    """``takes_turn`` is asked whether a turn of the caller's is to be answered; by default all.
    ``listens`` is given the audio on its way to the STT, and gives it back."""

    takes_turn: Callable[[llm.ChatMessage], bool] | None = None
    listens: Callable[[AsyncIterable[rtc.AudioFrame]], AsyncIterator[rtc.AudioFrame]] | None = None

    def stt_node(
        self, audio: AsyncIterable[rtc.AudioFrame], model_settings: ModelSettings
    ) -> AsyncIterable[stt.SpeechEvent | str]:
        """livekit-agents' own STT."""
        if self.listens is not None:
            audio = self.listens(audio)
        return Agent.default.stt_node(self, audio, model_settings)

    async def on_user_turn_completed(
        self, turn_ctx: llm.ChatContext, new_message: llm.ChatMessage
    ) -> None:
        """livekit-agents' hook before it answers."""
        if self.takes_turn is not None and not self.takes_turn(new_message):
            raise StopResponse
