"""No tool runs twice because an agent was lost; and what the next agent gets to know."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from livekit.agents import StopResponse

from core.models import CallEvent, CustomTool, Turn, now
from core.recovery import Recovered
from core.tools.memory import (
    MOST_ARGUMENTS,
    MOST_RESULT,
    SECRET_DIGITS,
    TOOL_ANSWERED,
    TOOL_CALLED,
    ToolAnswered,
    ToolCalled,
    ToolRun,
)
from core.url_guard import guarded_session
from tests.worker.tools.test_box import CARD, Box, context
from tests.worker.tools.tool_server import Server
from tests.worker.tools.tool_server import server as server
from worker.privacy.gate import Gate
from worker.privacy.redaction import Finder
from worker.privacy.redactor import Redactor
from worker.privacy.secrets import Secrets
from worker.tools.memory import KNOWN_WITHIN_S, Memory
from worker.tools.runs import Runs
from worker.voice.earlier.tools import DONE, UNKNOWN

pytestmark = pytest.mark.unit


class Remembering:
    """A box whose tools are remembered: what is reported, and what the gateway says to it."""

    def __init__(self, box: Box, server: Server) -> None:
        self.reported: list[tuple[str, dict[str, Any]]] = []
        self.secured: list[tuple[float, int]] = []
        self.over = False
        self.now_ms = 1000
        self.turn: str | None = "turn_2"
        self.replied = False
        self.gate = Gate(self._to_timeline, lambda: self.now_ms)
        self._box = box
        self._server = server
        self.tool = CustomTool(name="book", description="Books.", url=f"{server.url}/echo")
        self.begin()

    def begin(self, earlier: Recovered | None = None) -> None:
        """Begin as the agent that knows this of earlier ones."""
        secrets = Secrets()
        memory = Memory(
            self.gate,
            post=lambda type, data: self.reported.append((type, data)),
            secured=self._secured,
            turn=lambda: self.turn,
            now_ms=lambda: self.now_ms,
        )
        runs = Runs("call_1", secrets, memory, earlier=earlier, replied=lambda: self.replied)
        self._box.box = replace(self._box.box, runs=runs, secrets=secrets)
        self.secrets = secrets

    def _to_timeline(self, type: str, data: dict[str, Any]) -> CallEvent:
        return CallEvent(type=type, data=data)

    async def _secured(self, within_s: float) -> bool:
        self.secured.append((within_s, len(self._server.asked)))
        return not self.over

    async def book(self, call_id: str = "", **arguments: Any) -> str:
        (tool,) = [each for each in self._box.box.tools([self.tool]) if each.id == self.tool.name]
        return str(await tool(raw_arguments=arguments, context=context(call_id)))  # type: ignore[operator]

    @property
    def keys(self) -> list[str]:
        return self._server.keys


@pytest.fixture
async def it(server: Server) -> AsyncIterator[Remembering]:
    async with guarded_session(allow_private=True) as http:
        yield Remembering(Box(http), server)


def lost_run(
    arguments: dict[str, Any] | None = None,
    *,
    answered: bool | None = None,
    result: str | None = "booked",
    turn: str | None = "turn_1",
    id: str = "call_lost",
    name: str = "book",
) -> ToolRun:
    """Return a run of a former agent; ``answered``: its ``ok``."""
    called = ToolCalled(id=id, name=name, arguments=arguments, turn=turn, at_ms=500)
    if answered is None:
        return ToolRun(called=called)
    return ToolRun(
        called=called, answered=ToolAnswered(id=id, ok=answered, result=result, at_ms=600)
    )


def recovered(*runs: ToolRun) -> Recovered:
    turns = [Turn(id="turn_0", transcript="hi", start_ms=1), Turn(id="turn_1", transcript="book")]
    return Recovered(epoch=1, lost_at=now(), turns=turns, tools=list(runs))


async def test_it_is_reported_before_it_runs(it: Remembering) -> None:
    it.now_ms = 1234
    answer = await it.book("call_0a1b2c", people=4)
    called, answered = it.reported
    assert called == (
        TOOL_CALLED,
        {
            "id": "call_0a1b2c",
            "name": "book",
            "arguments": {"people": 4},
            "turn": "turn_2",
            "atMs": 1234,
        },
    )
    assert it.secured == [(KNOWN_WITHIN_S, 0)]
    assert it.keys == ["call_1:call_0a1b2c"]
    assert answered == (
        TOOL_ANSWERED,
        {"id": "call_0a1b2c", "ok": True, "result": answer, "atMs": 1234},
    )


async def test_an_agent_that_was_replaced_runs_nothing(it: Remembering, server: Server) -> None:
    it.over = True
    with pytest.raises(StopResponse):
        await it.book(people=4)
    assert (server.asked, [type for type, _ in it.reported]) == ([], [TOOL_CALLED])


async def test_one_that_is_cut_short_has_no_outcome(it: Remembering, server: Server) -> None:
    it.tool = it.tool.model_copy(update={"url": f"{server.url}/hang"})
    running = asyncio.create_task(it.book(people=4))
    await server.was_asked.wait()
    running.cancel()
    await asyncio.wait([running])
    assert [type for type, _ in it.reported] == [TOOL_CALLED]


@pytest.mark.parametrize("given", ["", "0", "call_0", "a b\r\nc: d", "x" * 101, "call_ünï"])
async def test_ids_that_models_give_twice_or_that_no_header_takes(
    it: Remembering, given: str
) -> None:
    """Some servers number the calls of each reply from 0."""
    for _ in range(2):
        await it.book(given or "call_0", people=4)
    ids = [key.removeprefix("call_1:") for key in it.keys]
    assert len(set(ids)) == 2
    assert [data["id"] for type, data in it.reported if type == TOOL_CALLED] == ids
    assert all(id == "call_0" or id.startswith("tool_") for id in ids)


class TestPrivacy:
    async def test_nothing_is_reported_while_the_gate_is_shut(self, it: Remembering) -> None:
        it.gate.shut("paused")
        await it.book(name="Anna")
        (_, called), (_, answered) = it.reported
        assert (called["arguments"], answered["result"]) == (None, None)
        assert (called["name"], answered["ok"]) == ("book", True)

    async def test_nor_in_a_turn_that_was_said_then(self, it: Remembering) -> None:
        it.gate.shut("paused")
        masked = Turn(id="turn_2", transcript="Anna", start_ms=900, end_ms=1000)
        it.gate.post("turn", masked.wire())
        it.gate.open("paused")
        await it.book(name="Anna")
        assert "Anna" not in str(it.reported)

    async def test_personal_data_is_removed(self, it: Remembering) -> None:
        it.gate.redactor = Redactor(Finder(["card"], language="en", country=None))
        for value in (CARD, int(CARD), {"deep": [f"it is {CARD}."]}, {CARD: 1}):
            it.reported.clear()
            answer = await it.book(card=value)
            assert CARD in answer  # the model needs it
            told = json.dumps(it.reported)
            assert CARD not in told and "[card]" in told
        it.reported.clear()
        await it.book(parts=["4111", "1111", "1111", "1111"])
        assert it.reported[0][1]["arguments"] is None

    async def test_secret_digits_are_not_in_it(self, it: Remembering, server: Server) -> None:
        assert it.secrets.keep(CARD) == "{{digits_1}}"
        answer = await it.book(card="{{ digits_1 }}", other=int(CARD))
        assert server.asked[0][2]["card"] == CARD
        told = json.dumps(it.reported)
        assert CARD not in told and "digits_1" not in told and "digits_1" in answer
        assert it.reported[0][1]["arguments"] == {"card": SECRET_DIGITS, "other": SECRET_DIGITS}

    async def test_what_is_long_is_left_out(self, it: Remembering, server: Server) -> None:
        await it.book(text="x" * MOST_ARGUMENTS)
        (_, called), (_, answered) = it.reported
        assert (called["arguments"], len(answered["result"]) > MOST_ARGUMENTS) == (None, True)
        it.reported.clear()
        await it.book(text="x" * MOST_RESULT)
        assert it.reported[1][1]["result"] is None


class TestAfterALoss:
    async def test_one_without_an_answer_is_not_run(self, it: Remembering, server: Server) -> None:
        it.begin(recovered(lost_run({"people": 4})))
        for people in (4, 5):  # a model words its arguments anew
            assert await it.book(people=people) == UNKNOWN
        assert (server.asked, it.reported) == ([], [])

    async def test_when_the_caller_asks_for_it_it_has_the_same_key(self, it: Remembering) -> None:
        it.begin(recovered(lost_run({"people": 4})))
        it.replied = True
        for _ in range(2):
            await it.book("call_of_model" if not it.keys else "", people=4)
        first, second = it.keys
        assert first == "call_1:call_lost" != second
        assert it.reported[0][1]["id"] == it.reported[1][1]["id"] == "call_lost"

    async def test_other_arguments_are_another_use(self, it: Remembering) -> None:
        it.begin(recovered(lost_run({"people": 4}), lost_run({"c": SECRET_DIGITS}, id="call_b")))
        it.replied = True
        it.secrets.keep(CARD)
        await it.book(people=5)
        await it.book(c="{{digits_1}}")  # others, as far as anybody knows
        assert not {"call_1:call_lost", "call_1:call_b"} & set(it.keys)

    async def test_one_with_an_answer_gives_it_again(self, it: Remembering, server: Server) -> None:
        it.begin(recovered(lost_run({"people": 4}, answered=True)))
        assert await it.book(people=4) == "booked"
        assert server.asked == []
        assert "5" in await it.book(people=5)  # the model goes on with the next step
        it.replied = True
        assert await it.book(people=4) != "booked"
        assert len(server.asked) == 2

    @pytest.mark.parametrize(
        ("run", "answer"),
        [
            (lost_run(None, answered=True), DONE),
            (lost_run({"people": 4}, answered=True, result=None), DONE),
            (lost_run({"people": 4}, answered=False, result="Error: full"), "Error: full"),
            (lost_run(None), UNKNOWN),
            (lost_run({"people": 4}, turn="turn_held_back"), UNKNOWN),
        ],
    )
    async def test_what_the_model_gets(
        self, it: Remembering, server: Server, run: ToolRun, answer: str
    ) -> None:
        it.begin(recovered(run))
        assert (await it.book(people=4), server.asked) == (answer, [])

    async def test_one_of_an_earlier_turn_may_run_again(
        self, it: Remembering, server: Server
    ) -> None:
        earlier = lost_run({"people": 4}, answered=True, turn="turn_0")
        it.begin(recovered(earlier, lost_run({"people": 4}, name="other", id="call_b")))
        await it.book("call_lost", people=4)
        assert len(server.asked) == 1
        assert it.keys[0].startswith("call_1:tool_")  # not that of the other

    async def test_lost_secret_digits_go_nowhere(self, it: Remembering, server: Server) -> None:
        it.begin(recovered())
        answer = await it.book(card=[SECRET_DIGITS])
        assert "type them again" in answer
        assert server.asked == []

    async def test_keys_are_not_pressed_twice(self, it: Remembering) -> None:
        it.begin(recovered(lost_run({"digits": "1"}, name="send_dtmf")))
        assert await it._box.run("send_dtmf", [], digits="1") == UNKNOWN
        assert it._box.ear.tones == []
