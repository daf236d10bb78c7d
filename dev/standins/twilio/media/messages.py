"""The JSON messages of Media Streams, without I/O: text out, text in.

https://www.twilio.com/docs/voice/media-streams/websocket-messages
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass

from dev.standins.twilio.errors import Fault

CONNECTED = '{"event":"connected","protocol":"Call","version":"1.0.0"}'
PROTOCOL_ERROR = 31924


@dataclass(frozen=True)
class Media:
    ulaw: bytes


@dataclass(frozen=True)
class Mark:
    name: str


@dataclass(frozen=True)
class Clear:
    pass


class Writer:
    """Messages of one stream to its server, numbered from 1 in the order of the calls."""

    def __init__(self, account_sid: str, call_sid: str, stream_sid: str) -> None:
        self._call = {"accountSid": account_sid, "callSid": call_sid}
        self._sid = stream_sid
        self._tail = f'"}},"streamSid":"{stream_sid}"}}'
        self._sequence = 0

    def start(self, parameters: Mapping[str, str]) -> str:
        details = {
            **self._call,
            "streamSid": self._sid,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": dict(parameters),
        }
        return self._message("start", details)

    def media(self, chunk: int, timestamp_ms: int, payload: str) -> str:
        # By hand, since it is sent 50 times a second for each call.
        self._sequence += 1
        return (
            f'{{"event":"media","sequenceNumber":"{self._sequence}","media":{{"track":"inbound",'
            f'"chunk":"{chunk}","timestamp":"{timestamp_ms}","payload":"{payload}{self._tail}'
        )

    def dtmf(self, digit: str) -> str:
        return self._message("dtmf", {"track": "inbound_track", "digit": digit})

    def mark(self, name: str) -> str:
        return self._message("mark", {"name": name})

    def stop(self) -> str:
        return self._message("stop", self._call)

    def _message(self, event: str, details: Mapping[str, object]) -> str:
        self._sequence += 1
        message = {
            "event": event,
            "sequenceNumber": str(self._sequence),
            event: details,
            "streamSid": self._sid,
        }
        return json.dumps(message, separators=(",", ":"))


def parse(text: str, stream_sid: str) -> Media | Mark | Clear:
    """Return what the server sent. Raises Fault 31924 for anything that is not allowed."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise Fault(PROTOCOL_ERROR, "not JSON") from None
    if not isinstance(message, dict) or message.get("streamSid") != stream_sid:
        raise Fault(PROTOCOL_ERROR, "not an object with the streamSid of this stream")
    match message:
        case {"event": "media", "media": {"payload": str(payload)}}:
            return Media(_decoded(payload))
        case {"event": "mark", "mark": {"name": str(name)}} if name:
            return Mark(name)
        case {"event": "clear"}:
            return Clear()
    raise Fault(PROTOCOL_ERROR, f"not a media, mark or clear: {message.get('event')!r}")


def _decoded(payload: str) -> bytes:
    try:
        ulaw = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise Fault(PROTOCOL_ERROR, "payload is not base64") from None
    if not ulaw:
        raise Fault(PROTOCOL_ERROR, "payload is empty")
    return ulaw
