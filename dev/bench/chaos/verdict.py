"""What came of a trial, as a section of the report."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final

from dev.bench.chaos.conversation import Conversation
from dev.bench.chaos.faults import FAULTS, Fault
from dev.bench.report import Section
from dev.bench.stats import SUMMARY, percentile, summary
from dev.bench.streams.goals import at_most

_P50_MS, _P95_MS = 3000.0, 6000.0
_NONE: Final = ("",) * len(SUMMARY)


def section(
    held: Sequence[Conversation],
    faults: Sequence[Fault],
    failures: Sequence[str],
    minutes: float,
    seed: int,
) -> Section:
    silences: defaultdict[Fault, list[float]] = defaultdict(list)
    for conversation in held:
        for fault, silence in conversation.silences:
            silences[fault].append(silence)
    times = Counter(faults)
    marks = Counter(mark.fault for conversation in held for mark in conversation.marks)
    rows = [
        (
            str(fault),
            str(times[fault]),
            str(marks[fault]),
            *(summary(silences[fault]) if silences[fault] else _NONE),
            str(len(silences[fault])),
        )
        for fault in FAULTS
        if times[fault]
    ]
    everything = [one for several in silences.values() for one in several]
    lost = [
        f"{one.far.call_id} ({one.serves}): {problem}" for one in held for problem in one.problems
    ]
    return Section(
        title="Chaos: calls while processes are stopped, killed and frozen",
        command=f"python -m dev.bench chaos --minutes {minutes:g} --seed {seed}",
        columns=("", "times", "calls then", *(f"silence {name}" for name in SUMMARY), "noticed"),
        rows=rows,
        samples={str(fault): several for fault, several in silences.items() if several},
        notes=[*_goals(everything), *_notes(held, faults, seed)],
        failures=[*failures, *lost],
    )


def _goals(silences: Sequence[float]) -> list[str]:
    if not silences:
        return []
    goals = [
        at_most("silence p50", _P50_MS, percentile(silences, 0.5), " ms"),
        at_most("silence p95", _P95_MS, percentile(silences, 0.95), " ms"),
    ]
    return [f"Goals: {'; '.join(goals)}."]


def _notes(held: Sequence[Conversation], faults: Sequence[Fault], seed: int) -> list[str]:
    well = sum(not one.problems for one in held)
    lines = Counter(one.serves for one in held)
    hit = sum(bool(one.marks) for one in held)
    return [
        f"{well} of {len(held)} calls were held to their end and are right on record: "
        f"{lines['worker']} by phone, {lines['streams']} on streams; {hit} of them were under way "
        f"at one of the {len(faults)} faults (seed {seed}). The exit code is 1 if a call is lost, "
        "a planned stop costs an agent, a tool runs twice, a phone rings twice, a caller is "
        "greeted twice, or a record is wrong.",
        "**Calls then**: that were being held when it happened, by whatever process. **Noticed**: "
        "whose agent was lost by it, or whose stream had to come back. **Silence**: from the last "
        "sound of the former agent to the first of the next, as heard at the far end; the caller's "
        "own words are in it.",
        "All processes share the machine with the callers and the providers.",
    ]
