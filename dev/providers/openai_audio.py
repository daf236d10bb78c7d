"""OpenAI's ``/v1/audio/speech`` and ``/v1/audio/transcriptions``: whole texts, whole utterances.

Message format: https://platform.openai.com/docs/api-reference/audio. Recognition and synthesis
are those of the other servers here. The only formats of the answers are ``pcm`` (24 kHz) and
``json``. A fault counts a POST as a request.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import wave

import numpy as np
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.audio import Pcm
from dev.providers.context import CONTEXT, HANG_S, Context, cut
from dev.providers.openai import error, failed, refusal
from dev.providers.speaking import Format, encode

_RATE = 24_000
_CHUNK = _RATE // 10


class Speech(BaseModel):
    model_config = ConfigDict(extra="ignore")

    model: str = Field(min_length=1)
    input: str = Field(min_length=1, max_length=4096)
    voice: str = Field(min_length=1)
    response_format: str = "mp3"
    speed: float = Field(1.0, ge=0.25, le=4.0)
    stream_format: str = "audio"


async def speech(request: web.Request) -> web.StreamResponse:
    context = request.app[CONTEXT]
    if (refused := refusal(request, context)) is not None:
        return refused
    try:
        body = Speech.model_validate_json(await request.read())
    except ValidationError as wrong:
        return error(400, str(wrong.errors()[0]["msg"]), "invalid_request_error", None)
    if body.response_format != "pcm":
        return error(400, "Only pcm is served here.", "invalid_request_error", None)
    if (failure := await _fail(request, context, body.model)) is not None:
        return failure
    voice = context.control.cartesia.voice(f"openai-{body.voice}", body.speed)
    spoken = await context.speak(body.input, voice, _RATE)
    context.record.add(
        "openai", "speech", model=body.model, voice=body.voice, text=body.input, speed=body.speed
    )
    events = body.stream_format == "sse"
    kind = "text/event-stream" if events else "audio/pcm"
    response = web.StreamResponse(headers={"Content-Type": kind, "x-request-id": context.new_id()})
    await response.prepare(request)
    for start in range(0, len(spoken.pcm), _CHUNK):
        data = encode(spoken.pcm[start : start + _CHUNK], Format("pcm_s16le", _RATE))
        delta = {"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()}
        await response.write(b"data: " + json.dumps(delta).encode() + b"\n\n" if events else data)
    if events:
        done = {"type": "speech.audio.done", "usage": {"input_tokens": 1, "output_tokens": 1}}
        await response.write(b"data: " + json.dumps(done).encode() + b"\n\n")
    await response.write_eof()
    return response


async def transcriptions(request: web.Request) -> web.StreamResponse:
    context = request.app[CONTEXT]
    if (refused := refusal(request, context)) is not None:
        return refused
    form = await request.post()
    model, file = form.get("model"), form.get("file")
    if not isinstance(model, str) or not isinstance(file, web.FileField):
        return error(400, "model and file are needed", "invalid_request_error", None)
    try:
        pcm, rate = _read_wav(file.file.read())
    except (wave.Error, EOFError, ValueError):
        return error(400, "The file is not a 16-bit WAV.", "invalid_request_error", None)
    if (failure := await _fail(request, context, model)) is not None:
        return failure
    heard = await context.ear.recognize(pcm, rate)
    context.record.add("openai", "transcription", model=model, text=heard.text)
    return web.json_response({"text": heard.text})


async def _fail(request: web.Request, context: Context, model: str) -> web.StreamResponse | None:
    """Return a fault's response to this request; None if no fault applies."""
    if (failure := failed(context, model)) is not None:
        return failure
    fault = context.take_fault("openai", before_answer=False, model=model)
    if fault is None:
        return None
    if fault.kind == "hang":
        await asyncio.sleep(HANG_S)
    if fault.kind == "malformed":
        return web.Response(text='{"text":', content_type="application/json")
    cut(request)
    return web.Response()


def _read_wav(data: bytes) -> tuple[Pcm, int]:
    with wave.open(io.BytesIO(data)) as sound:
        if sound.getsampwidth() != 2:
            raise ValueError("not 16 bit")
        frames = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
        return frames[:: sound.getnchannels()].astype(np.int16), sound.getframerate()
