"""Keys that a caller presses: turns, or the digits that a tool asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.worker.privacy.masked import Masked
from worker.privacy.secrets import Secrets
from worker.tools.actions import ActionFailed
from worker.tools.digits import NEXT_S, Entry, Keypad, collect

pytestmark = pytest.mark.unit


async def asked() -> None:
    """Return at once: the question takes no time to speak."""


class Turns:
    """A keypad, and the turns that its keys made."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.taken = asyncio.Event()
        self.masked = Masked()
        self.secrets = Secrets()
        self.keypad = Keypad(self._take, window_s=0)

    def _take(self, text: str) -> None:
        self.texts.append(text)
        self.taken.set()

    async def collect(
        self,
        arguments: dict[str, Any],
        asked: Callable[[], Awaitable[None]] = asked,
        next_s: float = NEXT_S,
    ) -> str:
        return await collect(
            self.keypad,
            arguments,
            asked=asked,
            secretly=self.masked.control.secretly,
            secrets=self.secrets,
            next_s=next_s,
        )

    def press(self, keys: str) -> None:
        for key in keys:
            self.keypad.pressed(key)


@pytest.fixture
def turns() -> Turns:
    return Turns()


async def collecting(
    turns: Turns,
    keys: str = "",
    asked: Callable[[], Awaitable[None]] = asked,
    next_s: float = NEXT_S,
    **arguments: Any,
) -> str:
    """Press the keys once the tool waits for them; return its answer."""
    running = asyncio.create_task(turns.collect({"digits": 4, **arguments}, asked, next_s))
    await asyncio.sleep(0)
    turns.press(keys)
    return await running


class TestTurns:
    async def test_keys_pressed_together_are_one(self, turns: Turns) -> None:
        turns.press("42#")
        await turns.taken.wait()
        turns.taken.clear()
        turns.press("7")
        await turns.taken.wait()
        assert turns.texts == ["42#", "7"]

    async def test_keys_pressed_at_the_end_are_forgotten(self, turns: Turns) -> None:
        turns.press("1")
        turns.keypad.close()
        turns.press("2")
        for _ in range(3):
            await asyncio.sleep(0)
        assert turns.texts == []

    async def test_what_a_former_agent_had_waits_for_more(self, turns: Turns) -> None:
        turns.keypad.restore("42")
        for _ in range(3):
            await asyncio.sleep(0)
        assert turns.texts == []
        assert turns.keypad.resume()
        turns.press("7")
        await turns.taken.wait()
        assert turns.texts == ["427"]
        assert not turns.keypad.resume()

    async def test_it_belongs_to_an_entry_that_is_asked_for(self, turns: Turns) -> None:
        turns.keypad.restore("12")
        assert await collecting(turns, "34") == "The caller pressed 1234."
        assert not turns.keypad.resume()


