"""The protocol of our own WebSocket, sans-I/O: JSON in text frames, audio in binary frames."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from core.audio import Pcm, ulaw_decode, ulaw_encode
from core.streams.messages import Format
from worker.streams.messages import (
    Dtmf,
    Echo,
    Malformed,
    Unknown,
    digit_in,
    name_in,
    read_object,
    text_in,
)

MAX_CHARS: Final = 16 * 1024
MAX_TEXT_CHARS: Final = 2000
MAX_AUDIO_S: Final = 1.0

HISTORY_EVENTS: Final = 500
HISTORY_CHARS: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Text:
    """The user wrote instead of speaking."""

    text: str


@dataclass(frozen=True, slots=True)
class Interrupt:
    """The agent should stop speaking."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """A client's answer to a tool call. Tools run on the server, so none waits for it."""

    id: str


@dataclass(frozen=True, slots=True)
class Ping:
    """The client wants a pong."""


@dataclass(frozen=True, slots=True)
class End:
    """The client ends the call."""


Message: TypeAlias = Text | Dtmf | Interrupt | Echo | ToolResult | Ping | End | Unknown


def parse(text: str) -> Message:
    """Return the message in a text frame. Raises Malformed."""
    message = read_object(text, MAX_CHARS)
    kind = name_in(message, "type")
    read = _TYPES.get(kind)
    return read(message) if read else Unknown(kind)


_TYPES: Final[dict[str, Callable[[dict[str, Any]], Message]]] = {
    "text": lambda message: Text(text_in(message, "text", MAX_TEXT_CHARS)),
    "dtmf": digit_in,
    "interrupt": lambda message: Interrupt(),
    "mark": lambda message: Echo(name_in(message, "name")),
    "tool_result": lambda message: ToolResult(name_in(message, "id")),
    "ping": lambda message: Ping(),
    "end": lambda message: End(),
}


def decode_audio(frame: bytes, audio: Format) -> Pcm:
    """Return the samples of a binary frame. Raises Malformed: empty, longer than a second, or
    half a sample."""
    width = len(silence(audio))
    if not 0 < len(frame) <= MAX_AUDIO_S * audio.sample_rate * width or len(frame) % width:
        raise Malformed("audio")
    if audio.encoding == "audio/x-mulaw":
        return ulaw_decode(frame)
    return np.frombuffer(frame, "<i2").astype(np.int16, copy=False)


def encode_audio(pcm: Pcm, audio: Format) -> bytes:
    return ulaw_encode(pcm) if audio.encoding == "audio/x-mulaw" else pcm.astype("<i2").tobytes()


def silence(audio: Format) -> bytes:
    """Return one sample of silence."""
    return b"\xff" if audio.encoding == "audio/x-mulaw" else b"\0\0"


class ServerEvents:
    """Renders a session's events, numbers them, and keeps the latest for a client that resumes.

    Not kept is what concerns one socket only: ``ready``, ``mark``, ``clear``, ``pong`` and
    ``error``. So ``seq`` grows, but a resumed client sees holes.
    """

    def __init__(
        self,
        last_seq: int = 0,
        *,
        max_events: int = HISTORY_EVENTS,
        max_chars: int = HISTORY_CHARS,
    ) -> None:
        """``last_seq``: the first event is the one after it."""
        self._seq = last_seq
        self._max_events = max_events
        self._max_chars = max_chars
        self._chars = 0
        self._history: deque[tuple[int, str]] = deque()

    def since(self, last_seq: int) -> list[str]:
        """Return the kept events after ``last_seq``, in order."""
        return [text for seq, text in self._history if seq > last_seq]

    def ready(
        self,
        *,
        session_id: str,
        call_id: str,
        input: Format,
        output: Format,
        resume_token: str,
    ) -> str:
        return self._render(
            "ready",
            sessionId=session_id,
            callId=call_id,
            input=input.wire(),
            output=output.wire(),
            resumeToken=resume_token,
        )

    def transcript(self, role: Literal["user", "agent"], text: str, *, final: bool) -> str:
        return self._keep("transcript", role=role, text=text, final=final)

    def state(self, state: str) -> str:
        return self._keep("state", state=state)

    def mark(self, name: str) -> str:
        return self._render("mark", name=name)

    def clear(self, audio_end_ms: int, text: str) -> str:
        return self._render("clear", audioEndMs=audio_end_ms, text=text)

    def dropped(self) -> str:
        """Return a ``clear`` of audio of which it is not known what was heard."""
        return self._render("clear")

    def tool_call(self, id: str, name: str, arguments: dict[str, Any]) -> str:
        return self._keep("tool_call", id=id, name=name, arguments=arguments)

    def error(self, code: str, message: str) -> str:
        return self._render("error", code=code, message=message)

    def pong(self) -> str:
        return self._render("pong")

    def ended(self, reason: str) -> str:
        return self._keep("ended", reason=reason)

    def _keep(self, kind: str, **fields: Any) -> str:
        text = self._render(kind, **fields)
        self._history.append((self._seq, text))
        self._chars += len(text)
        while len(self._history) > self._max_events or self._chars > self._max_chars:
            self._chars -= len(self._history.popleft()[1])
        return text

    def _render(self, kind: str, **fields: Any) -> str:
        """ASCII only: as many bytes as characters, and safe for a model's lone surrogates."""
        self._seq += 1
        return json.dumps({"type": kind, "seq": self._seq, **fields}, separators=(",", ":"))
