"""The voice pipeline of one call: STT → LLM → TTS, with turn taking.

Everything runs here or at the configured providers; nothing goes to LiveKit's hosted
inference or telemetry. The VAD is Silero's model. By default it runs in
livekit-local-inference, with 7 MB of private memory and 0.35 s of CPU per minute of audio;
the silero plugin (``VAD=plugin``, onnxruntime) takes 48 MB and 0.73 s.
"""

from __future__ import annotations

from typing import Any

from livekit.agents import AgentSession, APIConnectOptions, TurnHandlingOptions, inference, llm, vad
from livekit.agents.voice.agent_session import SessionConnectOptions

from core.models import AgentConfig
from core.settings import Settings
from worker.voice.fallback import ATTEMPT_S, STT_OPTIONS, Post, watch
from worker.voice.providers import Providers
from worker.voice.stt_chain import UNDERSTOOD_WITHIN_S, SttChain

# These bound the silence that a caller hears: one attempt, one quick retry, then an apology.
LLM_OPTIONS = APIConnectOptions(max_retry=1, retry_interval=0.3, timeout=6.0)
TTS_OPTIONS = APIConnectOptions(max_retry=1, retry_interval=0.3, timeout=5.0)
CHAIN_OPTIONS = APIConnectOptions(max_retry=0, timeout=ATTEMPT_S)  # the next provider is the retry

SPEECH_RATE = 16_000  # Hz, the input of STT and VAD
VAD_SPEECH_S = 0.05  # of voice before the VAD reports speech (its default)
# The agent resumes this long after the end of a sound that stopped it; the VAD reports that end
# 0.25 s late. Words that arrive later stop the agent again.
_FALSE_AFTER_S = 0.8

ERRORS_ARE_OURS = 1_000_000  # the session never ends the call by counting errors; Call does it


def build_session(
    config: AgentConfig,
    settings: Settings,
    model: llm.LLM[Any],
    post: Post,
    *,
    guesses: bool = True,
) -> AgentSession[None]:
    """Build the session for one call. It connects to the providers as soon as it starts.

    ``post`` gets the chains' ``provider.error`` and ``provider.switched``. ``guesses``: an answer
    is started when the caller seems to be done, before that is certain.
    """
    made = Providers(config, settings)
    ear = build_vad(settings)
    stt, stt_parts = made.make_stt(ear)
    tts, tts_parts = made.make_tts()
    session: AgentSession[None] = AgentSession(
        stt=stt,
        llm=model,
        tts=tts,
        vad=ear,
        turn_handling=_turn_handling(config, settings, guesses),
        use_tts_aligned_transcript=tts.capabilities.aligned_transcript,
        user_away_timeout=None,
        # The phone network cancels echo, and the caller's first words may be a barge-in.
        aec_warmup_duration=None,
        # Wait for the STT's last words when the caller has hung up.
        session_close_transcript_timeout=1.0,
        transcription_timeout=UNDERSTOOD_WITHIN_S if len(stt_parts) > 1 else None,
        conn_options=SessionConnectOptions(
            stt_conn_options=STT_OPTIONS,
            llm_conn_options=CHAIN_OPTIONS
            if isinstance(model, llm.FallbackAdapter)
            else LLM_OPTIONS,
            tts_conn_options=TTS_OPTIONS if len(tts_parts) == 1 else CHAIN_OPTIONS,
            max_unrecoverable_errors=ERRORS_ARE_OURS,
        ),
    )
    if isinstance(stt, SttChain):
        ears = stt
        ears.tell(post)
        session.on("user_transcription_timeout", lambda event: ears.unheard(event.speech_duration))
    if len(tts_parts) > 1:
        watch("tts", tts, tts_parts, post)
    return session


def build_vad(settings: Settings) -> vad.VAD:
    silence_s = min(settings.endpointing_ms / 1000, 0.25)
    if settings.vad == "plugin":
        # Imported here, because the import alone loads onnxruntime.
        from livekit.plugins import silero

        return silero.VAD.load(min_speech_duration=VAD_SPEECH_S, min_silence_duration=silence_s)
    return inference.VAD(
        model="silero", min_speech_duration=VAD_SPEECH_S, min_silence_duration=silence_s
    )


def _turn_handling(config: AgentConfig, settings: Settings, guesses: bool) -> TurnHandlingOptions:
    return {
        "turn_detection": (
            inference.TurnDetector(version="v1-mini")
            if settings.turn_detection == "model"
            else "vad"
        ),
        "endpointing": {"mode": "fixed", "min_delay": settings.endpointing_ms / 1000},
        "interruption": {
            "enabled": config.interruption_sensitivity > 0,
            "mode": "vad",
            "min_duration": interrupting_s(config.interruption_sensitivity),
            # A sound without words stops the agent for about a second.
            "resume_false_interruption": True,
            "false_interruption_timeout": _FALSE_AFTER_S,
        },
        "preemptive_generation": {"enabled": guesses},
    }


def interrupting_s(sensitivity: float) -> float:
    """Return how long a caller must speak, by the VAD, until the agent stops, in seconds.

    A sensitivity of 0.8, the default, gives 0.08 s; 0.5 gives 0.5 s; close to 0 gives 2 s. The
    minimum is what the VAD needs to detect speech; with 0 s, silence would interrupt.
    """
    return float(max(VAD_SPEECH_S, 2.0 * (1 - sensitivity) ** 2))
