"""Builds an agent's tools: the built-in ones and those of its owner."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from livekit.agents import RunContext, StopResponse, llm
from livekit.agents.llm import RawFunctionTool, function_tool

from core.models import CustomTool
from core.tools.schema import Arguments, for_models
from worker.machines.voicemail import LEAVE_VOICEMAIL
from worker.privacy.secrets import Secrets
from worker.tools import digits
from worker.tools import http as http_tools
from worker.tools.actions import ActionFailed, Actions
from worker.tools.digits import COLLECT_DIGITS, Keypad
from worker.tools.filler import waiting
from worker.tools.http import ToolAnswer
from worker.tools.runs import Run, Runs

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
_TRANSFER_CALL = {
    "name": "transfer_call",
    "description": (
        "Hand the caller over to a human. Call it when they ask for one, or need one. Say in the "
        "same reply that you are connecting them; it is spoken first."
    ),
    "parameters": {"type": "object", "properties": {}},
}
_NOTHING: dict[str, Any] = {"type": "object", "properties": {}}
_PAUSE_RECORDING = {
    "name": "pause_recording",
    "description": (
        "Stop recording the call. Call it when the caller asks for it, or before they say "
        "something that must not be recorded."
    ),
    "parameters": _NOTHING,
}
_RESUME_RECORDING = {
    "name": "resume_recording",
    "description": "Record the call again after pause_recording.",
    "parameters": _NOTHING,
}
_LISTEN_FIRST = "The caller interrupted. Listen to them first."
_NOT_FOR_OTHERS = "Error: this tool belongs to a third party, which gets no secret digits."
_SAY_GOODBYE = "The line is cut after your next words. Say a short goodbye."


@dataclass(frozen=True, slots=True)
class ToolBox:
    """The tools of one call.

    ``runs`` numbers them, and knows those that an earlier agent of the call ran. ``http`` is a
    guarded session (core.url_guard). ``post`` appends to the call's timeline. ``language`` is the
    agent's. ``leave_voicemail`` is None if there is no message to leave. ``recorded``: the call is
    recorded. ``secrets`` are the digits typed in secret.
    """

    runs: Runs
    http: aiohttp.ClientSession
    post: Callable[[str, dict[str, Any]], object]
    actions: Actions
    keypad: Keypad
    language: str = "en"
    leave_voicemail: Callable[[], None] | None = None
    recorded: bool = False
    secrets: Secrets = field(default_factory=Secrets)

    def tools(
        self, custom: list[CustomTool], *, transfer: bool = False
    ) -> list[llm.Tool | llm.Toolset]:
        """Return the built-in tools and the agent's own, which may replace built-in ones.

        ``transfer``: the agent has a transfer number.
        """
        found: dict[str, llm.Tool | llm.Toolset] = {
            "end_call": function_tool(self._end_call, raw_schema=_END_CALL),
            "send_dtmf": function_tool(self._send_dtmf, raw_schema=_SEND_DTMF),
            "collect_digits": function_tool(self._collect_digits, raw_schema=COLLECT_DIGITS),
        }
        if self.leave_voicemail is not None:
            found["leave_voicemail"] = function_tool(
                self._leave_voicemail, raw_schema=LEAVE_VOICEMAIL
            )
        if self.recorded:
            for schema, does in (
                (_PAUSE_RECORDING, self._pause_recording),
                (_RESUME_RECORDING, self._resume_recording),
            ):
                found[str(schema["name"])] = function_tool(does, raw_schema=schema)
        if transfer:
            found["transfer_call"] = function_tool(self._transfer_call, raw_schema=_TRANSFER_CALL)
        found.update({tool.name: self._custom(tool) for tool in custom})
        return list(found.values())

    async def _end_call(self, raw_arguments: dict[str, Any], context: RunContext[Any]) -> str:
        """Finish speaking, then hang up."""
        speech = context.speech_handle
        said_before = len(speech.chat_items)
        # Its outcome is the call's end: an agent that takes over must hang up itself.
        async with self._running("end_call", raw_arguments, context) as run:
            if not _has_the_word(context):
                return run.failed(_LISTEN_FIRST)
            run.ok = True
        await context.wait_for_playout()
        said = speech.chat_items[said_before:]
        if any(item.type == "message" and item.role == "assistant" for item in said):
            self.actions.hang_up()
            raise StopResponse
        speech.add_done_callback(lambda _: self.actions.hang_up())
        return _SAY_GOODBYE

    async def _send_dtmf(self, raw_arguments: dict[str, Any], context: RunContext[Any]) -> str:
        if (known := self.runs.instead("send_dtmf", raw_arguments)) is not None:
            return known
        async with self._running("send_dtmf", raw_arguments, context) as run:
            try:
                keys = await self.actions.press(str(raw_arguments.get("digits", "")))
            except ActionFailed as error:
                return run.failed(f"Error: {error}.")
            return run.done(f"Pressed {keys}.")

    async def _collect_digits(self, raw_arguments: dict[str, Any], context: RunContext[Any]) -> str:
        async with self._running("collect_digits", raw_arguments, context) as run:
            try:
                typed = await digits.collect(
                    self.keypad,
                    raw_arguments,
                    asked=context.wait_for_playout,
                    secretly=self.actions.recording.secretly,
                    secrets=self.secrets,
                )
            except ActionFailed as error:
                return run.failed(f"Error: {error}.")
            return run.done(typed)

    async def _pause_recording(
        self, raw_arguments: dict[str, Any], context: RunContext[Any]
    ) -> str:
        with _timed(self, "pause_recording") as outcome:
            self.actions.recording.pause("agent")
            outcome.ok = True
        return "The recording is paused."

    async def _resume_recording(
        self, raw_arguments: dict[str, Any], context: RunContext[Any]
    ) -> str:
        with _timed(self, "resume_recording") as outcome:
            self.actions.recording.resume("agent")
            outcome.ok = True
        return "The recording goes on."

    async def _leave_voicemail(
        self, raw_arguments: dict[str, Any], context: RunContext[Any]
    ) -> None:
        """Let the voicemail policy leave the message. The agent says nothing more."""
        assert self.leave_voicemail is not None
        with _timed(self, "leave_voicemail") as outcome:
            self.leave_voicemail()
            outcome.ok = True
        raise StopResponse

    async def _transfer_call(self, raw_arguments: dict[str, Any], context: RunContext[Any]) -> str:
        """Finish speaking, then transfer the caller. The agent explains a failure."""
        with _timed(self, "transfer_call") as outcome:
            if not _has_the_word(context):
                return _LISTEN_FIRST
            await context.wait_for_playout()
            try:
                await self.actions.transfer()
            except ActionFailed as error:
                return f"Error: {error}. The caller is back with you and has heard none of it."
            outcome.ok = True
        raise StopResponse

    def _custom(self, tool: CustomTool) -> RawFunctionTool[..., Awaitable[str]]:
        checked = Arguments(tool.parameters)
        try:
            # A schema stored before schemas were checked must not break the LLM's requests.
            parameters = for_models(tool.parameters)
        except ValueError:
            parameters = {"type": "object", "properties": {}}

        async def run(raw_arguments: dict[str, Any], context: RunContext[Any]) -> str:
            if (known := self.runs.instead(tool.name, raw_arguments)) is not None:
                return known
            async with self._running(tool.name, raw_arguments, context) as run:
                try:
                    if faults := checked.faults(self.secrets.reveal(raw_arguments)):
                        faults = self.secrets.scrub(faults)
                        return run.failed(f"Error: the arguments do not fit the tool: {faults}")
                except ValueError:
                    return run.failed("Error: the tool is not set up correctly.")
                async with waiting(context, tool, self.language):
                    answer = await http_tools.request(
                        self.http,
                        tool,
                        raw_arguments,
                        call_id=self.runs.call_id,
                        key=run.key,
                        secrets=self.secrets,
                    )
                return run.answered(answer)

        return function_tool(
            run,
            raw_schema={
                "name": tool.name,
                "description": tool.description,
                "parameters": parameters,
            },
        )

    def foreign(
        self, schema: dict[str, Any], call: Callable[[dict[str, Any], str], Awaitable[ToolAnswer]]
    ) -> RawFunctionTool[..., Awaitable[str]]:
        """Return a third party's tool (worker.tools.mcp). ``call`` takes the arguments, and the key
        of their use (worker.tools.runs)."""
        name = str(schema["name"])

        async def run(raw_arguments: dict[str, Any], context: RunContext[Any]) -> str:
            if (known := self.runs.instead(name, raw_arguments)) is not None:
                return known
            async with self._running(name, raw_arguments, context) as run:
                if self.secrets.mentioned(raw_arguments):
                    return run.failed(_NOT_FOR_OTHERS)
                return run.answered(await call(raw_arguments, run.key))

        return function_tool(run, raw_schema=schema)

    @asynccontextmanager
    async def _running(
        self, name: str, arguments: dict[str, Any], context: RunContext[Any]
    ) -> AsyncIterator[Run]:
        """Run a tool within the block, known to the agent that would take over the call.

        If the block raises, its outcome is not known. Raises StopResponse if it must not run.
        """
        run = await self.runs.begin(name, arguments, context.function_call.call_id)
        with _timed(self, name) as outcome:
            yield run
            outcome.ok = run.ok
        self.runs.end(run)


def _has_the_word(context: RunContext[Any]) -> bool:
    """Make the agent's speech uninterruptible. Return False if the caller speaks or has
    interrupted, so that the agent answers them first."""
    if context.session.user_state == "speaking":
        return False
    try:
        context.disallow_interruptions()
    except RuntimeError:
        return False
    return True


class _timed:
    """Posts ``tool.called`` with the duration. ``ok`` is true only if the body set it and did not
    raise; an interrupted tool is cancelled."""

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
