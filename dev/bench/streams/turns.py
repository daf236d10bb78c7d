"""A caller's turn over a media stream, one call at a time: ours, a bare session and Pipecat.

All times are taken from the audio at the caller, as the simulated Twilio plays it. **Turn**: from
the end of the caller's last voiced frame to the agent's first. **First response**: from the call's
arrival at Twilio, which first asks for TwiML, to the agent's first voiced frame. All sides use the
same providers, delays and endpointing, and their calls alternate. A turn in which a simulated
provider was more than 3 ms late is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

from core.settings import Settings
from dev.bench.barge_in import ANSWER as LONG_ANSWER
from dev.bench.barge_in import INTERRUPTION
from dev.bench.barge_in import QUESTION as LONG_QUESTION
from dev.bench.late import LATE_MS, Late
from dev.bench.plot import shares
from dev.bench.report import Section
from dev.bench.rig import (
    ENDPOINTING_MS,
    FLOOR_MS,
    LLM_FIRST_TOKEN_MS,
    STT_FINAL_MS,
    TTS_FIRST_BYTE_MS,
    control,
)
from dev.bench.stats import SUMMARY, paired, percentile, summary
from dev.bench.streams.goals import at_most
from dev.bench.streams.rig import Rig, rig
from dev.bench.streams.sides import (
    BARE,
    OURS,
    PIPECAT,
    PIPECAT_UNTUNED,
    Side,
    bare,
    ours,
    pipecat_bot,
)
from dev.bench.turn import ANSWER, QUESTION, Taken
from dev.setup import pipecat

ROUNDS, TURNS, INTERRUPTIONS = 5, 8, 3
REALISTIC_ROUNDS = 3
REALISTIC = {"stt_final_ms": 50.0, "llm_first_token_ms": 400.0, "llm_token_ms": 10.0}
"""Delays as providers on the internet have them; the rest is as in the floor."""
_REPLIES = {QUESTION: ANSWER, LONG_QUESTION: LONG_ANSWER, INTERRUPTION: "Of course."}
_FIRST_S, _STEP_S = 1.0, 0.137  # the interruptions' times in the answer, spread as in barge_in

Step = Callable[[int, int], None]


async def measure(settings: Settings, step: Step) -> Section:
    done = 0
    untuned = partial(pipecat_bot, untuned=True)
    async with rig(settings, ours, bare, pipecat_bot, untuned) as running:
        total = (ROUNDS + REALISTIC_ROUNDS) * len(running.sides)

        async def alternate(rounds: int, interruptions: int) -> list[Taken]:
            nonlocal done
            taken = [Taken(side.name) for side in running.sides]
            for _ in range(rounds):
                for side, into in zip(running.sides, taken, strict=True):
                    await _hold(running, side, into, TURNS, interruptions)
                    done += 1
                    step(done, total)
            return taken

        await running.stack.set_providers(control(_REPLIES))
        for side in running.sides:  # warm
            await _hold(running, side, Taken(side.name), turns=1, interruptions=1)
        taken = await alternate(ROUNDS, INTERRUPTIONS)
        await running.stack.set_providers(control(_REPLIES, **REALISTIC))
        realistic = await alternate(REALISTIC_ROUNDS, 0)
    return section(taken, realistic, pipecat.version())


async def _hold(running: Rig, side: Side, into: Taken, turns: int, interruptions: int) -> None:
    """Hold one call: the greeting, the turns, the interruptions."""
    talk = await running.call(side)
    late = Late(running.stack)
    await talk.greeted()
    into.greetings.append(talk.first_ms())
    kept = []
    for _ in range(turns):
        await late.since_last()
        took = await talk.ask(QUESTION)
        if max(await late.since_last(), default=0.0) > LATE_MS:
            into.dropped += 1
        else:
            kept.append(took)
    into.turns.append(kept)
    for _ in range(interruptions):
        after_s = _FIRST_S + len(into.silences) % 10 * _STEP_S
        into.silences.append(await talk.interrupt(LONG_QUESTION, after_s, INTERRUPTION))
    await talk.end()


def section(taken: Sequence[Taken], realistic: Sequence[Taken], pipecat_version: str) -> Section:
    """Return the table. ``taken``: the sides at the floor; ``realistic``: at those delays."""
    slower = [_renamed(side, f"{side.name}, realistic delays") for side in realistic]
    series = {side.name: side.all_turns for side in [*taken, *slower] if side.all_turns}
    return Section(
        title="Streams: a turn over Twilio's Media Streams",
        command="python -m dev.bench streams",
        columns=(
            "",
            *(f"turn {name}" for name in SUMMARY),
            "over the floor",
            "barge-in p50",
            "first response p50",
        ),
        rows=[
            *(_row(side, FLOOR_MS) for side in taken if side.all_turns),
            *(_row(side, realistic_floor_ms()) for side in slower if side.all_turns),
        ],
        samples=series
        | {f"{side.name}, barge-in": side.silences for side in taken}
        | {f"{side.name}, first response": side.greetings for side in taken},
        plot=shares({name: turns for name, turns in series.items() if "realistic" not in name}),
        notes=[*_verdict(taken, realistic), *_notes(taken, pipecat_version)],
    )


def realistic_floor_ms() -> float:
    """Return the floor at the realistic delays, without the LLM's further tokens."""
    delays = REALISTIC["stt_final_ms"] + REALISTIC["llm_first_token_ms"]
    return ENDPOINTING_MS + delays + TTS_FIRST_BYTE_MS


