"""OpenAI's ``/v1/chat/completions`` and ``/v1/models``, answered by a script.

Message format: https://platform.openai.com/docs/api-reference/chat. A fault counts a
completion as a request, and a chunk of the stream as a message of its answer.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dev.providers.clock import now, until
from dev.providers.context import CONTEXT, HANG_S, Context, cut, json_error
from dev.providers.control import Fault
from dev.providers.script import Answer, Message, answer


def _plain_text(content: Any) -> Any:
    """Return the text of a content: a string, null, or a list of parts."""
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [part.get("text", "") for part in content if isinstance(part, dict)]
        return " ".join(part for part in parts if isinstance(part, str))
    return content


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Function(_Body):
    name: str


class _Call(_Body):
    id: str
    function: _Function


class _Message(_Body):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[str, BeforeValidator(_plain_text)] = ""
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None


class _Tool(_Body):
    type: str
    function: _Function | None = None


class _StreamOptions(_Body):
    include_usage: bool = False


class Completion(_Body):
    """The fields of a request's body that a script can use."""

    model: str = Field(min_length=1)
    messages: list[_Message] = Field(min_length=1)
    tools: list[_Tool] | None = None
    tool_choice: Any = None
    stream: bool = False
    stream_options: _StreamOptions | None = None

    def conversation(self) -> list[Message]:
        names = {
            call.id: call.function.name
            for message in self.messages
            for call in message.tool_calls or ()
        }
        return [
            Message(message.role, message.content, names.get(message.tool_call_id or ""))
            for message in self.messages
        ]

    def callable_tools(self) -> list[str]:
        if self.tool_choice == "none":
            return []
        return [tool.function.name for tool in self.tools or () if tool.function is not None]


def tokens(text: str) -> list[str]:
    """Return the words, each with the blank before it: close enough to a model's tokens."""
    return re.findall(r"\s*\S+", text)


def error(
    status: int, message: str, kind: str, code: str | None, fault: Fault | None = None
) -> web.Response:
    document = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return json_error(status, document, fault)


def failed(context: Context, model: str) -> web.Response | None:
    """Return the HTTP error of a fault for this model, if there is one."""
    fault = context.take_fault("openai", before_answer=True, model=model)
    if fault is None:
        return None
    limited = fault.kind == "rate_limit"
    kind, code = ("requests", "rate_limit_exceeded") if limited else ("server_error", None)
    return error(fault.http_status, "The request failed.", kind, code, fault)


