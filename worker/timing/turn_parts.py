"""Splits a caller's wait for an answer into parts that add up to it.

All times are taken in the worker, from the audio: from the arrival of the caller's last voiced
sample to the departure of the agent's first voiced sample. Each moment belongs to one part only.
Work that runs in parallel (an LLM that is asked before the turn is certain to be over) counts only
as far as the caller waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The caller's side of a turn; all in Unix seconds.

    ``speech_end``: the last voiced sample arrived. ``quiet``: the earliest end of the turn by the
    voice activity detector and the configured silence alone. ``final``: the last final transcript
    arrived; None if unknown. ``decided``: the turn was over.
    """

    speech_end: float
    quiet: float
    final: float | None
    decided: float

    def parts(self) -> dict[str, float]:
        """Return ``endpointing`` and ``stt`` in ms."""
        decided = max(self.decided, self.speech_end)
        transcribed = decided if self.final is None else min(self.final, decided)
        stt = 0.0
        if self.final is not None:
            stt = max(0.0, transcribed - max(self.quiet, self.speech_end))
        return {"endpointing": _ms(decided - self.speech_end - stt), "stt": _ms(stt)}


def whole(
    end: TurnEnd,
    *,
    text: float,
    voiced: float,
    tools: Iterable[tuple[float, float]] = (),
    transport_ms: float | None = None,
) -> dict[str, float]:
    """Return all parts and their sum in ms, each at least 0.

    ``text``: the answer's first words were given to the TTS. ``voiced``: its first voiced sample
    left the worker. ``tools``: the start and end of each run. All of these are Unix seconds.
    ``transport_ms``: the known delay between caller and worker, both directions together.
    """
    decided = max(end.decided, end.speech_end)
    voiced = max(voiced, decided)
    text = min(max(text, decided), voiced)
    ran = sum(max(0.0, min(to, text) - max(since, decided)) for since, to in tools)
    ran = min(ran, text - decided)
    parts = end.parts() | {"llm": _ms(text - decided - ran)}
    if ran:
        parts["tools"] = _ms(ran)
    parts["tts"] = _ms(voiced - text)
    if transport_ms is not None:
        parts["transport"] = round(max(0.0, transport_ms), 1)
    parts["total"] = round(sum(parts.values()), 1)
    return parts


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 1)