def _renamed(side: Taken, name: str) -> Taken:
    return Taken(name, side.turns, side.silences, side.greetings, side.dropped)


def _row(side: Taken, floor_ms: float) -> tuple[str, ...]:
    return (
        side.name,
        *summary(side.all_turns),
        f"{median(side.all_turns) - floor_ms:.0f} ms",
        f"{median(side.silences):.0f} ms" if side.silences else "–",
        f"{median(side.greetings):.0f} ms",
    )


def _verdict(taken: Sequence[Taken], realistic: Sequence[Taken]) -> list[str]:
    """Return the goals, and whether our side reached them."""
    ours, slower = _named(taken, OURS), _named(realistic, OURS)
    theirs, untuned = _named(taken, PIPECAT), _named(taken, PIPECAT_UNTUNED)
    if ours is None or slower is None or theirs is None or untuned is None:
        return [f"Goals are not judged: not all of {OURS} and {PIPECAT} was measured."]
    p50 = median(ours.all_turns)
    goals = [
        at_most("turn p50", 640, p50, " ms"),
        at_most(f"turn p50 ÷ {PIPECAT}'s", 0.8, p50 / median(theirs.all_turns)),
        at_most("barge-in p50", 200, median(ours.silences), " ms"),
        at_most("first response, p95 at realistic delays", 1500, _p95(slower.greetings), " ms"),
        at_most("turn p50 at realistic delays", 900, median(slower.all_turns), " ms"),
    ]
    return [
        f"Goals: {'; '.join(goals)}.",
        f"{OURS} ÷ {PIPECAT}, the calls' medians: {_ratios(ours, theirs)}; ÷ {PIPECAT_UNTUNED}: "
        f"{_ratios(ours, untuned)}.",
    ]


def _ratios(ours: Taken, theirs: Taken) -> str:
    # On a busy machine all turns of a call may have been left out.
    calls = [pair for pair in zip(ours.turns, theirs.turns, strict=True) if all(pair)]
    return paired([median(our) for our, _ in calls], [median(their) for _, their in calls])


def _named(taken: Sequence[Taken], name: str) -> Taken | None:
    return next((side for side in taken if side.name == name and side.all_turns), None)


def _p95(values: Sequence[float]) -> float:
    return percentile(values, 0.95)


def _notes(taken: Sequence[Taken], pipecat_version: str) -> list[str]:
    counts = "; ".join(
        f"{side.name}: {len(side.all_turns)} turns in {len(side.turns)} calls, {side.dropped} left "
        f"out for a late provider, {len(side.silences)} interruptions"
        for side in taken
    )
    return [
        f"{counts}. One call at a time, the sides in alternation.",
        f"Floor {FLOOR_MS:.0f} ms: endpointing {ENDPOINTING_MS}, STT {STT_FINAL_MS:.0f}, LLM "
        f"{LLM_FIRST_TOKEN_MS:.0f}, TTS {TTS_FIRST_BYTE_MS:.0f}. Realistic delays: floor "
        f"{realistic_floor_ms():.0f} ms, with an STT of {REALISTIC['stt_final_ms']:.0f} and an LLM "
        f"of {REALISTIC['llm_first_token_ms']:.0f} ms, and {REALISTIC['llm_token_ms']:.0f} ms for "
        "each further token. A turn can be shorter than the floor: the last quiet frames of the "
        "caller's voice count as voice here, but not for the STT, and livekit-agents asks the LLM "
        "as soon as there is a transcript.",
        f"{PIPECAT} {pipecat_version} is dev/peers/pipecat_twilio: its Twilio transport, "
        "Silero's VAD with its default stop_secs of 0.2 s, no turn-detection model, no further "
        "user_speech_timeout, and a ttfs_p99_latency of these providers (0.2 s). "
        f"{PIPECAT_UNTUNED}: the same, but its default ttfs_p99_latency for Deepgram's cloud, "
        "0.35 s.",
        f"{BARE} is dev/peers/bare_streams.py: the same plugins and endpointing, Silero's VAD with "
        "that silence, the rest at livekit-agents' defaults, among them an interruption only after "
        "0.5 s of speech.",
        "First response: from the call's arrival at Twilio, which then asks for TwiML, to the "
        "agent's first voiced frame. A peer's TwiML is fixed; ours comes from an application that "
        "asks the gateway for a session (POST /v1/sessions/twilio), with its record (SQLite).",
        "The callers' side is the simulated Twilio (dev/standins/twilio); it, the providers and "
        "the sides share the machine.",
    ]