def refusal(request: web.Request, context: Context) -> web.Response | None:
    """Return the error for a request with a wrong key, else None."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and context.authorized("openai", key.strip()):
        return None
    context.record.add("openai", "refused", status=401, path=request.path)
    message = "Incorrect API key provided."
    return error(401, message, "invalid_request_error", "invalid_api_key")


async def models(request: web.Request) -> web.StreamResponse:
    context = request.app[CONTEXT]
    refused = refusal(request, context)
    if refused is not None:
        return refused
    data = [
        {"id": name, "object": "model", "created": 0, "owned_by": "switchroom"}
        for name in context.control.openai.scripts
    ]
    return web.json_response({"object": "list", "data": data})


async def chat_completions(request: web.Request) -> web.StreamResponse:
    arrived = now()
    context = request.app[CONTEXT]
    refused = refusal(request, context)
    if refused is not None:
        return refused
    try:
        body = Completion.model_validate_json(await request.read())
    except ValidationError as wrong:
        first = wrong.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"Invalid request: {where}: {first['msg']}"
        return error(400, message, "invalid_request_error", None)
    if (failure := failed(context, body.model)) is not None:
        return failure

    script = context.control.openai.script(body.model)
    answered = answer(script, body.conversation(), body.callable_tools())
    context.record.add(
        "openai",
        "request",
        model=body.model,
        messages=len(body.messages),
        heard=body.messages[-1].content,
        role=body.messages[-1].role,
        rule=answered.rule,
        reply=answered.text,
        tool=answered.tool_name,
    )
    fault = context.take_fault("openai", before_answer=False, model=body.model)
    reply = _Reply(context, request, body, answered, arrived, fault)
    return await (reply.stream() if body.stream else reply.whole())


class _Reply:
    """One answer, sent as a stream of chunks or as a whole."""

    def __init__(
        self,
        context: Context,
        request: web.Request,
        body: Completion,
        answered: Answer,
        arrived: float,
        fault: Fault | None,
    ) -> None:
        self._context = context
        self._request = request
        self._body = body
        self._answer = answered
        self._arrived = arrived
        self._fault = fault
        self._id = f"chatcmpl-{context.new_id()}"
        self._call_id = f"call_{context.new_id().replace('-', '')[:24]}"
        self._created = int(time.time())

    def _first_due(self) -> float:
        delay_ms = self._context.control.openai.first_token_ms + self._answer.delay_ms
        return self._arrived + delay_ms / 1000

    async def whole(self) -> web.StreamResponse:
        settings = self._context.control.openai
        due = self._first_due()
        due += (self._usage()["completion_tokens"] - 1) * settings.token_ms / 1000
        late_ms = await until(due)
        self._context.record.add("openai", "answer", model=self._body.model, late_ms=late_ms)
        if self._fault is not None:
            if self._fault.kind == "hang":
                await asyncio.sleep(HANG_S)
            if self._fault.kind == "malformed":
                return web.Response(text='{"id":', content_type="application/json")
            cut(self._request)
        message: dict[str, Any] = {"role": "assistant", "content": self._answer.text or None}
        if self._answer.tool_name:
            function = {"name": self._answer.tool_name, "arguments": self._answer.arguments}
            message["tool_calls"] = [
                {"id": self._call_id, "type": "function", "function": function}
            ]
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason()}
        return web.json_response(
            {
                "id": self._id,
                "object": "chat.completion",
                "created": self._created,
                "model": self._body.model,
                "choices": [choice],
                "usage": self._usage(),
            }
        )

    async def stream(self) -> web.StreamResponse:
        if self._fault is not None and self._fault.kind == "hang" and self._fault.after == 0:
            await asyncio.sleep(HANG_S)
        settings = self._context.control.openai
        first = self._first_due()
        first_late_ms = await until(first)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "x-request-id": self._id}
        )
        await response.prepare(self._request)
        worst_late_ms = first_late_ms
        for number, (chunk, token) in enumerate(self._chunks()):
            if await self._strike(number, response):
                return response
            late_ms = await until(first + token * settings.token_ms / 1000)
            worst_late_ms = max(worst_late_ms, late_ms)
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        self._context.record.add(
            "openai",
            "answer",
            model=self._body.model,
            first_token_late_ms=first_late_ms,
            late_ms=worst_late_ms,
        )
        return response

    async def _strike(self, number: int, response: web.StreamResponse) -> bool:
        """Apply the fault if its chunk has come; return True if it ends the answer."""
        if self._fault is None or number != self._fault.after:
            return False
        if self._fault.kind == "hang":
            await asyncio.sleep(HANG_S)
        if self._fault.kind == "drop":
            cut(self._request)
            return True
        await response.write(b'data: {"id": "chatcmpl-\n\n')
        return False

    def _chunks(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield each chunk and the index of the token that determines its time."""
        said = tokens(self._answer.text)
        yield self._delta({"role": "assistant", "content": ""}), 0
        for index, token in enumerate(said):
            yield self._delta({"content": token}), index
        last = len(said)
        if self._answer.tool_name:
            function = {"name": self._answer.tool_name, "arguments": ""}
            start = {"index": 0, "id": self._call_id, "type": "function", "function": function}
            yield self._delta({"tool_calls": [start]}), last
            for piece in tokens(self._answer.arguments):
                part = {"index": 0, "function": {"arguments": piece}}
                yield self._delta({"tool_calls": [part]}), last
                last += 1
        last = max(0, last - 1)
        yield self._delta({}, self._finish_reason()), last
        options = self._body.stream_options
        if options is not None and options.include_usage:
            yield {**self._head(), "choices": [], "usage": self._usage()}, last

    def _delta(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head(), "choices": [choice]}

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._body.model,
        }

    def _finish_reason(self) -> str:
        return "tool_calls" if self._answer.tool_name else "stop"

    def _usage(self) -> dict[str, int]:
        prompt = sum(len(tokens(message.content)) for message in self._body.messages)
        completion = len(tokens(self._answer.text)) + len(tokens(self._answer.arguments))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
