"""A caller's turn, measured at the phone: our worker and a bare livekit-agents worker.

**Turn**: from the end of the caller's last voiced frame to the agent's first. **Floor**: the
configured delays of the simulated providers and the endpointing. **Path**: the round trip of an
echo over the same legs, in the same run. **Overhead**: turn - floor - path. Both sides use the
same SIP service (the bridge, then livekit-sip if there is one), providers, delays and endpointing;
their calls alternate. A turn in which a simulated provider was more than 3 ms late is left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from core.models import new_id
from core.settings import Settings
from dev.bench.answering.rig import RINGING_S
from dev.bench.breakdown import Checked, check, notes
from dev.bench.late import LATE_MS, Late
from dev.bench.plot import shares
from dev.bench.report import Section
from dev.bench.rig import (
    ENDPOINTING_MS,
    FLOOR_MS,
    LLM_FIRST_TOKEN_MS,
    STT_FINAL_MS,
    TTS_FIRST_BYTE_MS,
    Rig,
    both_workers,
)
from dev.bench.sides import Side
from dev.bench.stats import SUMMARY, paired, summary
from dev.phone import Answer, PhoneCall
from dev.stack.sip_backends import livekit_sip_binary

ROUNDS, LIVEKIT_SIP_ROUNDS, TURNS = 10, 4, 12
QUESTION, ANSWER = "When do you open?", "We open at five."
LONG_QUESTION = "What are your specials tonight?"
LONG_ANSWER = (
    "Tonight we have tomato soup with fresh basil, then grilled fish with lemon and potatoes, "
    "and roast lamb with rosemary and beans."
)
INTERRUPTION = "Thank you, that is enough."
_REPLIES = {QUESTION: ANSWER, LONG_QUESTION: LONG_ANSWER, INTERRUPTION: "Goodbye."}
_WAIT_S = 20.0

Step = Callable[[int, int], None]


@dataclass
class Taken:
    """The times of one side's calls, ms; ``turns`` by round."""

    name: str
    turns: list[list[float]] = field(default_factory=list)
    silences: list[float] = field(default_factory=list)
    greetings: list[float] = field(default_factory=list)
    dropped: int = 0

    @property
    def all_turns(self) -> list[float]:
        return [turn for one in self.turns for turn in one]


@dataclass(frozen=True)
class Service:
    """The measurements through one SIP service. ``checked``: our turns, record and wire."""

    ours: Taken
    bare: Taken
    path_ms: float
    checked: list[Checked]


async def measure(settings: Settings, step: Step) -> Section:
    livekit_sip = livekit_sip_binary(settings)
    done, total = 0, 2 * (ROUNDS + (LIVEKIT_SIP_ROUNDS if livekit_sip else 0))

    def tick() -> None:
        nonlocal done
        done += 1
        step(done, total)

    services = []
    async with both_workers(settings, _REPLIES) as rig:
        services.append(await _through(rig, "the bridge", ROUNDS, tick))
    if livekit_sip:
        async with both_workers(settings, _REPLIES, livekit_sip=livekit_sip) as rig:
            services.append(await _through(rig, "livekit-sip", LIVEKIT_SIP_ROUNDS, tick))
    return _section(services)


async def _through(rig: Rig, service: str, rounds: int, tick: Callable[[], None]) -> Service:
    rig.phone.behave(Answer(after_s=RINGING_S))
    path = await rig.echo("echo-before")
    for side in (rig.ours, rig.bare):  # warm
        await _Bench(rig).hold(side, Taken(side.name), turns=1)
    bench = _Bench(rig)
    ours, bare = (Taken(f"{side.name}, {service}") for side in (rig.ours, rig.bare))
    for _ in range(rounds):
        for side, into in ((rig.ours, ours), (rig.bare, bare)):
            await bench.hold(side, into, turns=TURNS)
            tick()
    path += await rig.echo("echo-after")
    return Service(ours, bare, median(path), await bench.checked())


