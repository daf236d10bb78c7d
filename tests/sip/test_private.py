"""sip._private: these tests fail if a library changes a private part that sip uses."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import baresip
import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from livekit import rtc
from livekit.api import LiveKitAPI
from livekit.protocol.room import PerformRpcRequest, PerformRpcResponse
from livekit.rtc._ffi_client import FfiClient
from livekit.rtc._proto.ffi_pb2 import FfiEvent

from sip import _private

pytestmark = pytest.mark.unit

RATE = 8000


@pytest.fixture
async def source() -> AsyncIterator[rtc.AudioSource]:
    source = rtc.AudioSource(RATE, 1, queue_size_ms=0)
    yield source
    await source.aclose()


def frame_of(number: int) -> FfiEvent:
    event = FfiEvent()
    event.audio_stream_event.stream_handle = number
    return event


async def test_a_subscriber_hears_only_what_it_is_narrowed_to() -> None:
    events: Any = FfiClient.instance.queue
    kind = "audio_stream_event"
    own = events.subscribe(filter_fn=lambda event: event.WhichOneof("message") == kind)
    stream: Any = SimpleNamespace(_ffi_queue=own)
    try:
        assert _private.narrow(stream, lambda event: event.audio_stream_event.stream_handle == 1)
        for event in (frame_of(2), FfiEvent(), frame_of(1)):
            events.put(event)
        async with asyncio.timeout(5):
            assert (await own.get()) == frame_of(1)
        assert own.empty()
    finally:
        events.unsubscribe(own)
    assert not _private.narrow(stream, lambda _: True), "not subscribed"


@pytest.mark.parametrize("subscribes", [rtc.Room.connect, rtc.AudioStream.__init__])
def test_rooms_and_streams_subscribe_so(subscribes: Callable[..., Any]) -> None:
    """The source is read because a room subscribes when it connects, which needs a server."""
    assert "self._ffi_queue = FfiClient.instance.queue.subscribe(" in inspect.getsource(subscribes)


def test_a_stream_has_a_handle() -> None:
    stream: Any = SimpleNamespace(_ffi_handle=SimpleNamespace(handle=7))
    assert _private.stream_handle(stream) == 7
    source = inspect.getsource(rtc.AudioStream)
    assert "audio_stream_event.stream_handle == self._ffi_handle.handle" in source


async def test_a_frame_is_captured_without_a_wait(source: rtc.AudioSource) -> None:
    heard: Any = FfiClient.instance.queue.subscribe()
    try:
        frame = rtc.AudioFrame.create(RATE, 1, RATE // 100)
        assert _private.capture(source, frame)
        async with asyncio.timeout(5):
            told = await heard.wait_for(lambda event: event.HasField("capture_audio_frame"))
        assert not told.capture_audio_frame.error
    finally:
        FfiClient.instance.queue.unsubscribe(heard)


async def test_nothing_is_captured_after_the_end() -> None:
    source = rtc.AudioSource(RATE, 1, queue_size_ms=0)
    await source.aclose()
    assert _private.capture(source, rtc.AudioFrame.create(RATE, 1, RATE // 100))


async def test_an_rpc_is_performed() -> None:
    asked: list[tuple[str, PerformRpcRequest]] = []

    async def answer(request: web.Request) -> web.Response:
        body = PerformRpcRequest.FromString(await request.read())
        asked.append((request.headers["Authorization"].removeprefix("Bearer "), body))
        done = PerformRpcResponse(payload="{}").SerializeToString()
        return web.Response(body=done, content_type="application/protobuf")

    app = web.Application()
    app.router.add_post("/twirp/livekit.RoomService/PerformRpc", answer)
    secret = "a-secret-of-more-than-32-bytes-for-tests"
    async with TestServer(app) as server:
        async with LiveKitAPI(str(server.make_url("/")), "key", secret) as livekit:
            request = PerformRpcRequest(room="r", destination_identity="phone", method="m")
            assert (await _private.perform_rpc(livekit, request)).payload == "{}"
    ((token, body),) = asked
    assert body == request
    grants = jwt.decode(token, secret, algorithms=["HS256"])["video"]
    assert (grants["roomAdmin"], grants["room"]) == (True, "r")


def test_a_call_of_the_stack_hears_its_events() -> None:
    heard: list[Any] = []
    stand_in: Any = SimpleNamespace(_on_stack_event=heard.append)
    event: Any = object()
    _private.hear(stand_in, event)
    assert heard == [event]
    assert "subscribe(self._on_stack_event)" in inspect.getsource(baresip.Call.__init__)
    (_self, _event) = inspect.signature(baresip.Call._on_stack_event).parameters
