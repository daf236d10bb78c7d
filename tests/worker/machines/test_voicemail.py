"""The policy for calls that a machine answers, without a call and on made-up audio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, cast

import numpy as np
import pytest

from core.audio import Pcm
from core.models import AgentConfig, Turn, now
from core.recovery import Recovered
from worker.line import Line as CallLine
from worker.machines.voicemail import Durations, MachinePolicy
from worker.voice.ambient import AmbientSound
from worker.voice.prepared import PreparedSpeech

pytestmark = pytest.mark.unit

MESSAGE = "Please call us back."
TIMES = np.arange(8000 * 3 // 10) / 8000
BEEP: Pcm = np.concatenate(
    [(np.sin(2 * np.pi * 1000 * TIMES) * 9000).astype(np.int16), np.zeros(1600, np.int16)]
)


QUICK = Durations(after_beep_s=0.01)


class Line:
    """A conversation and a telephone line, as far as a policy uses them."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.reciting = asyncio.Event()
        self.synthesised = True
        self.sounds: asyncio.Queue[Pcm] = asyncio.Queue()

    def fall_silent(self) -> None:
        self.did.append("silent")

    async def synthesise(self, speech: PreparedSpeech) -> bool:
        self.did.append(f"synthesise {speech.text}")
        return self.synthesised

    async def recite(self, speech: PreparedSpeech) -> bool:
        self.did.append("recite")
        self.reciting.set()
        return True

    async def audio(self) -> AsyncGenerator[Pcm]:
        while True:
            yield await self.sounds.get()
            self.sounds.task_done()

    async def beeps(self) -> None:
        """Let the box beep, and wait until the policy has heard it."""
        await self.sounds.put(BEEP)
        await self.sounds.join()


class Watched:
    """A policy, with its events and the endings it asked for."""

    def __init__(
        self, durations: Durations, *, so_far: Recovered | None = None, **config: Any
    ) -> None:
        self.line = Line()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.endings: list[str] = []
        self.ended = asyncio.Event()
        values = {"name": "x", "voicemail_message": MESSAGE, **config}
        self.quiet = asyncio.Event()
        self.quiet.set()
        self.policy = MachinePolicy(
            AgentConfig(**values),
            post=self._post,
            end=self._end,
            hush=self._hush,
            durations=durations,
            so_far=so_far,
        )

    async def _hush(self) -> None:
        self.line.did.append("hush")
        await self.quiet.wait()

    def _post(self, type: str, data: dict[str, Any]) -> None:
        self.events.append((type, data))

    def _end(self, cause: str) -> None:
        self.endings.append(cause)
        self.ended.set()

    @property
    def types(self) -> list[str]:
        return [type for type, _ in self.events]


