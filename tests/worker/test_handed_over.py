"""Calls whose recording goes on when a human has taken over, on a scripted line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from core.audio import Pcm
from core.jobs import CallBrief
from core.recordings.command import Command
from core.recordings.plan import RecordingPlan
from core.transfers import TransferResult
from dev.providers import Providers
from tests.support.scripted_line import RATE, ScriptedLine
from tests.worker.test_line import Served, providers, serving

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]

__all__ = ["providers"]

PIECE = np.full(RATE // 10, 3000, np.int16)


class Human:
    """A worker.line.Consultation whose human takes the call at once."""

    def __init__(self, on_connected: Callable[[], None], on_left: Callable[[str], None]) -> None:
        self.present = True
        self.closed = False
        self.pieces: asyncio.Queue[Pcm] = asyncio.Queue()
        self._on_connected = on_connected
        self._on_left = on_left

    async def hold(self, ring: Callable[[], Awaitable[TransferResult]]) -> None:
        await ring()
        self._on_connected()

    async def hear(self, rate: int, piece_ms: int = 20) -> AsyncGenerator[Pcm]:
        while True:
            yield await self.pieces.get()

    async def hang_up(self) -> None:
        raise AssertionError("the gateway does")

    def close(self) -> None:
        self.closed = True

    def leaves(self) -> None:
        self.present = False
        self._on_left("hangup")


class Transferring(ScriptedLine):
    """A line that can call a human."""

    def __init__(self) -> None:
        super().__init__()
        self.human: Human | None = None
        self.recorded: bool | None = None

    def consult(
        self,
        brief: CallBrief,
        transfer_id: str,
        *,
        recorded: bool,
        on_connected: Callable[[], None],
        on_left: Callable[[str], None],
    ) -> Human:
        self.recorded = recorded
        self.human = Human(on_connected, on_left)
        return self.human

    @property
    def commands(self) -> Callable[[Command], None]:
        assert self._listener is not None
        return self._listener.commanded


@asynccontextmanager
async def handed_over(
    providers: Providers,
    folder: Path,
    *,
    after_transfer: bool = True,
    **told_of: Any,
) -> AsyncIterator[tuple[Served, Transferring, Human, Draining]]:
    line, draining = Transferring(), Draining()
    plan = RecordingPlan(key="key", after_transfer=after_transfer)
    warm = {"transfer_number": "+15551230077", "transfer_mode": "warm"}
    async with serving(
        providers,
        folder,
        line=line,
        draining=draining,
        told_of={"recording": plan, **told_of},
        **warm,
    ) as served:
        await served.greeted()
        line.says("Please give me a human!")
        await served.call.event("call.transferred")
        assert line.human is not None
        yield served, line, line.human, draining


class Draining(asyncio.Event):
    """Knows when a witness has begun to wait for it: the agent is gone then."""

    def __init__(self) -> None:
        super().__init__()
        self._awaited = asyncio.Event()

    async def wait(self) -> Literal[True]:
        self._awaited.set()
        return await super().wait()

    async def awaited(self) -> None:
        async with asyncio.timeout(20):
            await self._awaited.wait()


async def over(served: Served) -> str:
    """Return why the recording stopped, once the worker has left without any further effect."""
    left = await served.call.event("agent.left")
    assert left.data == {"cause": "handed_over"}
    assert not served.call.of("call.ended")
    assert not any(done.startswith("hang up") for done in served.line.did)
    assert served.line.did[-1] == "leave"
    (stopped,) = served.call.of("recording.stopped")
    return str(stopped.data["reason"])


@pytest.mark.parametrize("who", ["caller", "human"])
async def test_both_are_recorded_until_one_leaves(
    providers: Providers, tmp_path: Path, who: str
) -> None:
    async with handed_over(providers, tmp_path) as (served, line, human, draining):
        await draining.awaited()
        assert line.did[-1] == "fall silent" and not human.closed
        assert line.recorded
        line.types("4")  # for the human
        human.pieces.put_nowait(PIECE)
        async with asyncio.timeout(10):
            while not human.pieces.empty():  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert not served.call.of("agent.left")
        line.hangs_up() if who == "caller" else human.leaves()
        assert await over(served) == "call_ended"
        assert human.closed and not served.call.of("dtmf.received")


async def test_without_the_field_it_ends_at_once(providers: Providers, tmp_path: Path) -> None:
    async with handed_over(providers, tmp_path, after_transfer=False) as (served, line, human, _):
        assert await over(served) == "transfer"
        assert line.recorded is False and human.closed


async def test_a_call_that_is_not_recorded_has_no_witness(
    providers: Providers, tmp_path: Path
) -> None:
    async with handed_over(providers, tmp_path, recording=None) as (served, line, human, _):
        await served.call.event("agent.left")
        assert line.recorded is False and human.closed
        assert not served.call.of("recording.stopped")


async def test_a_worker_that_drains_does_not_wait(providers: Providers, tmp_path: Path) -> None:
    async with handed_over(providers, tmp_path) as (served, _, human, draining):
        await draining.awaited()
        draining.set()
        assert await over(served) == "worker_stopped"
        assert human.present


async def test_a_job_that_is_cancelled_finishes_the_recording(
    providers: Providers, tmp_path: Path
) -> None:
    async with handed_over(providers, tmp_path) as (served, _, human, draining):
        await draining.awaited()
        served.running.cancel()
        assert await over(served) == "worker_stopped"


async def test_the_longest_duration(providers: Providers, tmp_path: Path) -> None:
    async with handed_over(providers, tmp_path, max_duration_ms=8_000) as (served, _, human, _):
        assert await over(served) == "call_ended"
        assert human.present


async def test_commands_go_on_working(providers: Providers, tmp_path: Path) -> None:
    """A mask that began before the handover ends by itself, too."""
    async with handed_over(providers, tmp_path) as (served, line, human, draining):
        line.commands(Command(id="1", action="mask", seconds=1))
        await draining.awaited()
        await served.call.event("recording.unmasked")
        line.commands(Command(id="2", action="pause"))
        line.commands(Command(id="3", action="resume"))
        human.leaves()
        await over(served)
    told = [
        (event.type, event.data["recording"])
        for event in served.call.events
        if event.type.startswith("recording.") and "recording" in event.data
    ]
    assert told == [
        ("recording.masked", "masked"),
        ("recording.unmasked", "on"),
        ("recording.paused", "paused"),
        ("recording.resumed", "on"),
    ]
