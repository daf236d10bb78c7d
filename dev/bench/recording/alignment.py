"""How well recordings and transcripts line up with the far ends' own recordings, on all lines.

On each line, one call of ten minutes: answers that are heard whole, that the TTS is too slow for,
and that are cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from core.settings import Settings
from dev.alignment.conversation import SPOKEN, converse
from dev.alignment.measured import (
    BOUNDARY_MS,
    DRIFT_MS,
    OFF_MS,
    WORD_MS,
    Alignment,
    Channel,
    measure,
    share,
)
from dev.bench.plot import shares
from dev.bench.recording.lines import NETWORK, Lines
from dev.bench.report import Section
from dev.bench.streams.goals import at_most

MINUTES = 10.0

Step = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Line:
    """``broken``: rounds of the conversation that an answer was missing in."""

    found: Alignment
    rounds: int
    broken: int


async def measure_lines(settings: Settings, step: Step, minutes: float = MINUTES) -> Section:
    found: dict[str, Line] = {}
    async with Lines.run(settings) as lines:
        clock = asyncio.get_running_loop()
        places = lines.all()
        for name, place in places.items():
            rounds = broken = 0
            async with place() as (call_id, end):
                began = clock.time()
                await end.hears()
                await end.quiet()
                while (into_s := clock.time() - began) < minutes * 60:
                    try:
                        await converse(end, lines.stack.set_providers)
                        rounds += 1
                    except TimeoutError:  # the lost frames were the words
                        broken += 1
                    done_s = len(found) * minutes * 60 + into_s
                    step(round(done_s), round(len(places) * minutes * 60))
                side = end.side()
            recorded, turns = await lines.stored(call_id)
            alignment = await asyncio.to_thread(measure, recorded, side, turns, SPOKEN)
            found[name] = Line(alignment, rounds, broken)
    return section(found, minutes)


def section(found: Mapping[str, Line], minutes: float) -> Section:
    """Return the table."""
    return Section(
        title="Recording: how well it lines up",
        command=f"python -m dev.bench recording-alignment --minutes {minutes:g}",
        columns=(
            "",
            "caller: offset p50 / p95 / max",
            "drift",
            "agent: offset p50 / p95 / max",
            "drift",
            "turns p50 / p95 / max",
            "words p50 / p95 / max",
        ),
        rows=[
            (
                name,
                *_channel(line.found.caller),
                *_channel(line.found.agent),
                _spread(line.found.transcript.boundaries),
                _spread(line.found.transcript.words),
            )
            for name, line in found.items()
        ],
        notes=[*(_verdict(name, line) for name, line in found.items()), *_notes(minutes)],
        samples={
            f"{name}, {channel}": [each.ms for each in offsets]
            for name, line in found.items()
            for channel, offsets in (
                ("caller", line.found.caller.offsets),
                ("agent", line.found.agent.offsets),
            )
        },
        plot=shares(
            {
                f"{name}: {what}": list(map(abs, late_ms))
                for name, line in found.items()
                for what, late_ms in (
                    ("offset", [*line.found.caller.off_ms, *line.found.agent.off_ms]),
                    ("turns", line.found.transcript.boundaries),
                )
            }
        ),
    )


def _channel(channel: Channel) -> tuple[str, str]:
    return _spread(channel.off_ms), f"{channel.drift_ms:.1f} ms"


def _spread(values: list[float]) -> str:
    return " / ".join(f"{share(values, part):.1f}" for part in (0.5, 0.95, 1.0)) + " ms"


def _verdict(name: str, line: Line) -> str:
    caller, agent, transcript = line.found.caller, line.found.agent, line.found.transcript
    boundaries = [abs(ms) for ms in transcript.boundaries]
    off_ms = max(share(caller.off_ms, 0.95), share(agent.off_ms, 0.95))
    goals = [
        at_most("offset of each channel, p95", OFF_MS, off_ms, " ms"),
        at_most("drift", DRIFT_MS, max(caller.drift_ms, agent.drift_ms), " ms"),
        at_most("turn boundaries p50", BOUNDARY_MS[0], median(boundaries), " ms"),
        at_most("p95", BOUNDARY_MS[1], share(boundaries, 0.95), " ms"),
        at_most("words p50", WORD_MS, share(transcript.words, 0.5), " ms"),
    ]
    counts = (
        f"{len(caller.offsets)} and {len(agent.offsets)} windows of 1.5 s, {len(boundaries)} "
        f"boundaries, {len(transcript.words)} of words, {line.rounds} rounds"
    )
    missing = f", {line.broken} without an answer" if line.broken else ""
    unmatched = len(transcript.unmatched)
    different = f", {unmatched} texts not in both" if unmatched else ""
    return f"{name}: {'; '.join(goals)} ({counts}{missing}{different})."


def _notes(minutes: float) -> list[str]:
    return [
        f"One call of {minutes:g} minutes on each line, one after the other. In a round, an answer "
        "is heard whole, the TTS is too slow for one (it runs dry for 0.3 s after each 0.6 s), and "
        "one is cut off by the caller.",
        "Offset: a window of what the far end said or heard, found in the recording by "
        "cross-correlation, against the middle of both channels' medians: a far end does not know "
        "when the call was answered. Drift: between the medians of the first and the last tenth.",
        "Turns: the first and last voiced frame of each side in the far end's own recording, "
        "against the transcript. Words: beginnings and ends; the caller's are those of the STT, "
        "which the simulated one finds with pocketsphinx.",
        f"Twilio's clock runs {NETWORK.drift_ppm:g} ppm fast; it is taken to be known. "
        f"{NETWORK.loss:g} % of the caller's frames are lost.",
    ]
