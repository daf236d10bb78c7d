"""The agent's tools, against a real HTTP server and a far end that records keys."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from livekit.agents import StopResponse

from core.models import CustomTool, new_id
from core.url_guard import guarded_session
from tests.worker.privacy.masked import Masked
from tests.worker.tools.tool_server import Server
from tests.worker.tools.tool_server import server as server
from worker.line import LineError, NotSupported
from worker.privacy.secrets import Secrets
from worker.tools.actions import ActionFailed, Actions, no_transfer
from worker.tools.box import ToolBox
from worker.tools.digits import Keypad
from worker.tools.filler import words
from worker.tools.http import ToolAnswer
from worker.tools.runs import Runs

pytestmark = pytest.mark.unit


class Tones:
    """A far end that records the keys it gets, or fails."""

    def __init__(self) -> None:
        self.tones: list[str] = []
        self.fails: Exception | None = None

    async def play(self, key: str) -> None:
        if self.fails is not None:
            raise self.fails
        self.tones.append(key)


async def test_keys_are_played_one_by_one(box: Box) -> None:
    assert await box.box.actions.press(" 09*#aD") == "09*#AD"
    assert box.ear.tones == list("09*#AD")
    assert box.events == [("dtmf.sent", {"digits": "09*#AD"})]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NotSupported("playing keys"), "playing keys is not supported on this kind of call"),
        (LineError("the keys could not be played"), "the keys could not be played"),
        (TimeoutError(), "the keys were not played in time"),
    ],
)
async def test_a_line_that_plays_no_keys(error: Exception, words: str, box: Box) -> None:
    box.ear.fails = error
    with pytest.raises(ActionFailed, match=words):
        await box.box.actions.press("1")
    assert box.events == []


def context(call_id: str = "") -> Any:
    """Return the part of a tool's context that every tool needs."""
    return SimpleNamespace(function_call=SimpleNamespace(call_id=call_id or new_id("call")))


class Box:
    """A tool box, and a record of what its tools did."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.ear = Tones()
        self.masked = Masked()
        self.hung_up = 0
        self.turns: list[str] = []
        self.steps: list[str] = []
        self.transfer_fails = ""
        secrets = Secrets()
        self.box = ToolBox(
            runs=Runs("call_1", secrets),
            secrets=secrets,
            http=http,
            post=self._post,
            actions=Actions(
                tone=self.ear.play,
                post=self._post,
                hang_up=self._hang_up,
                transfer=self._transfer,
                recording=self.masked.control,
                tone_gap_s=0,
            ),
            keypad=Keypad(self.turns.append),
        )

    def _post(self, type: str, data: dict[str, Any]) -> None:
        self.events.append((type, data))

    async def _transfer(self) -> None:
        if self.transfer_fails:
            raise ActionFailed(self.transfer_fails)
        self.steps.append("transferred")

    def _hang_up(self) -> None:
        self.hung_up += 1

    async def run(self, name: str, custom: list[CustomTool], **arguments: Any) -> str:
        (tool,) = [
            tool
            for tool in self.box.tools(custom)
            if getattr(tool, "info", None) is not None and cast(Any, tool).info.name == name
        ]
        return str(await cast(Any, tool)(raw_arguments=arguments, context=context()))


@pytest.fixture
async def box() -> AsyncIterator[Box]:
    async with guarded_session(allow_private=True) as http:
        yield Box(http)


async def test_send_dtmf(box: Box) -> None:
    assert await box.run("send_dtmf", [], digits="1 #") == "Pressed 1#."
    assert box.ear.tones == ["1", "#"]
    assert box.events[0] == ("dtmf.sent", {"digits": "1#"})
    assert box.events[-1][1]["ok"] is True


async def test_send_dtmf_refuses_what_no_keypad_has(box: Box) -> None:
    assert (await box.run("send_dtmf", [], digits="1x")).startswith("Error")
    assert box.ear.tones == []
    assert [(type, data["ok"]) for type, data in box.events] == [("tool.called", False)]


class Said:
    """The part of a tool's context that a tool needs to let the agent finish speaking."""

    def __init__(self, box: Box, *, interrupted: bool = False, speaking: bool = False) -> None:
        self._box = box
        self._interrupted = interrupted
        self.function_call = context().function_call
        self.session = SimpleNamespace(user_state="speaking" if speaking else "listening")

    def disallow_interruptions(self) -> None:
        if self._interrupted:
            raise RuntimeError("interrupted")

    async def wait_for_playout(self) -> None:
        self._box.steps.append("spoken")


async def hand_over(box: Box, **options: bool) -> str:
    (tool,) = [
        cast(Any, tool)
        for tool in box.box.tools([], transfer=True)
        if cast(Any, tool).info.name == "transfer_call"
    ]
    return str(await tool(raw_arguments={}, context=Said(box, **options)))


