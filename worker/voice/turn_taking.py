"""Turn taking: when the caller's turn is over, and what interrupts the agent.

The VAD is Silero's model. By default it runs in livekit-local-inference, with 7 MB of private
memory and 0.35 s of CPU per minute of audio; the silero plugin (``VAD=plugin``, onnxruntime)
takes 48 MB and 0.73 s.
"""

from __future__ import annotations

from livekit.agents import TurnHandlingOptions, inference, vad

from core.models import AgentConfig
from core.settings import Settings
from worker.voice.inline import InlineExecutor

VAD_SPEECH_S = 0.05  # of voice before the VAD reports speech (its default)
# The agent resumes this long after the end of a sound that stopped it; the VAD reports that end
# 0.25 s late. Words that arrive later stop the agent again.
_FALSE_AFTER_S = 0.8
_INLINE = InlineExecutor()


def build_vad(settings: Settings) -> vad.VAD:
    silence_s = min(settings.endpointing_ms / 1000, 0.25)
    if settings.vad == "plugin":
        # Imported here, because the import alone loads onnxruntime.
        from livekit.plugins import silero

        return silero.VAD.load(min_speech_duration=VAD_SPEECH_S, min_silence_duration=silence_s)
    return inference.VAD(
        model="silero",
        min_speech_duration=VAD_SPEECH_S,
        min_silence_duration=silence_s,
        executor=_INLINE,
    )


def turn_handling(config: AgentConfig, settings: Settings, guesses: bool) -> TurnHandlingOptions:
    """Return the session's options. ``guesses``: start an answer before the turn is surely over."""
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
