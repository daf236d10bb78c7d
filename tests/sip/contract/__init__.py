"""What a SIP service for LiveKit must do, as one suite: run on the bridge and on livekit-sip.

Phones and trunks are real SIP on loopback (:mod:`dev.phone`, :mod:`dev.standins.trunk`), rooms are
a real livekit-server's."""

from __future__ import annotations

from tests.sip.contract.inbound import InboundContract
from tests.sip.contract.media import MediaContract
from tests.sip.contract.outbound import OutboundContract


class SipContract(OutboundContract, MediaContract, InboundContract):
    """Subclasses give the fixture ``rig``."""
