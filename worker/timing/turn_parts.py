"""What a caller's wait for an answer was made of, in parts that add up to it.

Everything is counted in the worker, from the audio: from the caller's last voiced sample as it
came, to the agent's first voiced sample as it leaves. Each moment belongs to one part only, so
what runs side by side (an LLM that is asked before the turn is certain to be over) counts where
the caller waits for it, and no more than that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The caller's side of a turn; all in Unix seconds.

    ``speech_end``: the last voiced sample came. ``quiet``: by the voice activity detector and the
    configured silence alone the turn could have been over. ``final``: its last final transcript,
    None if that is unknown. ``decided``: it was over.
    """

    speech_end: float
    quiet: float
    final: float | None
    decided: float

    def parts(self) -> dict[str, float]:
        """``endpointing`` and ``stt``, ms."""
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
    """All parts and their sum, ms, each at least 0.

    ``text``: the first words of the answer were given to the TTS. ``voiced``: its first voiced
    sample left the worker. ``tools``: from when to when tools ran. Times are Unix seconds.
    ``transport_ms``: both ways between the caller and the worker, as far as known.
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
