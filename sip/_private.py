"""The private parts of libraries that sip uses, each with a test in tests/sip/test_private.py.

Those of the SDK (livekit 1.1.21) make calls cheaper. If another version is built differently,
these functions do nothing and report that in their result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from livekit import rtc
from livekit.api import LiveKitAPI, VideoGrants
from livekit.protocol.room import PerformRpcRequest, PerformRpcResponse

if TYPE_CHECKING:  # a leg in a room needs no SIP stack
    import baresip

Filter = Callable[[Any], bool]

_BUILT_OTHERWISE = (ImportError, AttributeError, TypeError, ValueError)


def narrow(subscriber: rtc.Room | rtc.AudioStream, also: Filter) -> bool:
    """Wake the subscriber only for native events that pass ``also``; False if not possible."""
    try:
        from livekit.rtc._ffi_client import FfiClient

        events: Any = FfiClient.instance.queue
        own: Any = subscriber._ffi_queue
        with events._lock:
            for index, (queue, loop, wanted) in enumerate(events._subscribers):
                if queue is own:
                    events._subscribers[index] = (queue, loop, _both(wanted, also))
                    return True
    except _BUILT_OTHERWISE:
        pass
    return False


def _both(wanted: Filter | None, also: Filter) -> Filter:
    return also if wanted is None else lambda event: wanted(event) and also(event)


def stream_handle(stream: rtc.AudioStream) -> int | None:
    """Return the stream's number in native events; None if it cannot be read."""
    handle: int | None = getattr(getattr(stream, "_ffi_handle", None), "handle", None)
    return handle


def capture(source: rtc.AudioSource, frame: rtc.AudioFrame) -> bool:
    """Pass a frame to the SDK without waiting for confirmation; False if not possible.

    The SDK copies the samples before the request returns.
    """
    try:
        from livekit.rtc._ffi_client import FfiClient
        from livekit.rtc._proto.ffi_pb2 import FfiRequest

        handle: Any = source._ffi_handle
        if handle.disposed:
            return True  # the source is closed
        request = FfiRequest()
        request.capture_audio_frame.source_handle = handle.handle
        request.capture_audio_frame.buffer.CopyFrom(frame._proto_info())
        send: Callable[[Any], Any] = FfiClient.instance.request
    except _BUILT_OTHERWISE:
        return False
    send(request)
    return True


async def perform_rpc(livekit: LiveKitAPI, request: PerformRpcRequest) -> PerformRpcResponse:
    """Call RoomService's PerformRpc, which livekit-api (1.2) has no method for.

    Raises ServerError, aiohttp.ClientError.
    """
    rooms: Any = livekit.room
    token = rooms._auth_header(VideoGrants(room_admin=True, room=request.room))
    answer: PerformRpcResponse = await rooms._client.request(
        "RoomService", "PerformRpc", request, token, PerformRpcResponse
    )
    return answer


def hear(call: baresip.Call, event: baresip.StackEvent) -> None:
    """Deliver to a call a stack event that it missed."""
    call._on_stack_event(event)
