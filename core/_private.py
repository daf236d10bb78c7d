"""The private parts of LiveKit's SDK that core uses.

Each has a test in tests/core/test_private.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from livekit import rtc
from livekit.rtc import _ffi_client
from livekit.rtc._proto import ffi_pb2


def leave_logs_behind() -> None:
    """Initialize the native library, which is loaded, anew: without its log handed to Python."""
    library = _ffi_client.FfiClient.instance._ffi_lib
    name, version = b"python", rtc.__version__.encode("ascii")  # as reported to LiveKit
    library.livekit_ffi_initialize(_ffi_client.ffi_event_callback, False, name, version)


async def send_dtmf(room: rtc.Room, identities: Sequence[str], *, code: int, digit: str) -> str:
    """Send a key to these participants; the SDK's error, empty when there was none."""
    request = ffi_pb2.FfiRequest()
    wanted = request.publish_sip_dtmf
    wanted.local_participant_handle = room.local_participant._ffi_handle.handle
    wanted.code, wanted.digit = code, digit
    wanted.destination_identities.extend(identities)
    client = _ffi_client.FfiClient.instance
    answers = client.queue.subscribe()
    try:
        asked = client.request(request).publish_sip_dtmf.async_id
        answer = await answers.wait_for(lambda told: told.publish_sip_dtmf.async_id == asked)
    finally:
        client.queue.unsubscribe(answers)
    error: str = answer.publish_sip_dtmf.error
    return error
