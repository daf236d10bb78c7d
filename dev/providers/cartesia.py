"""Cartesia's ``/tts/websocket`` and ``/tts/bytes``, with espeak-ng's voice.

Message format: https://docs.cartesia.ai/api-reference/tts/websocket. A fault counts a
context (or a POST) as a request, and a piece of audio as a message of its answer. A fault
with an HTTP status applies to the next connection, or as an ``error`` message to the next
new context.
"""

from __future__ import annotations

import asyncio
from typing import Literal

import aiohttp
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dev.providers.clock import now, until
from dev.providers.context import CONTEXT, HANG_S, Context, cut, json_error
from dev.providers.control import Fault
from dev.providers.speaking import Format, Speaking, encode
from dev.speech import Speech, Voice
from dev.speech.espeak import SpeechError


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Voice(_Body):
    mode: str = "id"
    id: str = ""


class _OutputFormat(_Body):
    container: Literal["raw"]
    encoding: Literal["pcm_s16le", "pcm_f32le", "pcm_mulaw", "pcm_alaw"]
    sample_rate: int = Field(ge=8000, le=48000)


class _GenerationConfig(_Body):
    speed: float = Field(1.0, ge=0.6, le=1.5)


class Generation(_Body):
    """A request to speak; on the WebSocket also to cancel or flush a context."""

    model_id: str = Field(min_length=1)
    transcript: str
    voice: _Voice
    output_format: _OutputFormat
    language: str | None = None
    context_id: str = ""
    continue_: bool = Field(False, alias="continue")
    flush: bool = False
    add_timestamps: bool = False
    generation_config: _GenerationConfig = _GenerationConfig()

    def espeak_voice(self, context: Context) -> Voice:
        return context.control.cartesia.voice(self.voice.id, self.generation_config.speed)

    def format(self) -> Format:
        return Format(self.output_format.encoding, self.output_format.sample_rate)


class _Cancel(_Body):
    context_id: str
    cancel: Literal[True]


def _refusal(request: web.Request, context: Context) -> web.Response | None:
    key = request.headers.get("X-API-Key") or request.query.get("api_key", "")
    if not context.authorized("cartesia", key):
        context.record.add("cartesia", "refused", status=401, path=request.path)
        return json_error(401, {"title": "Unauthorized", "message": "Invalid API key"})
    if not (request.query.get("cartesia_version") or request.headers.get("Cartesia-Version")):
        return json_error(400, {"title": "Bad Request", "message": "cartesia_version is missing"})
    fault = context.take_fault("cartesia", before_answer=True)
    if fault is not None:
        return json_error(fault.http_status, {"title": "Error", "message": "It failed."}, fault)
    return None


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


async def tts_bytes(request: web.Request) -> web.StreamResponse:
    arrived = now()
    context = request.app[CONTEXT]
    refusal = _refusal(request, context)
    if refusal is not None:
        return refusal
    try:
        body = Generation.model_validate_json(await request.read())
        speech = await _speak(context, body)
    except ValidationError as error:
        return json_error(400, {"title": "Bad Request", "message": _reason(error)})
    except SpeechError as error:
        return json_error(400, {"title": "Voice not found", "message": str(error)})
    fault = context.take_fault("cartesia", before_answer=False, model=body.model_id)
    settings = context.control.cartesia
    first = arrived + settings.first_byte_ms / 1000
    late_ms = await until(first)
    context.record.add("cartesia", "bytes", text=body.transcript, late_ms=late_ms)
    if fault is not None and fault.kind == "hang" and fault.after == 0:
        await asyncio.sleep(HANG_S)
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    await response.prepare(request)
    samples = max(1, int(speech.sample_rate * settings.chunk_ms / 1000))
    for number, start in enumerate(range(0, len(speech.pcm), samples)):
        if fault is not None and number == fault.after:
            if fault.kind == "hang":
                await asyncio.sleep(HANG_S)
            cut(request)  # for a byte stream, malformed means cut off
            return response
        if settings.speed:
            await until(first + start / speech.sample_rate / settings.speed)
        await response.write(encode(speech.pcm[start : start + samples], body.format()))
    await response.write_eof()
    return response


async def _speak(context: Context, body: Generation) -> Speech:
    voice = body.espeak_voice(context)
    return await context.speak(body.transcript, voice, body.output_format.sample_rate)


async def tts_websocket(request: web.Request) -> web.StreamResponse:
    context = request.app[CONTEXT]
    refusal = _refusal(request, context)
    if refusal is not None:
        return refusal
    socket = web.WebSocketResponse(max_msg_size=1 << 20)
    socket.headers["X-Request-Id"] = context.new_id()
    await socket.prepare(request)
    context.sockets.add(socket)
    context.record.add("cartesia", "open")
    try:
        async with asyncio.TaskGroup() as tasks:
            connection = _Connection(context, request, socket, tasks)
            try:
                async for message in socket:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        await connection.receive(message.data, now())
            finally:
                connection.stop()
    except* ConnectionError:
        context.record.add("cartesia", "lost")
    finally:
        context.sockets.discard(socket)
        context.record.add("cartesia", "closed", code=socket.close_code)
    return socket


class _Connection:
    """One socket. Its contexts speak concurrently, each in the order of its texts."""

    def __init__(
        self,
        context: Context,
        request: web.Request,
        socket: web.WebSocketResponse,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._context = context
        self._request = request
        self._socket = socket
        self._tasks = tasks
        self._speaking: dict[str, Speaking] = {}

    async def receive(self, text: str, arrived: float) -> None:
        try:
            cancel = _Cancel.model_validate_json(text)
        except ValidationError:
            pass
        else:
            speaking = self._speaking.pop(cancel.context_id, None)
            if speaking is not None:
                speaking.cancel()
            return
        try:
            body = Generation.model_validate_json(text)
        except ValidationError as error:
            await self._fail("", 400, _reason(error))
            return
        speaking = self._speaking.get(body.context_id)
        if speaking is None:
            fault = self._context.take_fault("cartesia", before_answer=True, model=body.model_id)
            if fault is not None:
                await self._fail(body.context_id, fault.http_status, "The generation failed.")
                return
            speaking = self._open(body)
        speaking.say(
            body.transcript,
            body.espeak_voice(self._context),
            arrived,
            last=not body.continue_,
            flush=body.flush,
        )

    def stop(self) -> None:
        for speaking in self._speaking.values():
            speaking.cancel()

    def _open(self, body: Generation) -> Speaking:
        fault: Fault | None = self._context.take_fault(
            "cartesia", before_answer=False, model=body.model_id
        )
        self._context.record.add(
            "cartesia",
            "context",
            context_id=body.context_id,
            model=body.model_id,
            voice=body.voice.id,
            language=body.language,
            speed=body.generation_config.speed,
        )
        speaking = Speaking(
            self._context,
            self._request,
            self._socket,
            body.context_id,
            body.format(),
            timestamps=body.add_timestamps,
            fault=fault,
        )
        self._speaking[body.context_id] = speaking
        speaking.start(self._tasks, lambda: self._speaking.pop(body.context_id, None))
        return speaking

    async def _fail(self, context_id: str, status: int, reason: str) -> None:
        await self._socket.send_json(
            {
                "type": "error",
                "context_id": context_id or None,
                "status_code": status,
                "done": True,
                "title": "Error",
                "error": reason,
            }
        )
