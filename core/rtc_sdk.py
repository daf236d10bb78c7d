"""What a process does with the LiveKit SDK before it needs it."""

from __future__ import annotations

from livekit import rtc
from livekit.rtc import _ffi_client


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
