"""Our own socket as a line's wire: PCM or µ-law, and the session's events as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.streams.messages import Attach, SocketAttach
from worker.line import Rates
from worker.streams import socket
from worker.streams.messages import Dtmf, Echo, Unknown
from worker.streams.playout import Clear, Mark, Send, Write
from worker.streams.wire import FarEnd, Frame

# A client's next agent counts on from here: how many events it got from the last one is not known.
_EVENTS_OF_AN_AGENT = 1_000_000


class SocketWire:
    """A worker.streams.wire.Wire. The first attach sets the formats for the whole session."""

    echoes = False
    transfers = False
    plays_keys = False
    captions = True

    def __init__(self, call_id: str, attach: SocketAttach) -> None:
        self._call_id = call_id
        self._input, self._output = attach.input, attach.output
        self.rates = Rates(speech=attach.input.sample_rate, voice=attach.output.sample_rate)
        self.silence = socket.silence(attach.output)
        self._events = socket.ServerEvents(attach.epoch * _EVENTS_OF_AN_AGENT)

    def attached(self, attach: Attach) -> Sequence[Frame]:
        assert isinstance(attach, SocketAttach)
        missed = self._events.since(attach.last_seq) if attach.resume else []
        if attach.moved:
            return (*missed, self._events.dropped())
        ready = self._events.ready(
            session_id=self._call_id,
            call_id=self._call_id,
            input=self._input,
            output=self._output,
            resume_token=attach.resume_token,
        )
        return (*missed, ready)  # in the order of their seq

    def receive(self, frame: Frame, far: FarEnd) -> None:
        if isinstance(frame, bytes):
            pcm = socket.decode_audio(frame, self._input)
            return far.heard(pcm.tobytes())
        match socket.parse(frame):
            case socket.Text(text):
                far.typed(text)
            case Dtmf(digit):
                far.key(digit)
            case Echo(name):
                far.echoed(name)
            case socket.Interrupt():
                far.interrupted()
            case socket.Ping():
                far.tell("pong")
            case socket.End():
                far.hung_up("ended by the client")
            case socket.ToolResult(id):
                message = f"no tool call {id} waits for a result: tools run on the server"
                far.tell("error", code="NO_SUCH_TOOL_CALL", message=message)
            case Unknown(kind):
                far.tell("error", code="UNKNOWN_TYPE", message=f"unknown message type {kind}")

    def encode(self, pcm: bytes | memoryview) -> bytes:
        return socket.encode_audio(np.frombuffer(pcm, np.int16), self._output)

    def media(self, write: Write, said: str) -> Frame:
        match write:
            case Send(audio):
                return audio
            case Mark(name):
                return self._events.mark(name)
            case Clear(heard_s):
                return self._events.clear(round(heard_s * 1000), said)

    def event(self, type: str, data: dict[str, Any]) -> Frame | None:
        events = self._events
        match type:
            case "transcript":
                return events.transcript(data["role"], data["text"], final=data["final"])
            case "state":
                return events.state(data["state"])
            case "tool_call":
                return events.tool_call(data["id"], data["name"], _object(data["arguments"]))
            case "error":
                return events.error(data["code"], data["message"])
            case "pong":
                return events.pong()
            case "ended":
                return events.ended(data["reason"])
        return None


def _object(arguments: str) -> dict[str, Any]:
    """Return a tool call's arguments; models write them, so they may be anything."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
