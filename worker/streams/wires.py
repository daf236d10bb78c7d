"""The protocol of each kind of session."""

from __future__ import annotations

from core.streams.messages import Attach
from worker.streams.socket_wire import SocketWire
from worker.streams.twilio_wire import TwilioWire
from worker.streams.wire import Wire


def wire_for(call_id: str, attach: Attach) -> Wire:
    return TwilioWire() if attach.kind == "twilio" else SocketWire(call_id, attach)