@asynccontextmanager
async def watched(durations: Durations = QUICK, **config: Any) -> AsyncIterator[Watched]:
    """Run the policy on an answered call, until the block is left."""
    call = Watched(durations, **config)
    running = asyncio.create_task(call.policy.run(call.line, call.line.audio))
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(10):
            yield call
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def settled() -> None:
    """Let everything happen that can happen now."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_after_the_beep_the_message_is_left() -> None:
    async with watched() as call:
        call.policy.busy("caller", True)
        call.policy.heard("Please leave a message after the tone", False)
        await settled()
        assert call.line.did == ["silent", "hush", f"synthesise {MESSAGE}"]
        call.policy.busy("caller", False)
        await call.line.beeps()
        await call.ended.wait()
    assert call.line.did[-1] == "recite"
    assert call.endings == ["voicemail_reached"]
    assert call.types == ["machine.detected", "voicemail.left"]
    detected = call.events[0][1]
    assert (detected["kind"], detected["evidence"]) == ("voicemail", "after the tone")
    assert detected["afterMs"] >= 0


async def test_nothing_is_left_before_everything_else_is_silent() -> None:
    async with watched() as call:
        call.quiet.clear()
        call.policy.busy("caller", True)
        call.policy.heard("Please leave a message after the tone", True)
        call.policy.busy("caller", False)
        await call.line.beeps()
        await asyncio.sleep(0.05)  # five times the wait after a beep
        assert not call.line.reciting.is_set()
        call.quiet.set()
        await call.line.reciting.wait()


async def test_a_beep_heard_before_the_words_were_understood_counts() -> None:
    async with watched() as call:
        call.policy.busy("caller", True)
        call.policy.busy("caller", False)
        await call.line.beeps()
        call.policy.heard("Please leave a message after the tone.", True)
        await call.line.reciting.wait()


async def test_without_a_beep_silence_is_enough() -> None:
    async with watched(Durations(silence_s=0.05)) as call:
        call.policy.busy("caller", True)
        call.policy.heard("You have reached the voicemail of Sam.", True)
        await asyncio.sleep(0.1)
        assert "recite" not in call.line.did, "it is still talking"
        call.policy.busy("caller", False)
        await call.ended.wait()
    assert "voicemail.left" in call.types


@pytest.mark.parametrize("waits", [True, False])
async def test_an_announced_tone_is_waited_for_longer(waits: bool) -> None:
    silence_s, tone_within_s = (0.0, 60.0) if waits else (60.0, 0.0)
    async with watched(Durations(silence_s=silence_s, tone_within_s=tone_within_s)) as call:
        call.policy.busy("caller", True)
        call.policy.heard("Leave it after the tone.", True)
        call.policy.busy("caller", False)
        if waits:
            await settled()
        else:
            await call.ended.wait()
    assert ("recite" in call.line.did) is not waits


async def test_talk_after_a_beep_means_that_it_was_none() -> None:
    async with watched(Durations(after_beep_s=60.0, silence_s=0.0)) as call:
        call.policy.busy("caller", True)
        call.policy.heard("You have reached the voicemail of Sam.", True)
        await call.line.beeps()
        call.policy.busy("caller", True)
        await settled()
        assert "recite" not in call.line.did
        call.policy.busy("caller", False)
        await call.line.reciting.wait()


async def test_a_beep_counts_while_the_far_end_seems_to_talk() -> None:
    async with watched() as call:
        call.policy.busy("caller", True)
        call.policy.heard("You have reached the voicemail of Sam.", True)
        await call.line.beeps()
        await call.line.reciting.wait()


async def test_an_announcement_without_end_gets_no_message() -> None:
    async with watched(Durations(announcement_within_s=0.05)) as call:
        call.policy.busy("caller", True)
        call.policy.heard("You have reached the voicemail of Sam.", True)
        await call.ended.wait()
    assert call.endings == ["voicemail_reached"]
    assert call.types == ["machine.detected"]


async def test_a_full_box_gets_none() -> None:
    async with watched() as call:
        call.policy.busy("caller", True)
        call.policy.heard("The person you called is not available", False)
        call.policy.heard("The person you called is not available. The mailbox is full.", True)
        await call.ended.wait()
    assert "recite" not in call.line.did
    assert call.types == ["machine.detected"]


async def test_a_message_that_could_not_be_spoken_was_not_left() -> None:
    async with watched() as call:
        call.line.synthesised = False
        call.policy.heard("Leave it after the tone.", True)
        await call.line.beeps()
        await call.ended.wait()
    assert call.types == ["machine.detected"]


async def test_hang_up_is_at_once() -> None:
    async with watched(on_voicemail="hang_up") as call:
        assert not call.policy.leaves_message
        call.policy.busy("caller", True)
        call.policy.heard("You have reached the voicemail", False)
        await call.ended.wait()
    assert call.endings == ["voicemail_reached"]
    assert call.line.did == ["silent"]


async def test_a_menu_is_hung_up_on_only_if_wanted() -> None:
    async with watched(on_ivr="hang_up", voicemail_message=None) as call:
        call.policy.heard("You have reached the voicemail of Sam.", True)  # and more follows
        call.policy.heard("For sales, press 1.", True)
        await settled()
        assert call.endings == []
    async with watched(on_ivr="hang_up", voicemail_message=None) as call:
        call.policy.heard("For sales, press 1.", True)
        await call.ended.wait()
    assert call.endings == ["ivr_reached"]
    assert call.events[0][1]["kind"] == "ivr"
    async with watched() as call:
        call.policy.heard("For sales, press 1.", True)
        await settled()
        assert (call.endings, call.events, call.line.did) == ([], [], [])


async def test_people_are_left_alone() -> None:
    async with watched() as call:
        call.policy.busy("caller", True)
        call.policy.heard("Hello?", True)
        call.policy.busy("caller", False)
        await call.line.beeps()
        await settled()
        assert (call.endings, call.events, call.line.did) == ([], [], [])


async def test_after_the_opening_time_nothing_is_a_machine() -> None:
    async with watched(Durations(open_for_s=0.0, after_beep_s=0.01)) as call:
        call.policy.heard("Please leave a message after the tone.", True)
        await settled()
        assert call.events == []
        # But the agent may report a machine at any time.
        call.policy.told()
        call.policy.told()
        await call.line.beeps()
        await call.ended.wait()
    assert call.types == ["machine.detected", "voicemail.left"]
    assert call.events[0][1]["evidence"] == "leave_voicemail"


async def test_the_agent_may_say_so_when_nobody_listens() -> None:
    async with watched(on_voicemail="continue") as call:
        assert not call.policy.detects
        assert call.policy.leaves_message
        call.policy.heard("Please leave a message after the tone.", True)
        await settled()
        assert call.events == []
        call.policy.told()
        await call.line.beeps()
        await call.ended.wait()
    assert call.types == ["machine.detected", "voicemail.left"]


@pytest.mark.parametrize(
    ("fields", "policy", "wanted"),
    [
        ({}, "continue", False),
        ({"voicemail_message": ""}, "continue", False),
        ({"voicemail_message": "x"}, "leave_message", True),
        ({"voicemail_message": "x", "on_voicemail": "continue"}, "continue", True),
        ({"voicemail_message": "x", "on_voicemail": "hang_up"}, "hang_up", True),
        ({"on_voicemail": "hang_up"}, "hang_up", True),
        ({"voicemail_message": "", "on_voicemail": "leave_message"}, "hang_up", True),
        ({"on_ivr": "hang_up"}, "continue", True),
    ],
    ids=str,
)
def test_the_agents_fields(fields: dict[str, Any], policy: str, wanted: bool) -> None:
    config = AgentConfig(name="x", **fields)
    assert config.voicemail_policy == policy
    assert MachinePolicy.wanted(config) is wanted


async def test_a_sound_that_was_stopped_does_not_begin() -> None:
    """A machine may be recognised while the sound's track is still being published."""
    sound = AmbientSound("office")
    await sound.stop()
    await sound.start(cast(CallLine, None))  # None: it must not be asked to play
    await sound.stop()


