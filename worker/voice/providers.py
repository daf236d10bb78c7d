"""The plugins behind the ``provider/model`` names of an agent's ``stt``, ``model`` and ``tts``.

One name is a single plugin. Several names are a chain (``worker.voice.fallback``), whose parts do
not retry: the next part is the retry.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import ssl
from typing import Any

import httpx2
from livekit.agents import llm, stt, tts, vad
from livekit.plugins import cartesia, openai
from livekit.plugins.cartesia.models import TTSDefaultVoiceId
from openai import AsyncClient, DefaultAsyncHttpxClient
from pydantic import SecretStr

from core.chains import chain
from core.models import MODELS, AgentConfig
from core.settings import Settings
from worker.line import Rates
from worker.timing.turn_clock import Origins
from worker.voice.clauses import ClauseFirst
from worker.voice.ears import Ears
from worker.voice.fallback import ATTEMPT_S, Named, Post, llm_chain, tts_chain, watch
from worker.voice.stt_chain import SttChain

log = logging.getLogger(__name__)

_CLOSE_WITHIN_S = 3.0

# The range of a voice's speed, from Cartesia's and OpenAI's API documentation.
_SPEEDS = {"cartesia": (0.6, 1.5), "openai": (0.25, 4.0)}

# The languages for which Cartesia gives word times, from its API documentation.
_TIMED_LANGUAGES = frozenset({"en", "de", "es", "fr"})

_SPEECH_READ_S = 5.0


def speed(provider: str, wanted: float) -> float:
    """Return the speed nearest to ``wanted`` that the provider's TTS supports."""
    least, most = _SPEEDS[provider]
    return min(most, max(least, wanted))


def timed(config: AgentConfig) -> bool:
    """Return True if the TTS gives the time of each word."""
    return base_language(config) in _TIMED_LANGUAGES


def provider_names(config: AgentConfig) -> dict[str, str]:
    """Return the providers by stage; those of a chain in their order. A webhook has no LLM."""
    stages: dict[str, str | list[str]] = {"stt": config.stt, "tts": config.tts}
    if config.voice_mode == "hosted":
        stages["llm"] = config.model or MODELS[config.model_tier]
    return {stage: ", ".join(chain(names)) for stage, names in stages.items()}


def base_language(config: AgentConfig) -> str:
    """Return the primary language: ``pt`` for ``pt-BR``."""
    return config.language.split("-")[0].lower()


class Providers:
    """Makes one agent's STT and TTS. ``aclose`` closes what was made: sessions of livekit-agents
    leave that to the end of their process."""

    def __init__(self, config: AgentConfig, settings: Settings, rates: Rates) -> None:
        self._config = config
        self._rates = rates
        self._settings = settings
        self.origins: Origins = {}
        self._speech_client: AsyncClient | None = None
        self._engines: list[stt.STT[Any] | tts.TTS[Any]] = []

    def make_stt(self, ear: vad.VAD) -> tuple[stt.STT[Any], list[Named[stt.STT[Any]]]]:
        """Return the STT and its parts. ``ear`` segments the audio for parts that do not stream."""
        parts = [Named(name, self._one_stt(name, ear)) for name in chain(self._config.stt)]
        self._engines += [part.engine for part in parts]
        return (SttChain(parts) if len(parts) > 1 else parts[0].engine), parts

    def make_tts(self) -> tuple[tts.TTS[Any], list[Named[tts.TTS[Any]]]]:
        """Return the TTS and its parts. ``voice`` is the first part's; the others have defaults."""
        names = chain(self._config.tts)
        parts = [
            Named(name, self._one_tts(name, self._config.voice if name == names[0] else None))
            for name in names
        ]
        self._engines += [part.engine for part in parts]
        return (tts_chain(parts) if len(parts) > 1 else parts[0].engine), parts

    def _one_stt(self, name: str, ear: vad.VAD) -> stt.STT[Any]:
        if name.startswith("openai/"):
            batch = openai.STT(
                model=_model(name),
                language=base_language(self._config),
                client=self._speech(),
            )
            return stt.StreamAdapter(stt=batch, vad=ear)
        return Ears(
            self.origins,
            model=_model(name),
            language=self._config.language,
            api_key=_key(self._settings.deepgram_api_key),
            base_url=self._settings.deepgram_base_url,
            sample_rate=self._rates.speech,
        )

    def _one_tts(self, name: str, voice: str | None) -> tts.TTS[Any]:
        config, settings = self._config, self._settings
        if name.startswith("openai/"):
            given = {} if voice is None else {"voice": voice}
            whole = openai.TTS(
                model=_model(name),
                speed=speed("openai", config.voice_speed),
                client=self._speech(),
                response_format="pcm",
                **given,
            )
            return tts.StreamAdapter(tts=whole)
        spoken_at = speed("cartesia", config.voice_speed)
        return cartesia.TTS(
            model=_model(name),
            language=config.language,
            api_key=_key(settings.cartesia_api_key),
            base_url=settings.cartesia_base_url,
            sample_rate=self._rates.voice,
            word_timestamps=timed(config),
            tokenizer=ClauseFirst(),
            voice=voice or TTSDefaultVoiceId,
            # 1 is what a voice has anyway; older models do not take a speed.
            speed=None if spoken_at == 1 else spoken_at,
        )

    def _speech(self) -> AsyncClient:
        """Return a client for OpenAI's STT and TTS, whose plugins would wait 30 s for a reply."""

        async def wait_less(request: httpx2.Request) -> None:
            request.extensions["timeout"]["read"] = _SPEECH_READ_S

        if self._speech_client is None:
            self._speech_client = AsyncClient(
                api_key=_key(self._settings.openai_api_key),
                base_url=self._settings.openai_base_url,
                max_retries=0,
                http_client=httpx2.AsyncClient(
                    verify=tls_context(), event_hooks={"request": [wait_less]}
                ),
            )
        return self._speech_client

    async def aclose(self) -> None:
        """Close all of it. Bounded."""
        try:
            async with asyncio.timeout(_CLOSE_WITHIN_S):
                for engine in self._engines:
                    await engine.aclose()
                if self._speech_client is not None:
                    await self._speech_client.close()
        except TimeoutError:
            log.warning("a provider did not close in time")


def build_llm_client(settings: Settings) -> AsyncClient:
    """Return the LLM's HTTP client, which is made before a call arrives."""
    return AsyncClient(
        api_key=_key(settings.openai_api_key),
        base_url=settings.openai_base_url,
        max_retries=0,
        http_client=DefaultAsyncHttpxClient(verify=tls_context()),
    )


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Return a TLS context. Loading the CA certificates takes 30 ms of CPU, so job processes
    inherit it (worker.preload)."""
    return httpx2.create_ssl_context()


def build_llm(
    config: AgentConfig, client: AsyncClient, post: Post, *, attempt_s: float = ATTEMPT_S
) -> llm.LLM[Any]:
    """Return the LLM of a hosted agent, or a chain of LLMs."""
    names = chain(config.model or MODELS[config.model_tier])
    parts = [Named(name, openai.LLM(model=_model(name), client=client)) for name in names]
    if len(parts) == 1:
        return parts[0].engine
    made = llm_chain(parts, attempt_s)
    watch("llm", made, parts, post)
    return made


def _model(name: str) -> str:
    """``deepgram/nova-3`` → ``nova-3``"""
    return name.partition("/")[2]


def _key(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret is not None else ""