class _Bench:
    """Holds calls, and compares the records of ours with the phone's measurements."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._late = Late(rig.stack)
        self._wire: dict[str, list[float]] = {}  # our calls' turns measured at the phone (ms)

    async def hold(self, side: Side, into: Taken, *, turns: int) -> None:
        """Hold one call: the greeting, the turns, one interruption."""
        call_id = await side.place(new_id("turns"))
        call = await self._rig.phone.next_call(_WAIT_S)
        await call.answered(_WAIT_S)
        greeting = await call.listen(_WAIT_S, end_silence_ms=500)
        into.greetings.append(greeting.start_ms)
        kept, heard_ms = [], []
        for _ in range(turns):
            await self._late.since_last()
            span = await call.say(QUESTION)
            heard = await call.listen(_WAIT_S, end_silence_ms=500)
            heard_ms.append(heard.start_ms - span.end_ms)
            if max(await self._late.since_last(), default=0.0) > LATE_MS:
                into.dropped += 1
            else:
                kept.append(heard_ms[-1])
        into.turns.append(kept)
        if call_id:
            self._wire[call_id] = heard_ms
        into.silences.append(await _interrupt(call))
        await call.hangup()
        await call.ended(_WAIT_S)

    async def checked(self) -> list[Checked]:
        """Return every turn of our calls, from the record and from the wire."""
        found = []
        for call_id, wire_ms in self._wire.items():
            async with self._rig.http.get(f"/v1/calls/{call_id}") as response:
                found += check(await response.json(), QUESTION, wire_ms)
        return found


async def _interrupt(call: PhoneCall) -> float:
    """Return the time from an interruption's first voiced frame to the agent's silence, ms."""
    await call.say(LONG_QUESTION)
    asked_ms = call.now_ms()
    await asyncio.sleep(2.5)  # the answer has begun and takes over eight seconds
    span = await call.say(INTERRUPTION)
    cut = await call.listen(_WAIT_S, since_ms=asked_ms, end_silence_ms=300)
    return cut.end_ms - span.start_ms


def _section(services: list[Service]) -> Section:
    bridge, *others = services
    taken = {side.name: side.all_turns for one in services for side in (one.ours, one.bare)}
    return Section(
        title="Turn: from the caller's last word to the agent's first",
        command="python -m dev.bench turn",
        columns=(
            "",
            *(f"turn {name}" for name in SUMMARY),
            "overhead",
            "barge-in p50",
            "200 → first word p50",
        ),
        rows=[_row(side, one.path_ms) for one in services for side in (one.ours, one.bare)],
        samples=taken | {"wire - record": [turn.unseen_ms for turn in bridge.checked]},
        plot=shares(taken),
        notes=[
            f"Calls of {TURNS} turns, the sides in alternation; the phone rings for {RINGING_S} s.",
            *(_counts(one) for one in services),
            f"Floor {FLOOR_MS:.0f} ms: endpointing {ENDPOINTING_MS}, STT {STT_FINAL_MS:.0f}, LLM "
            f"{LLM_FIRST_TOKEN_MS:.0f}, TTS {TTS_FIRST_BYTE_MS:.0f}. Overhead = turn - floor - "
            "path, which is an echo's round trip over the same legs in the same run.",
            *notes(bridge.checked, of=ROUNDS * TURNS),
            "Goals: turn p50 < 900 ms, overhead ≤ 120 ms, p95 - p50 ≤ 150 ms, barge-in p50 ≤ "
            "300 ms, 200 → first word p50 ≤ 250 ms.",
            "The bare worker is dev/peers/bare_worker.py: the same plugins, delays and "
            "endpointing, with Silero's VAD and everything else at livekit-agents' defaults. Its "
            "call is dispatched and dialled by plain livekit-api requests, as in LiveKit's "
            "example.",
            *([] if others else ["Not measured with livekit-sip: it or Redis is missing."]),
        ],
    )


def _row(side: Taken, path_ms: float) -> tuple[str, ...]:
    return (
        side.name,
        *summary(side.all_turns),
        f"{median(side.all_turns) - FLOOR_MS - path_ms:.0f} ms",
        f"{median(side.silences):.0f} ms",
        f"{median(side.greetings):.0f} ms",
    )


def _counts(service: Service) -> str:
    ours, bare = service.ours, service.bare
    # On a busy machine all turns of a call may have been left out.
    calls = [pair for pair in zip(ours.turns, bare.turns, strict=True) if all(pair)]
    ratios = paired([median(our) for our, _ in calls], [median(their) for _, their in calls])
    return (
        f"{ours.name} and the bare worker: {len(ours.all_turns)} and {len(bare.all_turns)} turns "
        f"in {len(ours.turns)} calls a side, {ours.dropped} and {bare.dropped} left out for a late "
        f"provider; path {service.path_ms:.0f} ms; ratio of the calls' medians {ratios}."
    )
