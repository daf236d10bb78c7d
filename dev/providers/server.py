"""The three providers in one process, on one port."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web
from pydantic import ValidationError

from dev.providers import cartesia, deepgram, openai, openai_audio
from dev.providers.context import CONTEXT, Context, Name
from dev.providers.control import Control
from dev.providers.record import Entry, Record
from dev.speech import AGENT_VOICE, RecognizerPool

_MAX_CONTROL_BYTES = 4 << 20


class Providers:
    """``async with Providers(control) as providers``: the servers listen inside the block.

    Port 0 takes a free one. ``api_keys`` has the only key that a provider accepts; without
    one it accepts any non-empty key.
    """

    def __init__(
        self,
        control: Control | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_keys: Mapping[Name, str] | None = None,
        recognizers: int = 2,
    ) -> None:
        self._control = control or Control()
        self._host = host
        self._port = port
        self._api_keys = dict(api_keys or {})
        self._recognizers = recognizers
        self._context: Context | None = None
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            mouth = ThreadPoolExecutor(1, thread_name_prefix="espeak")
            stack.callback(mouth.shutdown, wait=False, cancel_futures=True)
            ear = RecognizerPool(self._control.deepgram.phrases, self._recognizers)
            await stack.enter_async_context(ear)
            self._context = Context(self._control, Record(), ear, mouth, self._api_keys)
            # The library loads on first use; this must not delay the first call.
            await self._context.speak("ready", AGENT_VOICE, 8000)
            # A request that hangs on purpose ends when its client disconnects.
            runner = web.AppRunner(
                create_app(self._context),
                handler_cancellation=True,
                shutdown_timeout=1,
                access_log=None,  # Cartesia accepts keys in the query too
            )
            stack.push_async_callback(runner.cleanup)
            await runner.setup()
            site = web.TCPSite(runner, self._host, self._port)
            await site.start()
            self._port = runner.addresses[0][1]
            self._open = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._open.aclose()

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}"

    @property
    def deepgram_base_url(self) -> str:
        return f"{self.url}/v1/listen"

    @property
    def openai_base_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def cartesia_base_url(self) -> str:
        return self.url

    @property
    def control(self) -> Control:
        """The current document. Change delays and faults in place, phrases by ``set_control``."""
        return self._running.control

    @property
    def record(self) -> Record:
        return self._running.record

    def log(self, provider: str | None = None) -> list[Entry]:
        return self._running.record.entries(provider=provider)

    async def set_control(self, control: Control) -> None:
        """Do what PUT /control does; return when the new phrases can be recognised."""
        await _replace(self._running, control)

    @property
    def _running(self) -> Context:
        if self._context is None:
            raise RuntimeError("Providers is used outside its async with block")
        return self._context


def create_app(context: Context) -> web.Application:
    app = web.Application(client_max_size=_MAX_CONTROL_BYTES)
    app[CONTEXT] = context
    app.on_shutdown.append(_close_sockets)
    app.add_routes(
        [
            web.get("/v1/listen", deepgram.listen),
            web.get("/v1/models", openai.models),
            web.post("/v1/chat/completions", openai.chat_completions),
            web.post("/v1/audio/speech", openai_audio.speech),
            web.post("/v1/audio/transcriptions", openai_audio.transcriptions),
            web.get("/tts/websocket", cartesia.tts_websocket),
            web.post("/tts/bytes", cartesia.tts_bytes),
            web.get("/control", get_control),
            web.put("/control", put_control),
            web.patch("/control", patch_control),
            web.get("/control/log", get_log),
        ]
    )
    return app


async def get_control(request: web.Request) -> web.Response:
    """Return the current document; faults that were applied are counted down or removed."""
    return _document(request.app[CONTEXT].control)


async def put_control(request: web.Request) -> web.Response:
    """Replace the document; omitted fields get their defaults."""
    return await _change(request, lambda given, _: given)


async def patch_control(request: web.Request) -> web.Response:
    """Change parts of the document by JSON Merge Patch (RFC 7396)."""
    return await _change(request, lambda given, current: _merge(current, given))


async def get_log(request: web.Request) -> web.Response:
    """Return the entries of the log: ``?since=<seq>&provider=<name>``."""
    since = request.query.get("since", "0")
    if not since.isascii() or not since.isdigit():
        return web.json_response({"error": "since must be a sequence number"}, status=400)
    record = request.app[CONTEXT].record
    return web.json_response({"entries": record.entries(int(since), request.query.get("provider"))})


async def _change(request: web.Request, combine: Any) -> web.Response:
    context = request.app[CONTEXT]
    try:
        given = await request.json()
        current = context.control.model_dump(mode="json")
        control = Control.model_validate(combine(given, current))
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        return web.json_response({"error": "invalid", "details": details}, status=422)
    except ValueError:
        return web.json_response({"error": "the body is not JSON"}, status=400)
    await _replace(context, control)
    return _document(context.control)


async def _replace(context: Context, control: Control) -> None:
    if control.deepgram.phrases != context.control.deepgram.phrases:
        await context.ear.expect(control.deepgram.phrases)
    context.control = control


def _document(control: Control) -> web.Response:
    return web.json_response(control.model_dump(mode="json"))


def _merge(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge(merged.get(name), value)
    return merged


async def _close_sockets(app: web.Application) -> None:
    sockets = list(app[CONTEXT].sockets)
    await asyncio.gather(
        *(socket.close(code=aiohttp.WSCloseCode.GOING_AWAY) for socket in sockets),
        return_exceptions=True,
    )
