"""Twilio's Media Streams as a line's wire."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.audio import ulaw_decode, ulaw_encode
from core.streams.messages import Attach, TwilioAttach
from worker.line import Rates
from worker.streams import twilio
from worker.streams.messages import Dtmf, Echo, Malformed
from worker.streams.playout import Clear, Mark, Send, Write
from worker.streams.wire import FarEnd, Frame

log = logging.getLogger(__name__)


class TwilioWire:
    """A worker.streams.wire.Wire, µ-law at 8 kHz in both directions."""

    rates = Rates(speech=twilio.BYTES_PER_S, voice=twilio.BYTES_PER_S)
    echoes = True
    silence = twilio.SILENCE
    transfers = True
    plays_keys = True
    captions = False

    def __init__(self) -> None:
        self._inbound = twilio.Inbound()
        self._outbound = twilio.Outbound("")

    def attached(self, attach: Attach) -> Sequence[Frame]:
        assert isinstance(attach, TwilioAttach)
        self._inbound = twilio.Inbound()
        self._outbound = twilio.Outbound(attach.stream_sid)
        # Twilio may still have audio of a former agent, or what this one will send again.
        return (self._outbound.clear(),) if attach.moved else ()

    def receive(self, frame: Frame, far: FarEnd) -> None:
        if isinstance(frame, bytes):
            raise Malformed("binary")
        match twilio.parse(frame):
            case twilio.Media() as media:
                if audio := self._inbound.push(media):
                    far.heard(ulaw_decode(audio).tobytes())
            case Echo(name):
                far.echoed(name)
            case Dtmf(digit):
                far.key(digit)
            case twilio.Stop():
                far.hung_up("stream stopped")

    def encode(self, pcm: bytes | memoryview) -> bytes:
        return ulaw_encode(np.frombuffer(pcm, np.int16))

    def media(self, write: Write, said: str) -> Frame:
        match write:
            case Send(audio):
                return self._outbound.media(audio)
            case Mark(name):
                return self._outbound.mark(name)
            case Clear():
                return self._outbound.clear()

    def event(self, type: str, data: dict[str, Any]) -> Frame | None:
        return None
