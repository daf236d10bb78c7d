"""The contract of a SIP service for LiveKit, as one suite for the bridge and livekit-sip.

Phones and trunks speak real SIP on loopback (:mod:`dev.phone`, :mod:`dev.standins.trunk`), and
the rooms are on a real livekit-server."""

from __future__ import annotations

from tests.sip.contract.inbound import InboundContract
from tests.sip.contract.media import MediaContract
from tests.sip.contract.outbound import OutboundContract


class SipContract(OutboundContract, MediaContract, InboundContract):
    """Subclasses provide the fixture ``rig``."""
