"""The report of the answer benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from dev.bench.answering.rig import SIDES, Heard, Side
from dev.bench.report import Section
from dev.bench.stats import SUMMARY, paired, summary

NAMES: dict[Side, str] = {"ours": "Switchroom", "bare": "bare worker"}

BySide = dict[Side, list[list[Heard]]]
"""Calls by round."""


def _by_side() -> BySide:
    return {side: [] for side in SIDES}


@dataclass
class Results:
    """The calls through one SIP service. ``first`` and ``tenth``: our calls after a publish."""

    service: str
    inbound: BySide = field(default_factory=_by_side)
    outbound: BySide = field(default_factory=_by_side)
    bursts: BySide = field(default_factory=_by_side)
    first: list[Heard] = field(default_factory=list)
    tenth: list[Heard] = field(default_factory=list)
    others: dict[str, list[Heard]] = field(default_factory=lambda: {"in": [], "out": []})
    """Our calls that count for the first word only."""
    lost: dict[Side, list[str]] = field(default_factory=lambda: {side: [] for side in SIDES})
    """The causes of lost calls."""


def _answered(call: Heard) -> float:
    return call.answered_ms


def _word(call: Heard) -> float:
    return call.word_ms


def section(found: Sequence[Results], notes: Sequence[str]) -> Section:
    """Return the section. ``notes``: how it was measured."""
    rows: list[tuple[str, ...]] = []
    samples: dict[str, list[float]] = {}

    def compare(what: str, calls: BySide, of: Callable[[Heard], float]) -> None:
        rounds = {side: [[of(call) for call in one] for one in calls[side]] for side in SIDES}
        ratio = paired(*([median(one) for one in rounds[side]] for side in SIDES))
        for side in SIDES:
            name = f"{what}: {NAMES[side]}"
            samples[name] = [value for one in rounds[side] for value in one]
            rows.append((name, *summary(samples[name]), ratio if side == "ours" else ""))

    def slowest(what: str, results: Results) -> None:
        worst = {
            side: [max(_word(call) for call in burst) for burst in results.bursts[side]]
            for side in SIDES
        }
        for side in SIDES:
            name = f"{what}: {NAMES[side]}"
            samples[name] = worst[side]
            ratio = paired(*(worst[side] for side in SIDES)) if side == "ours" else ""
            rows.append((name, *summary(worst[side]), ratio))

    for results in found:
        compare(f"{results.service}, inbound, INVITE → 200", results.inbound, _answered)
        compare(f"{results.service}, inbound, INVITE → first word", results.inbound, _word)
        compare(f"{results.service}, outbound, 200 → first word", results.outbound, _word)
        at_once = len(results.bursts["ours"][0])
        slowest(f"{results.service}, slowest of {at_once} inbound at once", results)
        for which, calls in (("first", results.first), ("tenth", results.tenth)):
            if calls:
                name = f"{results.service}, inbound, {which} call after a publish: {NAMES['ours']}"
                samples[name] = [_word(call) for call in calls]
                rows.append((name, *summary(samples[name]), ""))
    return Section(
        title="Answer: until the caller hears the agent",
        command="python -m dev.bench answer",
        columns=("", *SUMMARY, "ratio to bare"),
        rows=rows,
        samples=samples,
        notes=[*notes, _bursts(found), _first_words(found), _lost(found)],
    )


def _bursts(found: Sequence[Results]) -> str:
    services = "; ".join(f"{one.service} {_burst_factors(one)}" for one in found)
    return (
        "The slowest call of a burst compared with a single call, INVITE → first word, medians: "
        f"{services}."
    )


def _burst_factors(results: Results) -> str:
    factors = []
    for side in SIDES:
        single = median(_word(call) for call in _flat(results.inbound[side]))
        slowest = median(max(_word(call) for call in burst) for burst in results.bursts[side])
        factors.append(f"{NAMES[side]} {slowest / single:.1f} times")
    return ", ".join(factors)


def _first_words(found: Sequence[Results]) -> str:
    """Return in how many calls the first word was heard whole."""

    def share(calls: list[Heard]) -> str:
        whole = sum(call.word is not None and call.word.whole for call in calls)
        return f"{whole} of {len(calls)}"

    def all_of(side: Side) -> str:
        inbound = [call for one in found for call in _flat(one.inbound[side])]
        outbound = [call for one in found for call in _flat(one.outbound[side])]
        bursts = [call for one in found for call in _flat(one.bursts[side])]
        if side == "ours":
            for one in found:
                inbound += one.first + one.tenth + one.others["in"]
                outbound += one.others["out"]
        return (
            f"{NAMES[side]} outbound {share(outbound)}, inbound {share(inbound)}, in bursts "
            f"{share(bursts)}"
        )

    return (
        f"First word heard whole, from its beginning, with nothing before it: {all_of('ours')}; "
        f"{all_of('bare')}."
    )


def _lost(found: Sequence[Results]) -> str:
    def of(side: Side) -> str:
        causes = Counter(cause for one in found for cause in one.lost[side])
        listed = ", ".join(f"{count} × {cause}" for cause, count in causes.items())
        return f"{NAMES[side]} {causes.total()}{f' ({listed})' if listed else ''}"

    return (
        "Calls lost (refused, cut off, or silent for 20 s; they are not in the other figures): "
        f"{of('ours')}; {of('bare')}."
    )


def _flat(rounds: list[list[Heard]]) -> list[Heard]:
    return [call for one in rounds for call in one]
