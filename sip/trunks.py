"""The inbound trunk of an attached number, as LiveKit's SIP service stores it.

Each number has one, whatever its direction and agent: the gateway decides at every call.
Pure: gateway.numbers.provisioning sends the requests built here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration
from livekit.protocol.sip import CreateSIPInboundTrunkRequest, SIPInboundTrunkInfo

from core.models import PhoneNumber

RINGING_TIMEOUT_S = 15
"""How long a caller hears ringing if no agent comes. LiveKit's default is three minutes."""


def inbound_trunk(
    number: PhoneNumber,
    *,
    agent_name: str,
    allowed_addresses: Sequence[str] = (),
    while_full_s: float = 0.0,
) -> CreateSIPInboundTrunkRequest:
    """Build the trunk. Only ``allowed_addresses`` (IPs and networks) may call; empty: all may.

    ``while_full_s``: RING_WHILE_FULL_S; the gateway, not the SIP service, ends that wait.
    """
    return CreateSIPInboundTrunkRequest(
        trunk=SIPInboundTrunkInfo(
            name=number.id,
            # Carriers send both forms, and not every version of LiveKit treats them as equal.
            numbers=[number.phone_number, number.phone_number.removeprefix("+")],
            allowed_addresses=allowed_addresses,
            ringing_timeout=Duration(seconds=RINGING_TIMEOUT_S + math.ceil(while_full_s)),
            # Unlike the rule's metadata, this does not reach the participant. If installations
            # share a LiveKit server, the agent's name tells whose trunk this is.
            metadata=json.dumps({**label(number), "agent_name": agent_name}),
        )
    )


def label(number: PhoneNumber) -> dict[str, str]:
    """Return the owner and number, for the metadata of LiveKit's objects."""
    owner = {} if number.auth_id is None else {"auth_id": number.auth_id}
    return {**owner, "number_id": number.id}


def number_id_of(trunk: SIPInboundTrunkInfo, agent_name: str) -> str | None:
    """Return the id of the trunk's number; None if the trunk is not this installation's."""
    metadata = read_label(trunk.metadata)
    ours = metadata.get("number_id") == trunk.name and metadata.get("agent_name") == agent_name
    return trunk.name if ours and trunk.name else None


def read_label(metadata: str) -> dict[str, object]:
    """Parse a label; empty if it is not a JSON object."""
    try:
        value = json.loads(metadata)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
