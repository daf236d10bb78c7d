"""Twilio Media Streams: its messages, sans-I/O.

https://www.twilio.com/docs/voice/media-streams/websocket-messages. Audio is µ-law, 8 kHz, one
channel, 20 ms a message; Twilio writes most numbers as strings. Only ``media``, ``mark`` and
``clear`` may be sent (Twilio's error 31924 ends the stream otherwise).
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from worker.streams.messages import (
    Dtmf,
    Echo,
    Malformed,
    Unknown,
    digit_in,
    line_in,
    name_in,
    number_in,
    object_in,
    read_object,
)

BYTES_PER_S: Final = 8000
SILENCE: Final = b"\xff"
MAX_CHARS: Final = 64 * 1024

_BYTES_PER_MS: Final = BYTES_PER_S // 1000
_FRAME_MS: Final = 20
_MAX_PAYLOAD_CHARS: Final = (BYTES_PER_S + 2) // 3 * 4  # base64 of one second
_MAX_GAP_MS: Final = 200
_MAX_PARAMETER_CHARS: Final = 4096  # the longest is a token; Twilio allows about 500


@dataclass(frozen=True, slots=True)
class Connected:
    """The socket is open; ``Start`` follows."""


@dataclass(frozen=True, slots=True)
class Start:
    """The stream begins. ``parameters`` are the TwiML's ``<Parameter>`` elements."""

    stream_sid: str
    call_sid: str
    account_sid: str
    parameters: dict[str, str]


@dataclass(frozen=True, slots=True)
class Media:
    """The caller's audio. ``chunk`` counts messages, ``timestamp_ms`` begins with the stream."""

    chunk: int
    timestamp_ms: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Stop:
    """The stream or the call is over."""


Message: TypeAlias = Connected | Start | Media | Dtmf | Echo | Stop | Unknown


def parse(text: str) -> Message:
    """Return the message in a text frame. Raises Malformed."""
    message = read_object(text, MAX_CHARS)
    event = name_in(message, "event")
    read = _EVENTS.get(event)
    return read(message) if read else Unknown(event)


class Outbound:
    """Renders the messages to one stream."""

    def __init__(self, stream_sid: str) -> None:
        sid = json.dumps(stream_sid)
        self._media = f'{{"event":"media","streamSid":{sid},"media":{{"payload":"'
        self._mark = f'{{"event":"mark","streamSid":{sid},"mark":{{"name":'
        self._clear = f'{{"event":"clear","streamSid":{sid}}}'

    def media(self, audio: bytes) -> str:
        return f'{self._media}{binascii.b2a_base64(audio, newline=False).decode("ascii")}"}}}}'

    def mark(self, name: str) -> str:
        return f"{self._mark}{json.dumps(name)}}}}}"

    def clear(self) -> str:
        return self._clear


class Inbound:
    """Makes one stream's media messages a continuous signal, and delays none of them.

    ``late`` and ``gaps`` count what did not come in order.
    """

    def __init__(self) -> None:
        self.late = 0
        self.gaps = 0
        self._last: Media | None = None

    def push(self, media: Media) -> bytes:
        """Return the audio to hear next: nothing for a duplicate or a late message; silence
        before it for a gap, at most 200 ms."""
        last, self._last = self._last, media
        if last is None:
            return media.payload
        if media.chunk <= last.chunk:
            self.late += 1
            self._last = last
            return b""
        over_ms = last.timestamp_ms + len(last.payload) // _BYTES_PER_MS
        frames = max(media.chunk - last.chunk - 1, (media.timestamp_ms - over_ms) // _FRAME_MS)
        if not frames:
            return media.payload
        self.gaps += 1
        gap_ms = min(frames * _FRAME_MS, _MAX_GAP_MS)
        return SILENCE * (gap_ms * _BYTES_PER_MS) + media.payload


def _connected(message: dict[str, Any]) -> Connected:
    return Connected()


def _start(message: dict[str, Any]) -> Start:
    start = object_in(message, "start")
    audio = object_in(start, "mediaFormat")
    if (
        name_in(audio, "encoding") != "audio/x-mulaw"
        or number_in(audio, "sampleRate") != BYTES_PER_S
        or number_in(audio, "channels") != 1
    ):
        raise Malformed("mediaFormat")
    parameters = object_in(start, "customParameters") if "customParameters" in start else {}
    return Start(
        stream_sid=name_in(start, "streamSid"),
        call_sid=name_in(start, "callSid"),
        account_sid=name_in(start, "accountSid"),
        parameters={
            name_in({"name": name}, "name"): line_in(parameters, name, _MAX_PARAMETER_CHARS)
            for name in parameters
        },
    )


def _media(message: dict[str, Any]) -> Media | Unknown:
    media = object_in(message, "media")
    if name_in(media, "track") != "inbound":
        return Unknown("media")  # of the outbound track: the agent's own voice
    payload = media.get("payload")
    if not isinstance(payload, str) or not 0 < len(payload) <= _MAX_PAYLOAD_CHARS:
        raise Malformed("payload")
    if len(payload) % 4:
        raise Malformed("payload")  # a2b_base64 tolerates excess padding
    try:
        audio = binascii.a2b_base64(payload, strict_mode=True)
    except ValueError:
        raise Malformed("payload") from None
    return Media(number_in(media, "chunk"), number_in(media, "timestamp"), audio)


def _dtmf(message: dict[str, Any]) -> Dtmf:
    return digit_in(object_in(message, "dtmf"))


def _mark(message: dict[str, Any]) -> Echo:
    return Echo(name_in(object_in(message, "mark"), "name"))


def _stop(message: dict[str, Any]) -> Stop:
    return Stop()


_EVENTS: Final[dict[str, Callable[[dict[str, Any]], Message]]] = {
    "connected": _connected,
    "start": _start,
    "media": _media,
    "dtmf": _dtmf,
    "mark": _mark,
    "stop": _stop,
}