class TestCollect:
    async def test_as_many_as_asked_for(self, turns: Turns) -> None:
        assert await collecting(turns, "1234") == "The caller pressed 1234."
        assert turns.texts == []

    async def test_fewer_and_the_key_that_ends_it(self, turns: Turns) -> None:
        assert await collecting(turns, "12#") == "The caller pressed 12."
        assert await collecting(turns, "1#2*", terminator="*") == "The caller pressed 1#2."
        assert await collecting(turns, "#*0#", terminator="") == "The caller pressed #*0#."

    async def test_what_comes_after_the_last_key_is_dropped(self, turns: Turns) -> None:
        assert await collecting(turns, "12345678#") == "The caller pressed 1234."

    async def test_a_caller_who_stops(self, turns: Turns) -> None:
        said = await collecting(turns, "12", next_s=0.01)
        assert said == "The caller pressed 12, then nothing for 0.01 seconds."

    async def test_nothing(self, turns: Turns) -> None:
        assert await Entry(4, "#", secret=False).finish(first_s=0.01, next_s=1) == "nothing"
        assert await collecting(turns, "#", timeoutSeconds=30) == "The caller pressed no digits."

    async def test_keys_pressed_a_moment_before_count(self, turns: Turns) -> None:
        turns.press("#12")
        assert await collecting(turns, "34") == "The caller pressed 1234."
        assert turns.texts == []

    async def test_keys_pressed_into_the_question_end_it(self, turns: Turns) -> None:
        spoken = asyncio.Event()

        async def speaking() -> None:
            await spoken.wait()

        assert await collecting(turns, "99#", speaking) == "The caller pressed 99."

    async def test_time_runs_from_the_end_of_the_question(self, turns: Turns) -> None:
        spoken = asyncio.Event()

        async def speaking() -> None:
            await spoken.wait()

        running = asyncio.create_task(collecting(turns, "5", speaking, next_s=0.01))
        await asyncio.sleep(0.05)
        assert not running.done()
        spoken.set()
        assert (await running).startswith("The caller pressed 5, then nothing")

    async def test_an_interruption_makes_a_turn_of_them(self, turns: Turns) -> None:
        running = asyncio.create_task(turns.collect({"digits": 4}))
        await asyncio.sleep(0)
        turns.press("12")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await turns.taken.wait()
        turns.press("3")
        turns.taken.clear()
        await turns.taken.wait()
        assert turns.texts == ["12", "3"]

    async def test_a_hang_up_makes_none(self, turns: Turns) -> None:
        running = asyncio.create_task(turns.collect({"digits": 4}))
        await asyncio.sleep(0)
        turns.press("12")
        turns.keypad.close()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        for _ in range(3):
            await asyncio.sleep(0)
        assert turns.texts == []

    async def test_one_at_a_time(self, turns: Turns) -> None:
        running = asyncio.create_task(turns.collect({"digits": 4}))
        await asyncio.sleep(0)
        with pytest.raises(ActionFailed):
            await turns.collect({"digits": 4})
        turns.press("1234")
        assert await running == "The caller pressed 1234."

    @pytest.mark.parametrize(
        "arguments",
        [
            {"digits": 0},
            {"digits": 33},
            {"digits": "4"},
            {"digits": None},
            {"digits": True},
            {"digits": 2.5},
            {"timeoutSeconds": 31},
            {"timeoutSeconds": -1},
            {"terminator": "##"},
            {"terminator": None},
            {"terminator": ["#"]},
            {"secret": "yes"},
            {"secret": None},
        ],
        ids=str,
    )
    async def test_what_no_schema_allows(self, turns: Turns, arguments: dict[str, Any]) -> None:
        with pytest.raises(ActionFailed):
            await turns.collect({"digits": 4, **arguments})
        turns.press("1")
        await turns.taken.wait()
        assert turns.texts == ["1"]

    async def test_the_number_of_digits_is_needed(self, turns: Turns) -> None:
        with pytest.raises(ActionFailed):
            await turns.collect({})


class TestSecret:
    async def test_the_model_gets_a_placeholder(self, turns: Turns) -> None:
        said = await collecting(turns, "4711", secret=True)
        assert said == "The caller pressed 4 secret keys, {{digits_1}}."
        assert turns.secrets.reveal({"pin": "{{digits_1}}"}) == {"pin": "4711"}
        said = await collecting(turns, "5#", secret=True)
        assert said == "The caller pressed 1 secret key, {{digits_2}}."

    async def test_the_call_is_masked_meanwhile(self, turns: Turns) -> None:
        running = asyncio.create_task(turns.collect({"digits": 4, "secret": True}))
        await asyncio.sleep(0)
        assert not turns.masked.gate.is_open
        turns.press("4711")
        await running
        assert turns.masked.types == ["masked"]
        assert not turns.masked.gate.is_open, "the last key's tone goes on"

    async def test_an_entry_that_is_not_secret_is_not_masked(self, turns: Turns) -> None:
        assert await collecting(turns, "4711", secret=False) == "The caller pressed 4711."
        assert turns.masked.types == []

    async def test_a_caller_who_stops_or_types_nothing(self, turns: Turns) -> None:
        said = await collecting(turns, "12", next_s=0.01, secret=True)
        assert said.startswith("The caller pressed 2 secret keys, {{digits_1}}, then nothing for")
        assert await collecting(turns, "#", secret=True) == "The caller pressed no digits."
        assert turns.secrets.reveal({"a": "{{digits_2}}"}) == {"a": "{{digits_2}}"}

    async def test_what_is_cut_short_is_forgotten(self, turns: Turns) -> None:
        running = asyncio.create_task(turns.collect({"digits": 4, "secret": True}))
        await asyncio.sleep(0)
        turns.press("12")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        turns.press("#")
        await turns.taken.wait()
        assert turns.texts == ["#"]

    async def test_in_a_mask_only_a_secret_entry_gets_keys(self, turns: Turns) -> None:
        turns.press("9")
        turns.keypad.deafen(True)
        turns.press("1")
        plain = asyncio.create_task(turns.collect({"digits": 4}))
        await asyncio.sleep(0)
        turns.press("2")
        turns.keypad.deafen(False)
        turns.press("3456")
        assert await plain == "The caller pressed 3456."
        turns.keypad.deafen(True)
        assert await collecting(turns, "4711", secret=True) == (
            "The caller pressed 4 secret keys, {{digits_1}}."
        )
        turns.press("8")
        turns.keypad.deafen(False)
        for _ in range(3):
            await asyncio.sleep(0)
        assert turns.texts == []