async def test_a_transfer_comes_after_what_is_said(box: Box) -> None:
    with pytest.raises(StopResponse):
        await hand_over(box)
    assert box.steps == ["spoken", "transferred"]
    assert [(type, data["ok"]) for type, data in box.events] == [("tool.called", True)]


async def test_a_transfer_that_fails_is_for_the_agent_to_tell(box: Box) -> None:
    box.transfer_fails = "the line is busy"
    assert (await hand_over(box)).startswith("Error: the line is busy.")
    assert [(type, data["ok"]) for type, data in box.events] == [("tool.called", False)]


async def test_who_interrupts_is_not_handed_over(box: Box) -> None:
    assert "interrupted" in await hand_over(box, interrupted=True)
    # The caller's speech may yet be an interruption: the agent's voice is only paused so far.
    assert "interrupted" in await hand_over(box, speaking=True)
    assert box.steps == []


async def test_nobody_to_hand_over_to(box: Box) -> None:
    names = {cast(Any, tool).info.name for tool in box.box.tools([])}
    assert "transfer_call" not in names
    with pytest.raises(ActionFailed):
        await no_transfer()


async def test_a_custom_tool_is_on_the_timeline(box: Box, server: Server) -> None:
    lookup = CustomTool(name="lookup", description="Looks up.", url=server.url + "/ok")
    broken = CustomTool(name="broken", description="Breaks.", url=server.url + "/error")
    assert json.loads(await box.run("lookup", [lookup, broken], day="Friday")) == {"free": True}
    assert (await box.run("broken", [lookup, broken])).startswith("Error")
    assert [(type, data["name"], data["ok"]) for type, data in box.events] == [
        ("tool.called", "lookup", True),
        ("tool.called", "broken", False),
    ]
    assert all(data["durationMs"] >= 0 for _, data in box.events)


PEOPLE = {
    "type": "object",
    "properties": {"people": {"type": "integer", "minimum": 1}, "note": {"$ref": "#/$defs/note"}},
    "required": ["people"],
    "$defs": {"note": {"type": "string", "maxLength": 10}},
}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "'people' is a required property"),
        ({"people": "four"}, "people: 'four' is not of type 'integer'"),
        ({"people": 0}, "people: 0 is less than the minimum of 1"),
        ({"people": 1, "note": "x" * 1000}, "note: 'xxx"),
    ],
)
async def test_arguments_that_do_not_fit_are_told_to_the_model(
    box: Box, server: Server, arguments: dict[str, Any], told: str
) -> None:
    tool = CustomTool(
        name="lookup", description="Looks up.", url=f"{server.url}/ok", parameters=PEOPLE
    )
    answer = await box.run("lookup", [tool], **arguments)
    assert answer.startswith("Error: the arguments do not fit the tool: ")
    assert told in answer and len(answer) < 400
    assert server.asked == []
    assert [data["ok"] for _, data in box.events] == [False]
    assert json.loads(await box.run("lookup", [tool], people=4, note="x")) == {"free": True}


async def test_a_schema_from_before_they_were_checked_costs_the_tool_only(
    box: Box, server: Server
) -> None:
    for schema in ({"required": 7}, {"properties": {"a": {"$ref": f"{server.url}/ok"}}}):
        tool = CustomTool(
            name="lookup", description="Looks up.", url=f"{server.url}/ok", parameters=schema
        )
        assert await box.run("lookup", [tool], a=1) == "Error: the tool is not set up correctly."
    assert server.asked == []


async def test_a_schema_that_models_refuse_is_kept_from_them(box: Box, server: Server) -> None:
    """A tool stored before such schemas were refused still has its arguments checked."""
    schema = {**PEOPLE, "anyOf": [{"required": ["note"]}, {"required": ["name"]}]}
    tool = CustomTool(
        name="lookup", description="Looks up.", url=f"{server.url}/ok", parameters=schema
    )
    found = {cast(Any, each).info.name: each for each in box.box.tools([tool])}
    told = cast(Any, found["lookup"]).info.raw_schema["parameters"]
    assert told == {**PEOPLE, "type": "object"}
    answer = await box.run("lookup", [tool], people=1)
    assert answer.startswith("Error: the arguments do not fit the tool")
    assert server.asked == []


@pytest.mark.parametrize(
    ("changes", "language", "said"),
    [
        ({}, "en", None),
        ({"execution_message": "Wait."}, "en", None),
        ({"speak_during_execution": True}, "en-US", "One moment, please."),
        ({"speak_during_execution": True}, "de", "Einen Moment, bitte."),
        ({"speak_during_execution": True}, "ja", None),
        ({"speak_during_execution": True, "execution_message": "Wait."}, "ja", "Wait."),
    ],
)
def test_what_is_said_meanwhile(changes: dict[str, Any], language: str, said: str | None) -> None:
    tool = CustomTool(name="a", description="", url="https://example.com", **changes)
    assert words(tool, language) == said


