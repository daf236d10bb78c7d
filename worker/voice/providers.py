"""The plugins behind ``provider/model`` names: what an agent's ``stt``, ``model`` and ``tts`` are.

One name is that plugin and nothing else. Several are a chain (``worker.voice.fallback``), in which
nobody retries: the next one is the retry.
"""

from __future__ import annotations

import functools
import ssl
from typing import Any

import httpx2
from livekit.agents import llm, stt, tts, vad
from livekit.plugins import cartesia, deepgram, openai
from livekit.plugins.cartesia.models import TTSDefaultVoiceId
from openai import AsyncClient, DefaultAsyncHttpxClient
from pydantic import SecretStr

from core.chains import chain
from core.models import MODELS, AgentConfig
from core.settings import Settings
from worker.voice.clauses import ClauseFirst
from worker.voice.fallback import Named, Post, llm_chain, tts_chain, watch
from worker.voice.stt_chain import SttChain

VOICE_RATE = 24_000  # Hz, what every TTS here gives

# What a voice's speed may be: Cartesia's and OpenAI's API documentation.
_SPEEDS = {"cartesia": (0.6, 1.5), "openai": (0.25, 4.0)}

# The languages for which Cartesia gives word times (its API documentation).
_TIMED_LANGUAGES = frozenset({"en", "de", "es", "fr"})

_SPEECH_READ_S = 5.0


def speed(provider: str, wanted: float) -> float:
    """The nearest speed that the provider's TTS can speak at."""
    least, most = _SPEEDS[provider]
    return min(most, max(least, wanted))


def timed(config: AgentConfig) -> bool:
    """Whether the TTS tells when which word is spoken."""
    return base_language(config) in _TIMED_LANGUAGES


def base_language(config: AgentConfig) -> str:
    """``pt`` of ``pt-BR``."""
    return config.language.split("-")[0].lower()


class Providers:
    """Makes what hears and speaks for one agent."""

    def __init__(self, config: AgentConfig, settings: Settings) -> None:
        self._config = config
        self._settings = settings
        self._speech_client: AsyncClient | None = None

    def make_stt(self, ear: vad.VAD) -> tuple[stt.STT[Any], list[Named[stt.STT[Any]]]]:
        """What listens, and its parts; ``ear`` cuts the utterances for those that cannot."""
        parts = [Named(name, self._one_stt(name, ear)) for name in chain(self._config.stt)]
        return (SttChain(parts) if len(parts) > 1 else parts[0].engine), parts

    def make_tts(self) -> tuple[tts.TTS[Any], list[Named[tts.TTS[Any]]]]:
        """``voice`` is the first one's; the others speak with their own."""
        names = chain(self._config.tts)
        parts = [
            Named(name, self._one_tts(name, self._config.voice if name == names[0] else None))
            for name in names
        ]
        return (tts_chain(parts) if len(parts) > 1 else parts[0].engine), parts

    def _one_stt(self, name: str, ear: vad.VAD) -> stt.STT[Any]:
        if name.startswith("openai/"):
            batch = openai.STT(
                model=_model(name),
                language=base_language(self._config),
                client=self._speech(),
            )
            return stt.StreamAdapter(stt=batch, vad=ear)
        return deepgram.STT(
            model=_model(name),
            language=self._config.language,
            api_key=_key(self._settings.deepgram_api_key),
            base_url=self._settings.deepgram_base_url,
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
            sample_rate=VOICE_RATE,
            word_timestamps=timed(config),
            tokenizer=ClauseFirst(),
            voice=voice or TTSDefaultVoiceId,
            # 1 is what a voice has anyway; older models do not take a speed.
            speed=None if spoken_at == 1 else spoken_at,
        )

    def _speech(self) -> AsyncClient:
        """For OpenAI's speech: its plugins would wait 30 s for one that hangs."""

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
        """Close what was made here."""
        if self._speech_client is not None:
            await self._speech_client.close()


def build_llm_client(settings: Settings) -> AsyncClient:
    """The LLM's HTTP client, made before a call comes."""
    return AsyncClient(
        api_key=_key(settings.openai_api_key),
        base_url=settings.openai_base_url,
        max_retries=0,
        http_client=DefaultAsyncHttpxClient(verify=tls_context()),
    )


@functools.cache
def tls_context() -> ssl.SSLContext:
    """The CA certificates take 30 ms of CPU, so job processes inherit them (worker.preload)."""
    return httpx2.create_ssl_context()


def build_llm(config: AgentConfig, client: AsyncClient, post: Post) -> llm.LLM[Any]:
    """The model of a hosted agent, or a chain of them."""
    names = chain(config.model or MODELS[config.model_tier])
    parts = [Named(name, openai.LLM(model=_model(name), client=client)) for name in names]
    if len(parts) == 1:
        return parts[0].engine
    made = llm_chain(parts)
    watch("llm", made, parts, post)
    return made


def _model(name: str) -> str:
    """``deepgram/nova-3`` → ``nova-3``"""
    return name.partition("/")[2]


def _key(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret is not None else ""