# An agent that takes over


def so_far(passed_s: float = 5, **told: Any) -> Recovered:
    answered_at = now() - timedelta(seconds=passed_s)
    return Recovered(epoch=1, lost_at=now(), answered_at=answered_at, **told)


SILENT = Durations(silence_s=0.01)


async def test_a_message_that_was_not_left_is_left_once_more() -> None:
    async with watched(SILENT, so_far=so_far(machine="voicemail")) as call:
        assert call.policy.decided
        await call.ended.wait()
    assert call.line.did == ["silent", "hush", f"synthesise {MESSAGE}", "recite"]
    assert (call.types, call.endings) == (["voicemail.left"], ["voicemail_reached"])


async def test_a_message_that_was_left_is_not_left_again() -> None:
    known = so_far(machine="voicemail", voicemail_left=True)
    async with watched(SILENT, so_far=known) as call:
        await call.ended.wait()
    assert (call.line.did, call.types) == (["silent"], [])
    assert call.endings == ["voicemail_reached"]


async def test_the_model_had_recognised_the_box() -> None:
    known = so_far(machine="voicemail")
    async with watched(SILENT, so_far=known, on_voicemail="continue") as call:
        await call.ended.wait()
    assert call.types == ["voicemail.left"]


async def test_a_menu_is_left_at_once() -> None:
    async with watched(SILENT, so_far=so_far(machine="ivr"), on_ivr="hang_up") as call:
        await call.ended.wait()
    assert (call.types, call.endings) == ([], ["ivr_reached"])


@pytest.mark.parametrize(
    ("known", "recognised"),
    [
        ({}, True),
        ({"passed_s": 40}, False),
        ({"turns": [Turn(id="t", transcript="Yes?")]}, False),
    ],
)
async def test_it_goes_on_listening_for_an_announcement(
    known: dict[str, Any], recognised: bool
) -> None:
    async with watched(so_far=so_far(**known)) as call:
        call.policy.busy("caller", True)
        call.policy.heard("please leave a message", True)
        await settled()
    assert ("machine.detected" in call.types) is recognised
    assert not call.policy.decided
    if recognised:
        (_, data) = call.events[0]
        assert 5000 <= data["afterMs"] < 8000
