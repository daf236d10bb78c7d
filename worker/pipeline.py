"""The voice pipeline of one call: STT → LLM → TTS, with turn taking in between.

Everything runs here or at the configured providers; nothing goes to LiveKit's
hosted inference or telemetry. The VAD is Silero's model, by default as built into
livekit-local-inference: in the silero plugin (``VAD=plugin``, onnxruntime) it costs
48 MB of private memory and 0.73 s of CPU per minute of audio, there 7 MB and 0.35 s.
"""

from __future__ import annotations

from typing import Any

from livekit.agents import AgentSession, APIConnectOptions, TurnHandlingOptions, inference, llm, vad
from livekit.agents.voice import room_io
from livekit.agents.voice.agent_session import SessionConnectOptions
from livekit.plugins import cartesia, deepgram, openai
from livekit.plugins.cartesia.models import TTSDefaultVoiceId
from openai import AsyncClient
from pydantic import SecretStr

from core.models import MODELS, AgentConfig
from core.settings import Settings

# How long a caller is left in silence: one attempt, one quick retry, then an apology.
_STT = APIConnectOptions(max_retry=3, retry_interval=0.5, timeout=5.0)
_LLM = APIConnectOptions(max_retry=1, retry_interval=0.3, timeout=6.0)
_TTS = APIConnectOptions(max_retry=1, retry_interval=0.3, timeout=5.0)

# The languages for which Cartesia gives word times (its API documentation).
_TIMED_LANGUAGES = frozenset({"en", "de", "es", "fr"})

_SPEECH_RATE = 16_000  # Hz, what STT and VAD take
_VOICE_RATE = 24_000  # Hz, what the TTS gives

ERRORS_ARE_OURS = 1_000_000  # the call ends by worker/endings.py, never by the session's count


def build_llm_client(settings: Settings) -> AsyncClient:
    """The LLM's HTTP client, made before a call comes: its TLS context takes 25 ms of CPU."""
    return AsyncClient(
        api_key=_key(settings.openai_api_key), base_url=settings.openai_base_url, max_retries=0
    )


def build_llm(config: AgentConfig, client: AsyncClient) -> llm.LLM[Any]:
    """The model of a hosted agent."""
    return openai.LLM(model=_model(config.model or MODELS[config.model_tier]), client=client)


def build_session(
    config: AgentConfig, settings: Settings, model: llm.LLM[Any], *, guesses: bool = True
) -> AgentSession[None]:
    """The session for one call, with its models; providers are reached as soon as it starts.

    ``guesses``: an answer is begun when the caller seems to be done, before that is certain.
    """
    timed = config.language.split("-")[0] in _TIMED_LANGUAGES
    return AgentSession(
        stt=deepgram.STT(
            model=_model(config.stt),
            language=config.language,
            api_key=_key(settings.deepgram_api_key),
            base_url=settings.deepgram_base_url,
        ),
        llm=model,
        tts=cartesia.TTS(
            model=_model(config.tts),
            language=config.language,
            api_key=_key(settings.cartesia_api_key),
            base_url=settings.cartesia_base_url,
            sample_rate=_VOICE_RATE,
            word_timestamps=timed,
            voice=config.voice or TTSDefaultVoiceId,
        ),
        vad=_vad(settings),
        turn_handling=_turn_handling(config, settings, guesses),
        use_tts_aligned_transcript=timed,
        user_away_timeout=None,
        # Echo is the phone network's business, and the first words may be a barge-in.
        aec_warmup_duration=None,
        # For words still on their way from the STT when the caller has hung up.
        session_close_transcript_timeout=1.0,
        conn_options=SessionConnectOptions(
            stt_conn_options=_STT,
            llm_conn_options=_LLM,
            tts_conn_options=_TTS,
            max_unrecoverable_errors=ERRORS_ARE_OURS,
        ),
    )


def room_options(participant_identity: str) -> room_io.RoomOptions:
    """Audio with one participant of the room; leaving it open or closed is the call's business."""
    return room_io.RoomOptions(
        participant_identity=participant_identity,
        audio_input=room_io.AudioInputOptions(
            sample_rate=_SPEECH_RATE,
            frame_size_ms=20,
            auto_gain_control=False,
            pre_connect_audio=False,
        ),
        audio_output=room_io.AudioOutputOptions(sample_rate=_VOICE_RATE),
        text_input=False,
        close_on_disconnect=False,
    )


def _vad(settings: Settings) -> vad.VAD:
    silence_s = min(settings.endpointing_ms / 1000, 0.25)
    if settings.vad == "plugin":
        # Here, because its import alone loads onnxruntime.
        from livekit.plugins import silero

        return silero.VAD.load(min_silence_duration=silence_s)
    return inference.VAD(model="silero", min_silence_duration=silence_s)


def _turn_handling(config: AgentConfig, settings: Settings, guesses: bool) -> TurnHandlingOptions:
    sensitivity = config.interruption_sensitivity
    return {
        "turn_detection": (
            inference.TurnDetector(version="v1-mini")
            if settings.turn_detection == "model"
            else "vad"
        ),
        "endpointing": {"mode": "fixed", "min_delay": settings.endpointing_ms / 1000},
        "interruption": {
            "enabled": sensitivity > 0,
            "mode": "vad",
            # 0.8, the default, asks for half a second of speech; 1 for a tenth.
            "min_duration": 0.1 + (1 - sensitivity) * 2.0,
        },
        "preemptive_generation": {"enabled": guesses},
    }


def _model(name: str) -> str:
    """``deepgram/nova-3`` → ``nova-3``"""
    return name.partition("/")[2]


def _key(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret is not None else ""
