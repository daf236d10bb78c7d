"""What LiveKit's SDK (1.1.21) has no public call for: being loaded early, keys for one only."""

from __future__ import annotations

import asyncio

from livekit import rtc
from livekit.rtc import _ffi_client
from livekit.rtc._proto import ffi_pb2

_SENT_WITHIN_S = 5.0


async def load() -> None:
    """Load the SDK's native library now: whoever uses it first holds up the event loop.

    Where that is a call's own process, its caller hears the first word 20 ms later (measured).
    """
    await rtc.AudioSource(8000, 1).aclose()
    _leave_logs_behind()


def _leave_logs_behind() -> None:
    """The native library writes its log itself, by ``RUST_LOG``: its errors alone, unless set.

    The SDK (1.1.21) has each line of it handed to Python, debug lines included, and drops them
    there: 3,700 a call, each a call into Python from another thread, for which the event loop has
    to let go of the interpreter. A fifth of the bridge's CPU (measured). There is no option; the
    library takes a second initialization as a change of this setting.
    """
    library = _ffi_client.FfiClient.instance._ffi_lib
    name, version = b"python", rtc.__version__.encode("ascii")  # what LiveKit is told
    library.livekit_ffi_initialize(_ffi_client.ffi_event_callback, False, name, version)


async def publish_dtmf(room: rtc.Room, identity: str, *, code: int, digit: str) -> None:
    """A key for this participant and nobody else; the SDK's own call tells the whole room.

    Raises rtc.participant.PublishDTMFError, TimeoutError.
    """
    request = ffi_pb2.FfiRequest()
    wanted = request.publish_sip_dtmf
    wanted.local_participant_handle = room.local_participant._ffi_handle.handle
    wanted.code, wanted.digit = code, digit
    wanted.destination_identities.append(identity)
    client = _ffi_client.FfiClient.instance
    answers = client.queue.subscribe()
    try:
        asked = client.request(request).publish_sip_dtmf.async_id
        async with asyncio.timeout(_SENT_WITHIN_S):
            answer = await answers.wait_for(lambda told: told.publish_sip_dtmf.async_id == asked)
    finally:
        client.queue.unsubscribe(answers)
    if answer.publish_sip_dtmf.error:
        raise rtc.participant.PublishDTMFError(answer.publish_sip_dtmf.error)
