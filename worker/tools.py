"""What the agent can do besides talking: hang up, press keys, call its owner's tools."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from livekit.agents import RunContext, StopResponse, llm
from livekit.agents.llm import RawFunctionTool, function_tool

from core.models import CustomTool
from core.tool_schema import Arguments
from worker import http_tools
from worker.actions import ActionFailed, Actions
from worker.filler import waiting
from worker.http_tools import ToolAnswer

log = logging.getLogger(__name__)

_END_CALL = {
    "name": "end_call",
    "description": (
        "Hang up. Call it when the conversation is over: the caller said goodbye, or has what "
        "they need. Say goodbye in the same reply; it is spoken before the line is cut."
    ),
    "parameters": {"type": "object", "properties": {}},
}
_SEND_DTMF = {
    "name": "send_dtmf",
    "description": "Press keys on the telephone keypad, for example to answer an automatic menu.",
    "parameters": {
        "type": "object",
        "properties": {
            "digits": {"type": "string", "description": "The keys in order: 0-9, *, #, A-D."}
        },
        "required": ["digits"],
    },
}
_SAY_GOODBYE = "The line is cut after your next words. Say a short goodbye."


@dataclass(frozen=True, slots=True)
class ToolBox:
    """What tools act on. ``post`` appends to the call's timeline; ``language`` is the agent's.

    ``http``: a guarded session (core.url_guard).
    """

    call_id: str
    http: aiohttp.ClientSession
    post: Callable[[str, dict[str, Any]], object]
    actions: Actions
    language: str = "en"

    def tools(self, custom: list[CustomTool]) -> list[llm.Tool | llm.Toolset]:
        """The built-in tools and the agent's own; a custom tool may replace a built-in one."""
        found: dict[str, llm.Tool | llm.Toolset] = {
            "end_call": function_tool(self._end_call, raw_schema=_END_CALL),
            "send_dtmf": function_tool(self._send_dtmf, raw_schema=_SEND_DTMF),
        }
        found.update({tool.name: self._custom(tool) for tool in custom})
        return list(found.values())

    async def _end_call(self, raw_arguments: dict[str, Any], context: RunContext[Any]) -> str:
        """Finish speaking, then hang up."""
        speech = context.speech_handle
        said_before = len(speech.chat_items)
        with _timed(self, "end_call") as outcome:
            try:
                context.disallow_interruptions()
            except RuntimeError:
                # The caller began to speak: what they say decides, not this goodbye.
                return "The caller interrupted. Listen to them first."
            outcome.ok = True
        await context.wait_for_playout()
        said = speech.chat_items[said_before:]
        if any(item.type == "message" and item.role == "assistant" for item in said):
            self.actions.hang_up()
            raise StopResponse
        speech.add_done_callback(lambda _: self.actions.hang_up())
        return _SAY_GOODBYE

    async def _send_dtmf(self, raw_arguments: dict[str, Any], context: RunContext[Any]) -> str:
        with _timed(self, "send_dtmf") as outcome:
            try:
                keys = await self.actions.press(str(raw_arguments.get("digits", "")))
            except ActionFailed as error:
                return f"Error: {error}."
            outcome.ok = True
        return f"Pressed {keys}."

    def _custom(self, tool: CustomTool) -> RawFunctionTool[..., Awaitable[str]]:
        checked = Arguments(tool.parameters)

        async def run(raw_arguments: dict[str, Any], context: RunContext[Any]) -> str:
            with _timed(self, tool.name) as outcome:
                try:
                    if faults := checked.faults(raw_arguments):
                        return f"Error: the arguments do not fit the tool: {faults}"
                except ValueError:
                    return "Error: the tool is not set up correctly."
                async with waiting(context, tool, self.language):
                    answer = await http_tools.request(
                        self.http, tool, raw_arguments, call_id=self.call_id
                    )
                outcome.ok = answer.ok
            return answer.text

        return function_tool(
            run,
            raw_schema={
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
            },
        )

    def foreign(
        self, schema: dict[str, Any], call: Callable[[dict[str, Any]], Awaitable[ToolAnswer]]
    ) -> RawFunctionTool[..., Awaitable[str]]:
        """A tool that somebody else has (worker.mcp): ``call`` takes the arguments."""
        name = str(schema["name"])

        async def run(raw_arguments: dict[str, Any], context: RunContext[Any]) -> str:
            with _timed(self, name) as outcome:
                answer = await call(raw_arguments)
                outcome.ok = answer.ok
            return answer.text

        return function_tool(run, raw_schema=schema)


class _timed:
    """Posts ``tool.called`` with the duration; ok only if the body said so and did not raise
    (an interrupted tool is cancelled)."""

    def __init__(self, box: ToolBox, name: str) -> None:
        self._box = box
        self._name = name
        self.ok = False

    def __enter__(self) -> _timed:
        self._started = time.perf_counter()
        return self

    def __exit__(self, *raised: object) -> None:
        duration_ms = round((time.perf_counter() - self._started) * 1000)
        facts = {"name": self._name, "ok": self.ok and raised[0] is None, "durationMs": duration_ms}
        self._box.post("tool.called", facts)


class KeyPresses:
    """Collects digits pressed within ``window_s`` of each other into one turn."""

    def __init__(self, on_digits: Callable[[str], None], window_s: float = 1.5) -> None:
        self._on_digits = on_digits
        self._window_s = window_s
        self._digits = ""
        self._timer: asyncio.TimerHandle | None = None

    def pressed(self, digit: str) -> None:
        self.close()
        self._digits += digit
        self._timer = asyncio.get_running_loop().call_later(self._window_s, self._flush)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flush(self) -> None:
        digits, self._digits = self._digits, ""
        self._on_digits(digits)
