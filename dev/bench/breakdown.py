"""The parts of a turn's latency in the call records, checked against the phone's measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from dev.bench.stats import percentile

PARTS = {
    "endpointing": "endpointing",
    "stt": "STT",
    "llm": "LLM",
    "tools": "tools",
    "tts": "TTS",
    "transport": "transport",
}


@dataclass(frozen=True, slots=True)
class Checked:
    """One turn's latency in its record, and as measured at the phone; ms."""

    latency: Mapping[str, float]
    wire_ms: float

    @property
    def unseen_ms(self) -> float:
        """The part of the phone's wait that is not in the record."""
        return self.wire_ms - self.latency["total"]


def check(record: Mapping[str, Any], asked: str, wire_ms: Sequence[float]) -> list[Checked]:
    """Return the turns of a call in which the caller said ``asked``, in order.

    If the record and the phone have different numbers of them, they cannot be matched, and the
    result is empty.
    """
    turns = [turn["latency"] for turn in record["transcripts"] if turn["transcript"] == asked]
    if len(turns) != len(wire_ms):
        return []
    both = zip(turns, wire_ms, strict=True)
    return [Checked(latency, wire) for latency, wire in both if "total" in latency]


def notes(checked: Sequence[Checked], of: int) -> list[str]:
    """Return notes on the parts, their sum, and the rest on the wire. ``of``: number of turns."""
    if not checked:
        return [f"None of the {of} turns has a whole latency on record."]
    medians = {
        shown: median([turn.latency.get(part, 0.0) for turn in checked])
        for part, shown in PARTS.items()
        if any(part in turn.latency for turn in checked)
    }
    parts = " + ".join(f"{shown} {value:.0f}" for shown, value in medians.items())
    unseen = [turn.unseen_ms for turn in checked]
    total = median([turn.latency["total"] for turn in checked])
    return [
        f"Where it goes, from the records of {len(checked)} of {of} turns, medians in ms: {parts} "
        f"= {sum(medians.values()):.0f} (the median of their totals: {total:.0f}); on the wire "
        f"{median([turn.wire_ms for turn in checked]):.0f}.",
        f"Wire - record, turn by turn: {median(unseen):+.0f} ms (median; p5 "
        f"{percentile(unseen, 0.05):+.0f}, p95 {percentile(unseen, 0.95):+.0f}): packetisation and "
        "codec frames, the phone's own buffer, and scheduling on a busy machine.",
    ]
