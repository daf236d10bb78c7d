"""The voice URLs of the sides, which this process serves.

The peers have fixed TwiML, as in a TwiML Bin of Twilio's; Pipecat's documentation tells to use
one. Ours is an application that asks for a session for each call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self

from aiohttp import web
from twilio.twiml.voice_response import Connect, VoiceResponse  # type: ignore[import-untyped]

from dev.stack.options import HOST

Voice = Callable[[Mapping[str, str]], Awaitable[str]]
"""Returns the TwiML for a call, of which Twilio sends a form."""


class VoiceUrls:
    """``async with VoiceUrls() as urls``: they are served inside the block."""

    def __init__(self) -> None:
        self._voices: list[Voice] = []

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/{number}", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, 0).start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()

    def add(self, voice: Voice) -> str:
        """Serve a voice URL; return it."""
        self._voices.append(voice)
        return f"http://{HOST}:{self._runner.addresses[0][1]}/{len(self._voices) - 1}"

    async def _answer(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        text = await self._voices[int(request.match_info["number"])](form)
        return web.Response(text=text, content_type="text/xml")


def connecting(stream: str) -> Voice:
    """Return fixed TwiML that connects a call to a stream's address."""
    response, connect = VoiceResponse(), Connect()
    connect.stream(url=stream)
    response.append(connect)

    async def voice(_form: Mapping[str, str]) -> str:
        return str(response)

    return voice
