"""The timers of a call, and an agent's interruption sensitivity in seconds."""

from __future__ import annotations

import asyncio

import pytest

from worker.silence import DurationClock, SilenceClock, warning_after_s
from worker.voice.turn_taking import VAD_SPEECH_S, interrupting_s

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("duration_s", "after_s"), [(3600, 3570), (61, 31), (60, 30), (59, 29.5), (1, 0.5)]
)
def test_the_end_is_announced_half_a_minute_before(duration_s: float, after_s: float) -> None:
    assert warning_after_s(duration_s) == after_s


@pytest.mark.parametrize(
    ("sensitivity", "seconds"), [(0.0, 2.0), (0.1, 1.62), (0.5, 0.5), (0.8, 0.08)]
)
def test_less_sensitive_takes_longer_to_interrupt(sensitivity: float, seconds: float) -> None:
    assert interrupting_s(sensitivity) == pytest.approx(seconds)


def test_silence_never_interrupts() -> None:
    assert interrupting_s(1.0) == VAD_SPEECH_S > 0


class Clock(SilenceClock):
    """A clock whose limits are a fraction of a second; ``told`` has what it did."""

    def __init__(self, *prompts: str, limit_s: float = 0.02) -> None:
        self.told: list[str] = []
        self._tell: asyncio.Queue[str] = asyncio.Queue()
        super().__init__(
            limit_s,
            lambda: self._tell.put_nowait("silence"),
            prompts=prompts,
            prompt_s=0.001,
            on_prompt=self._tell.put_nowait,
        )

    async def until(self, count: int) -> list[str]:
        async with asyncio.timeout(10):
            while len(self.told) < count:
                self.told.append(await self._tell.get())
        return self.told


async def test_prompts_come_one_by_one_then_the_end() -> None:
    clock = Clock("still there?", "hello?")
    clock.start()
    assert await clock.until(3) == ["still there?", "hello?", "silence"]


async def test_a_prompt_that_is_spoken_holds_the_clock() -> None:
    clock = Clock("still there?")
    clock.start()
    await clock.until(1)
    clock.busy("agent", True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await clock.until(2)
    clock.busy("agent", False)
    assert await clock.until(2) == ["still there?", "silence"]


@pytest.mark.parametrize("sign", ["speech", "key"])
async def test_they_begin_anew_when_the_caller_is_there(sign: str) -> None:
    clock = Clock("still there?", "hello?", limit_s=60)
    clock.start()
    await clock.until(1)
    if sign == "speech":
        clock.busy("caller", True)
        clock.busy("caller", False)
    else:
        clock.touch()
    assert await clock.until(3) == ["still there?", "still there?", "hello?"]
    clock.stop()


async def test_the_end_comes_first_when_it_is_nearer() -> None:
    clock = Clock("still there?", limit_s=0.0005)
    clock.start()
    assert await clock.until(1) == ["silence"]


async def turns_of_the_loop() -> None:
    """Let timers of zero seconds run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_silence_runs_only_while_nobody_is_busy() -> None:
    fired: list[str] = []
    clock = SilenceClock(0, lambda: fired.append("silence"))
    clock.touch()
    await turns_of_the_loop()
    assert fired == [], "not before the answer"
    clock.busy("agent", True)
    clock.start()
    clock.busy("caller", True)
    clock.busy("agent", False)
    await turns_of_the_loop()
    assert fired == []
    clock.busy("caller", False)
    await turns_of_the_loop()
    assert fired == ["silence"]
    clock.stop()
    clock.touch()
    await turns_of_the_loop()
    assert fired == ["silence"]


async def test_what_a_former_agent_has_said_is_not_said_again() -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    clock = SilenceClock(
        60,
        lambda: None,
        prompts=["still there?", "hello?"],
        prompt_s=0.001,
        on_prompt=told.put_nowait,
        prompted=1,
    )
    clock.start()
    async with asyncio.timeout(10):
        assert await told.get() == "hello?"
    clock.stop()


class Durations(DurationClock):
    """A call of 100 s with a warning; ``due`` has what comes when, in seconds from its start."""

    def __init__(self) -> None:
        super().__init__(100, lambda: None, warning="soon", warn=lambda _: None)

    @property
    def due(self) -> list[float]:
        now = asyncio.get_running_loop().time()
        return [round(timer.when() - now) for timer in self._timers]


@pytest.mark.parametrize(
    ("passed_s", "told_s", "due"),
    [
        (0, 0, [100, 70]),
        (40, 38, [60, 30]),
        (72, 69, [28, 5]),  # missed by a second: after the re-entry line
        (75, 71, [25]),
        (101, 69, [-1, 5]),
    ],
)
async def test_the_limit_goes_on_from_the_answer(
    passed_s: float, told_s: float, due: list[float]
) -> None:
    clock = Durations()
    clock.start(passed_s=passed_s, told_s=told_s)
    assert clock.due == due
    clock.stop()
