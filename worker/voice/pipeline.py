"""The voice pipeline of one call: STT → LLM → TTS.

Everything runs here or at the configured providers; nothing goes to LiveKit's hosted
inference or telemetry.
"""

from __future__ import annotations

from typing import Any

from livekit.agents import AgentSession, llm
from livekit.agents.voice.agent_session import SessionConnectOptions

from core.models import AgentConfig
from core.settings import Settings
from worker.voice.failures import CHAIN_OPTIONS, ERRORS_ARE_OURS, LLM_OPTIONS, TTS_OPTIONS
from worker.voice.fallback import STT_OPTIONS, Post, watch
from worker.voice.providers import Providers
from worker.voice.stt_chain import UNDERSTOOD_WITHIN_S, SttChain
from worker.voice.turn_taking import build_vad, turn_handling


def build_session(
    made: Providers,
    config: AgentConfig,
    settings: Settings,
    model: llm.LLM[Any],
    post: Post,
    *,
    guesses: bool = True,
) -> AgentSession[None]:
    """Build the session for one call on what ``made`` makes. It connects as soon as it starts.

    ``post`` gets the chains' ``provider.error`` and ``provider.switched``. ``guesses``: an answer
    is started when the caller seems to be done, before that is certain.
    """
    ear = build_vad(settings)
    stt, stt_parts = made.make_stt(ear)
    tts, tts_parts = made.make_tts()
    session: AgentSession[None] = AgentSession(
        stt=stt,
        llm=model,
        tts=tts,
        vad=ear,
        turn_handling=turn_handling(config, settings, guesses),
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
