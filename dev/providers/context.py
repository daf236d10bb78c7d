"""Shared by the servers: control document, record, synthesis, recognition, key check."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeAlias

from aiohttp import web

from dev.providers.control import Control, Fault
from dev.providers.record import Record
from dev.speech import RecognizerPool, Speech, Voice, synthesize

Name: TypeAlias = Literal["deepgram", "openai", "cartesia"]

# Longer than any client's own deadline: a hanging request ends when its client disconnects.
HANG_S = 3600.0


class Context:
    """The state of a running server; PUT /control replaces ``control`` as a whole."""

    def __init__(
        self,
        control: Control,
        record: Record,
        ear: RecognizerPool,
        mouth: ThreadPoolExecutor,
        api_keys: Mapping[Name, str],
    ) -> None:
        self.control = control
        self.record = record
        self.ear = ear
        self._mouth = mouth
        self._api_keys = api_keys
        self.sockets: set[web.WebSocketResponse] = set()  # to be closed when the server stops

    @staticmethod
    def new_id() -> str:
        return str(uuid.uuid4())

    def authorized(self, name: Name, key: str) -> bool:
        """Return True for the configured key or, if there is none, for any non-empty key."""
        expected = self._api_keys.get(name)
        return bool(key) if expected is None else key == expected

    def take_fault(
        self, name: Name, *, before_answer: bool, model: str | None = None
    ) -> Fault | None:
        fault = getattr(self.control, name).take_fault(before_answer=before_answer, model=model)
        if fault is None:
            return None
        assert isinstance(fault, Fault)
        status = fault.http_status if fault.before_answer else None
        self.record.add(name, "fault", kind=fault.kind, status=status)
        return fault

    async def speak(self, text: str, voice: Voice, sample_rate: int) -> Speech:
        """Synthesise in a thread; a repeated sentence comes from a cache."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._mouth, synthesize, text, voice, sample_rate)


CONTEXT = web.AppKey("context", Context)


def fault_headers(fault: Fault) -> dict[str, str]:
    return {"Retry-After": str(fault.retry_after_s)} if fault.kind == "rate_limit" else {}


def cut(request: web.Request) -> None:
    """Drop the connection like a crashed server: no close frame, no last chunk."""
    transport = request.transport
    if transport is not None:
        transport.abort()


def json_error(
    status: int, document: Mapping[str, Any], fault: Fault | None = None
) -> web.Response:
    headers = fault_headers(fault) if fault else None
    return web.json_response(document, status=status, headers=headers)
