"""A separate TTS and STT for talking to a human before a transfer."""

from __future__ import annotations

import asyncio
import logging

from core.models import AgentConfig
from core.settings import Settings
from worker.line import Rates
from worker.voice.failures import CHAIN_OPTIONS, TTS_OPTIONS
from worker.voice.fallback import STT_OPTIONS
from worker.voice.providers import Providers
from worker.voice.turn_taking import build_vad

log = logging.getLogger(__name__)

_CLOSE_WITHIN_S = 3.0


class Aside:
    """Uses the agent's providers but not the session's own instances, so that a failure here does
    not fail the call. ``aclose`` it."""

    def __init__(self, config: AgentConfig, settings: Settings, rates: Rates) -> None:
        self._made = Providers(config, settings, rates)
        self.stt, stt_parts = self._made.make_stt(build_vad(settings))
        self.tts, tts_parts = self._made.make_tts()
        self.stt_options = STT_OPTIONS
        self.tts_options = TTS_OPTIONS if len(tts_parts) == 1 else CHAIN_OPTIONS
        self._close = [part.engine.aclose for part in stt_parts]
        self._close += [part.engine.aclose for part in tts_parts]

    async def aclose(self) -> None:
        """Close both. Bounded."""
        try:
            async with asyncio.timeout(_CLOSE_WITHIN_S):
                for close in self._close:
                    await close()
                await self._made.aclose()
        except TimeoutError:
            log.warning("a briefing provider did not close in time")
