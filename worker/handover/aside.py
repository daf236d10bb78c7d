"""A separate TTS and STT for talking to a human before a transfer."""

from __future__ import annotations

from core.models import AgentConfig
from core.settings import Settings
from worker.line import Rates
from worker.voice.failures import CHAIN_OPTIONS, TTS_OPTIONS
from worker.voice.fallback import STT_OPTIONS
from worker.voice.providers import Providers
from worker.voice.turn_taking import build_vad


class Aside:
    """Uses the agent's providers but not the session's own instances, so that a failure here does
    not fail the call. ``aclose`` it."""

    def __init__(self, config: AgentConfig, settings: Settings, rates: Rates) -> None:
        self._made = Providers(config, settings, rates)
        self.stt, _ = self._made.make_stt(build_vad(settings))
        self.tts, tts_parts = self._made.make_tts()
        self.stt_options = STT_OPTIONS
        self.tts_options = TTS_OPTIONS if len(tts_parts) == 1 else CHAIN_OPTIONS

    async def aclose(self) -> None:
        """Close both. Bounded."""
        await self._made.aclose()