async def test_an_interrupted_tool_did_not_succeed(box: Box, server: Server) -> None:
    slow = CustomTool(name="slow", description="Is slow.", url=server.url + "/hang")
    running = asyncio.create_task(box.run("slow", [slow]))
    await server.was_asked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [data["ok"] for _, data in box.events] == [False]


async def test_a_message_is_left_only_where_there_is_one(box: Box) -> None:
    def names(tools: ToolBox) -> set[str]:
        return {cast(Any, tool).info.name for tool in tools.tools([])}

    assert names(box.box) == {"end_call", "send_dtmf", "collect_digits"}
    left: list[str] = []
    box.box = replace(box.box, leave_voicemail=lambda: left.append("message"))
    assert names(box.box) == {"end_call", "send_dtmf", "collect_digits", "leave_voicemail"}
    with pytest.raises(StopResponse):  # the model must not answer it
        await box.run("leave_voicemail", [])
    assert left == ["message"]
    assert [data["ok"] for _, data in box.events] == [True]


async def test_collect_digits_tells_what_is_wrong(box: Box) -> None:
    it = context()
    it.wait_for_playout = None
    tool = box.box._collect_digits({"digits": 0}, it)
    assert (await tool).startswith("Error: digits")
    assert [data["ok"] for _, data in box.events] == [False]


CARD = "4111111111111111"
PAY: dict[str, Any] = {
    "type": "object",
    "properties": {"card": {"type": "string", "pattern": "^[0-9]{16}$"}},
}


@pytest.fixture
def paying(box: Box, server: Server) -> CustomTool:
    """A tool that takes a card's number, of which the caller has typed one in secret."""
    box.box.secrets.keep(CARD)
    url = f"{server.url}/echo"
    return CustomTool(name="pay", description="Pays.", url=url, parameters=PAY)


async def test_only_the_tools_request_has_the_secret_digits(
    box: Box, server: Server, paying: CustomTool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = await box.run("pay", [paying], card="{{digits_1}}", more={"deep": ["{{digits_1}}"]})
    ((_, _, body, _),) = server.asked
    assert body == {"card": CARD, "more": {"deep": [CARD]}}
    assert json.loads(answer)["got"] == {"card": "{{digits_1}}", "more": {"deep": ["{{digits_1}}"]}}
    assert CARD not in f"{answer} {box.events} {caplog.text}"


async def test_a_get_has_them_in_its_query(box: Box, server: Server, paying: CustomTool) -> None:
    tool = paying.model_copy(update={"method": "GET"})
    answer = await box.run("pay", [tool], card="{{digits_1}}")
    ((_, query, _, _),) = server.asked
    assert (query, CARD in answer) == ({"card": CARD}, False)


async def test_digits_that_do_not_fit_are_not_shown(
    box: Box, server: Server, paying: CustomTool
) -> None:
    box.box.secrets.keep("4711")
    answer = await box.run("pay", [paying], card="{{digits_2}}")
    assert answer.startswith("Error: the arguments do not fit the tool")
    assert ("4711" in answer, server.asked) == (False, [])


async def test_a_third_partys_tool_gets_no_secret_digits(box: Box) -> None:
    box.box.secrets.keep(CARD)
    called: list[dict[str, Any]] = []

    async def call(arguments: dict[str, Any], key: str) -> ToolAnswer:
        called.append(arguments)
        return ToolAnswer(True, "Done.")

    tool = cast(Any, box.box.foreign({"name": "pay", "parameters": PAY}, call))
    answer = await tool(raw_arguments={"a": [{"b": "{{digits_1}}"}]}, context=context())
    assert answer == "Error: this tool belongs to a third party, which gets no secret digits."
    assert await tool(raw_arguments={"a": "{{name}}"}, context=context()) == "Done."
    assert called == [{"a": "{{name}}"}]


async def test_the_recording_is_paused_and_resumed_where_there_is_one(box: Box) -> None:
    names = {cast(Any, tool).info.name for tool in box.box.tools([])}
    assert not {"pause_recording", "resume_recording"} & names
    box.box = replace(box.box, recorded=True)
    assert await box.run("pause_recording", []) == "The recording is paused."
    assert not box.masked.gate.is_open
    assert await box.run("resume_recording", []) == "The recording goes on."
    assert box.masked.gate.is_open
    assert box.masked.types == ["paused", "resumed"]
    assert [data["by"] for _, data in box.masked.events] == ["agent", "agent"]
