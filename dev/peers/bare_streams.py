"""Bare livekit-agents sessions on Twilio Media Streams, without a room, one for each WebSocket.

The peer of the benchmark ``streams``. livekit-agents has no transport for Twilio; this is the
smallest one that plays everything, empties Twilio's queue at an interruption, and knows by marks
what has been played. All audio is 8 kHz, so nothing is resampled. The plugins, models, providers
and the endpointing silence are those of our worker; everything else is at the library's defaults.
The plugins read their keys from the environment.

    python -m dev.peers.bare_streams --port 8080 --providers http://127.0.0.1:9000 \
        --endpointing-ms 200 --greeting 'Hello.' --instructions 'You are helpful.'
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import uvloop
from aiohttp import ClientSession, WSMsgType, web
from livekit import rtc
from livekit.agents import Agent, AgentSession, inference, io
from livekit.plugins import cartesia, deepgram, openai

from core.audio import ulaw_decode, ulaw_encode

RATE = 8000  # Hz, of everything

_OPTIONS: web.AppKey[argparse.Namespace] = web.AppKey("options", argparse.Namespace)
_HTTP: web.AppKey[ClientSession] = web.AppKey("http", ClientSession)
_LLM: web.AppKey[openai.LLM] = web.AppKey("llm", openai.LLM)


class Ear(io.AudioInput):
    """The caller's audio."""

    def __init__(self) -> None:
        super().__init__(label="Twilio")
        self._frames: asyncio.Queue[rtc.AudioFrame] = asyncio.Queue()

    def hear(self, payload: str) -> None:
        pcm = ulaw_decode(base64.b64decode(payload))
        self._frames.put_nowait(rtc.AudioFrame(pcm.tobytes(), RATE, 1, len(pcm)))

    async def __anext__(self) -> rtc.AudioFrame:
        return await self._frames.get()


class Mouth(io.AudioOutput):
    """The agent's audio. Twilio queues it, and echoes the mark behind each speech."""

    def __init__(self, socket: web.WebSocketResponse, stream_sid: str) -> None:
        super().__init__(
            label="Twilio",
            capabilities=io.AudioOutputCapabilities(pause=False),
            sample_rate=RATE,
        )
        self._socket = socket
        self._sid = stream_sid
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._speech = 0  # its number, which is its mark's name
        self._began: float | None = None  # None between speeches
        self._length_s = 0.0

    async def send(self) -> None:
        """Send the messages, until cancelled."""
        while True:
            message = await self._messages.get()
            await self._socket.send_json({"streamSid": self._sid, **message})

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if self._began is None:
            self._speech += 1
            self._began, self._length_s = time.time(), 0.0
            self.on_playback_started(created_at=self._began)
        self._length_s += frame.duration
        payload = base64.b64encode(ulaw_encode(np.frombuffer(frame.data, np.int16))).decode()
        self._messages.put_nowait({"event": "media", "media": {"payload": payload}})

    def flush(self) -> None:
        super().flush()
        if self._began is not None:
            self._messages.put_nowait({"event": "mark", "mark": {"name": str(self._speech)}})

    def clear_buffer(self) -> None:
        if self._began is not None:
            self._messages.put_nowait({"event": "clear"})
            self._finished(min(self._length_s, time.time() - self._began), interrupted=True)

    def played(self, mark: str) -> None:
        if self._began is not None and mark == str(self._speech):
            self._finished(self._length_s, interrupted=False)

    def _finished(self, position_s: float, *, interrupted: bool) -> None:
        self._began = None
        self.on_playback_finished(playback_position=position_s, interrupted=interrupted)


async def stream(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.receive_json()  # connected
    start = await socket.receive_json()
    ear, mouth = Ear(), Mouth(socket, start["streamSid"])
    session = make_session(request.app)
    session.input.audio, session.output.audio = ear, mouth
    sending = asyncio.create_task(mouth.send())
    try:
        options = request.app[_OPTIONS]
        await session.start(agent=Agent(instructions=options.instructions))
        session.say(options.greeting)
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                break
            match message.json():
                case {"event": "media", "media": {"payload": payload}}:
                    ear.hear(payload)
                case {"event": "mark", "mark": {"name": name}}:
                    mouth.played(name)
                case {"event": "stop"}:
                    break
    finally:
        await session.aclose()
        sending.cancel()
    return socket


def make_session(app: web.Application) -> AgentSession[None]:
    options, http, llm = app[_OPTIONS], app[_HTTP], app[_LLM]
    silence_s = options.endpointing_ms / 1000
    return AgentSession(
        stt=deepgram.STT(
            model="nova-3",
            base_url=f"{options.providers}/v1/listen",
            sample_rate=RATE,
            http_session=http,
        ),
        llm=llm,
        tts=cartesia.TTS(
            model="sonic-3", base_url=options.providers, sample_rate=RATE, http_session=http
        ),
        # The library's own VAD, with less silence than its 0.25 s, which would be the endpointing.
        vad=inference.VAD(model="silero", min_silence_duration=silence_s),
        turn_handling={
            "turn_detection": "vad",
            "endpointing": {"mode": "fixed", "min_delay": silence_s},
        },
    )


async def _clients(app: web.Application) -> AsyncIterator[None]:
    """Share the HTTP clients among the calls: to make one loads all certificates."""
    async with ClientSession() as app[_HTTP]:
        app[_LLM] = openai.LLM(model="gpt-4.1-mini", base_url=f"{app[_OPTIONS].providers}/v1")
        yield
        await app[_LLM].aclose()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.peers.bare_streams")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--providers", required=True, help="the base URL of all three")
    parser.add_argument("--endpointing-ms", type=int, required=True)
    parser.add_argument("--greeting", required=True)
    parser.add_argument("--instructions", required=True)
    app = web.Application()
    app[_OPTIONS] = parser.parse_args()
    app.router.add_get("/stream", stream)
    app.cleanup_ctx.append(_clients)
    uvloop.install()
    web.run_app(app, host="127.0.0.1", port=app[_OPTIONS].port, access_log=None, print=None)


if __name__ == "__main__":
    main()
