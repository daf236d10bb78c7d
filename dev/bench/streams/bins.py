"""TwiML Bins: fixed TwiML that Twilio keeps for an application without an endpoint of its own.

Pipecat's documentation tells to use one; here this process serves them.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from aiohttp import web
from twilio.twiml.voice_response import Connect, VoiceResponse  # type: ignore[import-untyped]

from dev.stack.options import HOST


class TwimlBins:
    """``async with TwimlBins() as bins``: they are served inside the block."""

    def __init__(self) -> None:
        self._texts: list[str] = []

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

    def add(self, stream: str) -> str:
        """Add a bin that connects a call to a stream's address; return the bin's URL."""
        response, connect = VoiceResponse(), Connect()
        connect.stream(url=stream)
        response.append(connect)
        self._texts.append(str(response))
        return f"http://{HOST}:{self._runner.addresses[0][1]}/{len(self._texts) - 1}"

    async def _answer(self, request: web.Request) -> web.Response:
        text = self._texts[int(request.match_info["number"])]
        return web.Response(text=text, content_type="text/xml")
