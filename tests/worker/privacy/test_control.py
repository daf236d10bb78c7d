"""Pauses and masks: by the API, by the agent, and while somebody types in secret."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from core.models import now
from core.recordings.command import Action, Command
from core.recovery import Recovered
from tests.worker.privacy.masked import Masked
from worker.privacy import control

pytestmark = pytest.mark.unit


def command(action: Action, seconds: int | None = None, id: str = "cmd_1") -> Command:
    return Command(id=id, action=action, seconds=seconds)


@pytest.fixture
def call() -> Masked:
    return Masked()


async def test_a_pause_keeps_nothing_and_the_agent_still_hears(call: Masked) -> None:
    call.now_ms = 1000
    call.control.obey(command("pause"))
    call.now_ms = 3000
    call.control.obey(command("resume", id="cmd_2"))
    assert call.gate.spans() == ((1000, 3000),)
    assert (call.deaf, call.gate.is_open) == ([], True)
    assert call.events == [
        ("recording.paused", {"by": "api", "command": "cmd_1", "recording": "paused"}),
        ("recording.resumed", {"by": "api", "command": "cmd_2", "recording": "on"}),
    ]


async def test_a_repeat_changes_nothing_and_is_confirmed(call: Masked) -> None:
    call.control.obey(command("pause"))
    call.control.obey(command("pause", id="cmd_2"))
    call.control.obey(command("resume"))
    call.control.obey(command("resume", id="cmd_4"))
    assert call.types == ["paused", "paused", "resumed", "resumed"]
    assert [data["command"] for _, data in call.events][1::2] == ["cmd_2", "cmd_4"]
    assert len(call.gate.spans()) == 1


async def test_a_mask_is_deaf_and_ends_by_itself(
    call: Masked, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[tuple[float, Any]] = []
    loop = asyncio.get_running_loop()

    def later(delay: float, does: Any, *_: Any, **__: Any) -> asyncio.TimerHandle:
        timers.append((delay, does))
        return asyncio.TimerHandle(0, lambda: None, (), loop)

    monkeypatch.setattr(loop, "call_later", later)
    call.control.obey(command("mask", 30))
    assert (call.deaf, call.gate.is_open) == ([True], False)
    type, data = call.events[-1]
    assert (type, data["seconds"], data["recording"]) == ("recording.masked", 30, "masked")
    assert data["until"] > "2026"
    ((delay, ends),) = timers
    assert delay == 30
    ends()
    assert (call.deaf, call.gate.is_open) == ([True, False], True)
    assert call.events[-1] == ("recording.unmasked", {"recording": "on"})


async def test_another_mask_replaces_the_first(call: Masked) -> None:
    call.control.obey(command("mask", 30))
    first = call.control._end
    call.control.obey(command("mask", 60))
    assert first is not None and first.cancelled()
    assert (call.types, call.deaf) == (["masked", "masked"], [True])
    call.control.obey(command("resume"))
    assert call.types[2:] == ["unmasked", "resumed"]
    assert (call.deaf, call.gate.is_open) == ([True, False], True)


async def test_a_pause_outlasts_a_mask_and_the_agent_ends_no_mask(call: Masked) -> None:
    call.control.pause("agent")
    call.control.obey(command("mask", 30))
    call.control.resume("agent")
    assert call.events[-1][1]["recording"] == "masked"
    call.control.pause("agent")
    call.control._stop_mask()
    assert (call.deaf, call.gate.is_open) == ([True, False], False)
    assert call.events[-1] == ("recording.unmasked", {"recording": "paused"})


async def test_a_secret_entry_is_masked_whatever_the_api_asks() -> None:
    call = Masked(tail_s=0.01)
    with call.control.secretly():
        call.control.obey(command("mask", 30))
        call.control.obey(command("resume"))
        assert (call.deaf, call.gate.is_open) == ([True], False)
        assert call.events[-1][1]["recording"] == "masked"
    assert not call.gate.is_open, "the last key's tone goes on"
    over = asyncio.Event()
    call.gate.opened.append(over.set)
    async with asyncio.timeout(5):
        await over.wait()
    assert call.deaf == [True, False]


async def test_an_entry_that_fails_ends_its_mask() -> None:
    call = Masked()
    over = asyncio.Event()
    call.gate.opened.append(over.set)
    with pytest.raises(ZeroDivisionError), call.control.secretly():
        raise ZeroDivisionError
    async with asyncio.timeout(5):
        await over.wait()
    assert call.types == ["masked", "unmasked"]


async def test_after_the_call_nothing_opens_any_more() -> None:
    call = Masked()
    call.control.obey(command("mask", 1))
    end = call.control._end
    with call.control.secretly():
        pass
    call.control.close()
    assert end is not None and end.cancelled()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not call.gate.is_open


def so_far(**told: Any) -> Recovered:
    return Recovered(epoch=1, lost_at=now(), **told)


async def test_a_pause_outlasts_the_agent(call: Masked) -> None:
    call.now_ms = 5000
    call.control.restore(so_far(paused=True))
    assert (call.gate.spans(), call.deaf, call.events) == (((5000, None),), [], [])
    call.control.resume("api")
    assert call.gate.is_open


async def test_a_mask_outlasts_the_agent(call: Masked) -> None:
    call.control.restore(so_far(masked_until=now() + timedelta(milliseconds=50)))
    assert (call.deaf, call.gate.is_open, call.events) == ([True], False, [])
    opened = asyncio.Event()
    call.gate.opened.append(opened.set)
    await asyncio.wait_for(opened.wait(), 5)
    assert (call.deaf, call.types) == ([True, False], ["unmasked"])


async def test_a_mask_that_ended_meanwhile_is_over(call: Masked) -> None:
    call.control.restore(so_far(masked_until=now() - timedelta(seconds=1)))
    assert (call.deaf, call.types, call.gate.is_open) == ([], ["unmasked"], True)


async def test_who_typed_in_secret_may_go_on(call: Masked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_HELD_S", 0)
    call.control.restore(so_far(typing_secretly=True))
    assert (call.deaf, call.gate.is_open) == ([True], False)
    with call.control.secretly():  # the next agent asks again
        await asyncio.sleep(0.01)
        assert call.deaf == [True]
    await asyncio.sleep(0.01)
    assert (call.deaf, call.gate.is_open) == ([True, False], True)


async def test_nothing_was_in_force(call: Masked) -> None:
    call.control.restore(so_far())
    assert (call.deaf, call.events, call.gate.spans()) == ([], [], ())
