"""How well recordings and transcripts line up with the far ends' own recordings, on all lines.

On each line, one call of ten minutes: answers that are heard whole, that the TTS is too slow for,
and that are cut off; on a phone's line also a hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from core.settings import Settings
from dev.alignment.conversation import SPOKEN, converse, hold
from dev.alignment.far_ends import FarEnd, PhoneEnd
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
from dev.bench.recording.lines import NETWORK, Lines, Place
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


async def measure_lines(
    settings: Settings, step: Step, minutes: float = MINUTES, *, at_once: bool = False
) -> Section:
    """Measure the lines one after the other, or all ``at_once``."""
    found: dict[str, Line] = {}
    done_s: dict[str, float] = {}
    async with Lines.run(settings) as lines:
        places = lines.all()

        async def measure_line(name: str, place: Place) -> None:
            def into(seconds: float) -> None:
                done_s[name] = seconds
                step(round(sum(done_s.values())), round(len(places) * minutes * 60))

            async with place() as (call_id, end):
                rounds, broken = await _talk(end, minutes * 60, into)
                side = end.side()
            recorded, turns = await lines.stored(call_id)
            alignment = await asyncio.to_thread(measure, recorded, side, turns, SPOKEN)
            found[name] = Line(alignment, rounds, broken)

        if at_once:
            async with asyncio.TaskGroup() as measuring:
                for name, place in places.items():
                    measuring.create_task(measure_line(name, place))
        else:
            for name, place in places.items():
                await measure_line(name, place)
        notes = list(lines.notes)
    return section({name: found[name] for name in places}, minutes, notes, at_once=at_once)


async def _talk(end: FarEnd, seconds: float, into: Callable[[float], None]) -> tuple[int, int]:
    """Talk for so long; return the number of rounds, and of those that an answer was missing in.

    ``into`` is told how many seconds have passed.
    """
    clock = asyncio.get_running_loop()
    rounds = broken = 0
    began = clock.time()
    await end.hears()
    await end.quiet()
    while (passed := clock.time() - began) < seconds:
        try:
            await converse(end)
            if isinstance(end, PhoneEnd):
                await hold(end)
            rounds += 1
        except TimeoutError:  # the lost frames were the words
            broken += 1
        into(min(passed, seconds))
    return rounds, broken


def section(
    found: Mapping[str, Line], minutes: float, notes: Sequence[str] = (), *, at_once: bool = False
) -> Section:
    """Return the table. ``notes``: of this run."""
    command = f"python -m dev.bench recording-alignment --minutes {minutes:g}"
    return Section(
        title="Recording: how well it lines up",
        command=f"{command} --at-once" if at_once else command,
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
        notes=[
            *(_verdict(name, line) for name, line in found.items()),
            *_notes(minutes, at_once=at_once),
            *notes,
        ],
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
    held = line.found.held
    holds = f", {len(held)} holds, {sum(map(bool, held))} of them not silent" if held else ""
    missing = f", {line.broken} without an answer" if line.broken else ""
    unmatched = len(transcript.unmatched)
    different = f", {unmatched} texts not in both" if unmatched else ""
    return f"{name}: {'; '.join(goals)} ({counts}{holds}{missing}{different})."


def _notes(minutes: float, *, at_once: bool) -> list[str]:
    order = "all at the same time" if at_once else "one after the other"
    return [
        f"One call of {minutes:g} minutes on each line, {order}. In a round, an answer "
        "is heard whole, the TTS is too slow for one (it runs dry for 0.3 s after each 0.6 s), and "
        "one is cut off by the caller. On the phone's line each round ends with a warm transfer "
        "that the human declines: the caller is on hold, speaks there, and is back with the agent. "
        "Hold is silence on the recording; the other lines have none.",
        "Offset: a window of what the far end said or heard, found in the recording by "
        "cross-correlation, against the middle of both channels' medians: a far end does not know "
        "when the call was answered. Drift: between the medians of the first and the last tenth.",
        "Turns: the first and last voiced frame of each side in the far end's own recording, "
        "against the transcript. Words: beginnings and ends; the caller's are those of the STT, "
        "which the simulated one finds with pocketsphinx.",
        f"Twilio's clock runs {NETWORK.drift_ppm:g} ppm fast; it is taken to be known. "
        f"{NETWORK.loss:g} % of the caller's frames are lost there.",
    ]
