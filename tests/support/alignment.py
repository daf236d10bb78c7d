"""How far a room's recording is from what its far end said and heard."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from core.audio import Pcm
from dev.alignment.measured import DRIFT_MS, OFF_MS
from dev.alignment.offsets import offsets, read_channels

_SETTLED_S = 5.0  # after this long, a room's line has measured its delay
_FEW = 4  # windows at the beginning and at the end


def channels(folder: Path, call_id: str) -> tuple[Pcm, Pcm]:
    """Return what the caller said and heard, from the call's recording somewhere in a folder."""
    (path,) = folder.rglob(f"{call_id}.wav")
    return read_channels(path)


def aligned(
    recorded: tuple[Pcm, Pcm],
    said: Pcm,
    heard: Pcm,
    *,
    off_ms: float = OFF_MS,
    drift_ms: float = DRIFT_MS,
) -> None:
    """Check both channels against what the far end said and heard, at 8 kHz on one clock.

    That clock and the recording's may differ by a constant.
    """
    both = [offsets(channel, far) for channel, far in zip(recorded, (said, heard), strict=True)]
    caller, agent = ([each.ms for each in found] for found in both)
    print(f"caller {caller}\nagent {agent}")  # pytest shows it if the test fails
    origin = (median(caller) + median(agent)) / 2
    for channel in both:
        found = [each.ms for each in channel]
        assert abs(median(found) - origin) <= off_ms
        # The first speech, whose delay is not measured yet, and words around a packet that was too
        # much or missing, may be further.
        assert sum(abs(ms - origin) > off_ms for ms in found) <= len(found) // 4
        settled = [each.ms for each in channel if each.at_s >= _SETTLED_S]
        assert abs(median(settled[-_FEW:]) - median(settled[:_FEW])) <= drift_ms
