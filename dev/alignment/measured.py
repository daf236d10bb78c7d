"""The numbers of one recorded conversation, and the goals that they miss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from core.audio import Pcm
from core.models import Turn
from dev.alignment.far_ends import FarSide
from dev.alignment.offsets import Offset, offsets
from dev.alignment.transcript import Errors, errors
from dev.speech.listen import Segment
from worker.recording.resample import RATE

OFF_MS: Final = 20.0
"""A channel may be this far off."""
DRIFT_MS: Final = 5.0
"""And it may move this far during the call."""
BOUNDARY_MS: Final = (40.0, 100.0)
"""A turn's boundaries in the transcript may be this far off: the median, and p95."""
WORD_MS: Final = 80.0
"""And the median of the words'."""

_HOLD_MS = 300.0  # the music begins and ends about when the caller is on hold and is not
_FEW = 4  # windows at the least at the beginning and at the end
_SHARE = 10  # one in so many windows otherwise


@dataclass(frozen=True, slots=True)
class Channel:
    """Where a channel is, against the middle of both."""

    offsets: Sequence[Offset]

    @property
    def off_ms(self) -> list[float]:
        return [abs(each.ms) for each in self.offsets]

    @property
    def drift_ms(self) -> float:
        """How far it moved from the beginning to the end."""
        found = [each.ms for each in self.offsets]
        few = max(_FEW, len(found) // _SHARE)
        return abs(median(found[-few:]) - median(found[:few]))


@dataclass(frozen=True, slots=True)
class Alignment:
    """``held``: for each hold, how much of it is not silence on the recording, in ms."""

    caller: Channel
    agent: Channel
    transcript: Errors
    held: Sequence[float] = ()

    def missed(self, *, off_ms: float = OFF_MS, drift_ms: float = DRIFT_MS) -> list[str]:
        """Return what is worse than it may be."""
        found: list[tuple[str, float, float]] = []
        for name, channel in (("caller", self.caller), ("agent", self.agent)):
            found += [
                (f"offset of the {name}, p95", share(channel.off_ms, 0.95), off_ms),
                (f"drift of the {name}", channel.drift_ms, drift_ms),
            ]
        for name, late_ms, limits in (
            ("boundaries of turns", self.transcript.boundaries, BOUNDARY_MS),
            ("words", self.transcript.words, (WORD_MS,)),
        ):
            for part, limit in zip((0.5, 0.95), limits, strict=False):
                found.append((f"{name}, p{100 * part:.0f}", share(late_ms, part), limit))
        return [
            *(f"{what} {ms:.0f} > {limit:.0f} ms" for what, ms, limit in found if ms > limit),
            *(f"not in both: {text}" for text in self.transcript.unmatched),
            *(f"{ms:.0f} ms of a hold are not silent" for ms in self.held if ms),
        ]


def measure(
    recorded: tuple[Pcm, Pcm], far: FarSide, turns: Sequence[Turn], answers: Iterable[str]
) -> Alignment:
    """Compare a recording's channels and its transcript with what the far end said and heard.

    The call's clock and the far end's may differ by a constant: a far end does not know when we
    have answered. ``answers``: what the agent may have said.
    """
    caller, agent = (
        offsets(channel, heard, far.pace)
        for channel, heard in zip(recorded, (far.said, far.heard), strict=True)
    )
    middle = (_median(caller) + _median(agent)) / 2
    return Alignment(
        Channel([Offset(each.at_s, each.ms - middle) for each in caller]),
        Channel([Offset(each.at_s, each.ms - middle) for each in agent]),
        errors(far, turns, middle, answers),
        [_sounding(recorded, each, middle, far.pace) for each in far.holds],
    )


def share(values: Sequence[float], part: float) -> float:
    """Return the quantile of their absolute values."""
    return float(np.quantile(np.abs(values), part, method="higher"))


def _sounding(recorded: tuple[Pcm, Pcm], hold: Segment, origin_ms: float, pace: float) -> float:
    """Return how much of a hold is not silence, in ms, except within _HOLD_MS of its ends."""
    ends = hold.start_ms + _HOLD_MS, hold.end_ms - _HOLD_MS
    span = slice(*(max(0, round((ms / pace + origin_ms) * RATE / 1000)) for ms in ends))
    return max(np.count_nonzero(channel[span]) for channel in recorded) * 1000 / RATE


def _median(found: Sequence[Offset]) -> float:
    assert found, "nothing of it is on the recording"
    return median(each.ms for each in found)
