"""Checks that LiveKit's SDK still has the private parts that core._private uses."""

from __future__ import annotations

import ctypes
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from livekit import rtc
from livekit.rtc import _ffi_client
from livekit.rtc._proto import ffi_pb2

from core import _private

pytestmark = pytest.mark.unit


def test_the_native_library_is_initialized_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """test_rtc_sdk shows the effect."""
    library: Any = _ffi_client.FfiClient.instance._ffi_lib
    told: list[tuple[Any, ...]] = []
    takes = library.livekit_ffi_initialize.argtypes
    assert takes == [_ffi_client.ffi_cb_fnc, ctypes.c_bool, ctypes.c_char_p, ctypes.c_char_p]
    monkeypatch.setattr(library, "livekit_ffi_initialize", lambda *given: told.append(given))
    _private.leave_logs_behind()
    ((callback, captures_logs, _, _),) = told
    assert isinstance(callback, _ffi_client.ffi_cb_fnc) and captures_logs is False


@pytest.mark.parametrize("error", ["", "no such participant"])
async def test_a_key_is_sent_to_some(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is the one of the SDK's publish_dtmf, plus destinations."""
    client: Any = _ffi_client.FfiClient.instance
    asked: list[ffi_pb2.FfiRequest] = []

    def request(wanted: ffi_pb2.FfiRequest) -> ffi_pb2.FfiResponse:
        asked.append(wanted)
        for number in (6, 7):  # the first one answers another request
            event = ffi_pb2.FfiEvent()
            event.publish_sip_dtmf.async_id = number
            event.publish_sip_dtmf.error = error if number == 7 else "another's"
            client.queue.put(event)
        response = ffi_pb2.FfiResponse()
        response.publish_sip_dtmf.async_id = 7
        return response

    monkeypatch.setattr(client, "request", request)
    sender = SimpleNamespace(_ffi_handle=SimpleNamespace(handle=3))
    room: Any = SimpleNamespace(local_participant=sender)
    subscribers = len(client.queue._subscribers)
    assert await _private.send_dtmf(room, ["phone", "agent"], code=5, digit="5") == error
    assert len(client.queue._subscribers) == subscribers
    (sent,) = (one.publish_sip_dtmf for one in asked)
    assert (sent.local_participant_handle, sent.code, sent.digit) == (3, 5, "5")
    assert list(sent.destination_identities) == ["phone", "agent"]
    own = inspect.getsource(rtc.LocalParticipant.publish_dtmf)
    assert "publish_sip_dtmf.local_participant_handle = self._ffi_handle.handle" in own
