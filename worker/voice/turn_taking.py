"""Turn taking: when the caller's turn is over, and what interrupts the agent.

The VAD is Silero's model. By default it runs in livekit-local-inference, with 7 MB of private
memory and 0.35 s of CPU per minute of audio; the silero plugin (``VAD=plugin``, onnxruntime)
takes 48 MB and 0.73 s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from livekit.agents import AgentSession, TurnHandlingOptions, inference, vad

from core.models import AgentConfig
from core.settings import Settings

VAD_SPEECH_S = 0.05  # of voice before the VAD reports speech (its default)
# The agent resumes this long after the end of a sound that stopped it; the VAD reports that end
# 0.25 s late. Words that arrive later stop the agent again.
_FALSE_AFTER_S = 0.8

P = ParamSpec("P")
T = TypeVar("T")


class InlineExecutor(Executor):
    """Runs the VAD's work in the event loop's own thread.

    livekit-agents gives the VAD a thread of its own: its model takes 0.2 ms for 32 ms of audio, and
    the way to a thread and back takes as long.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


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


@contextmanager
def hearing(session: AgentSession[None], on: bool) -> Iterator[None]:
    """Hear the caller, or not, while the agent says what cannot be interrupted."""
    options = session.options.interruption
    before = options["discard_audio_if_uninterruptible"]
    options["discard_audio_if_uninterruptible"] = not on
    try:
        yield
    finally:
        options["discard_audio_if_uninterruptible"] = before
