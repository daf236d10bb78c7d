"""How long a call is recorded after the handover."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from worker.endings import Cause
from worker.handover.witness import Witness

pytestmark = pytest.mark.unit

HEAR = cast(Any, object())


class Recorder:
    """A recorder that the test stops."""

    def __init__(self, *, may_go_on: bool = True) -> None:
        self.may_go_on = may_go_on
        self.joined: list[object] = []
        self.over = asyncio.Event()

    def join(self, hear: object) -> None:
        self.joined.append(hear)

    async def stopped(self) -> None:
        await self.over.wait()


def witness(recorder: Recorder, draining: asyncio.Event | None = None) -> Witness:
    return Witness(cast(Any, recorder), draining or asyncio.Event())


async def ended(staying: asyncio.Task[Cause]) -> Cause:
    """Return why it ended. It is not cancelled, which would end it."""
    await asyncio.wait({staying}, timeout=5)
    assert staying.done()
    return staying.result()


async def test_only_the_end_for_the_agent_by_a_handover_leaves_something_to_record() -> None:
    recorder = Recorder()
    seen = witness(recorder)
    assert not seen.stays("handed_over"), "nobody has been put through"
    seen.begin(HEAR)
    assert recorder.joined == [HEAR]
    assert seen.stays("handed_over") and not seen.stays("transfer_ended")


async def test_what_may_not_be_recorded_is_not() -> None:
    recorder = Recorder(may_go_on=False)
    seen = witness(recorder)
    seen.begin(HEAR)
    assert not (seen.wanted or seen.begun or recorder.joined)


async def test_the_first_cause_ends_it() -> None:
    seen = witness(Recorder())
    staying = asyncio.create_task(seen.stay())
    await asyncio.sleep(0)
    seen.over("transfer_ended")
    seen.over("media_lost")
    assert await ended(staying) == "transfer_ended"


async def test_nobody_waits_for_a_recording_that_has_failed() -> None:
    recorder = Recorder()
    staying = asyncio.create_task(witness(recorder).stay())
    await asyncio.sleep(0)
    assert not staying.done()
    recorder.over.set()
    await ended(staying)


async def test_a_worker_that_drains_already_does_not_wait() -> None:
    draining = asyncio.Event()
    draining.set()
    staying = asyncio.create_task(witness(Recorder(), draining).stay())
    assert await ended(staying) == "worker_stopped"


async def test_a_cancelled_job_ends_the_recording() -> None:
    staying = asyncio.create_task(witness(Recorder()).stay())
    await asyncio.sleep(0)
    staying.cancel()
    assert await ended(staying) == "worker_stopped"
