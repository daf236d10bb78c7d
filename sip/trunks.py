"""The inbound trunk of an attached number, as LiveKit's SIP service keeps it.

One a number, whatever its direction and whichever agent it is bound to: the gateway decides
at every call. Pure; gateway.numbers.provisioning sends what is built here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration
from livekit.protocol.sip import CreateSIPInboundTrunkRequest, SIPInboundTrunkInfo

from core.models import PhoneNumber

RINGING_TIMEOUT_S = 15
"""So long a caller hears ringing when no agent comes; LiveKit's default is three minutes."""


def inbound_trunk(
    number: PhoneNumber, *, agent_name: str, allowed_addresses: Sequence[str] = ()
) -> CreateSIPInboundTrunkRequest:
    """``allowed_addresses``: IP addresses and networks that may send calls; none: all may."""
    return CreateSIPInboundTrunkRequest(
        trunk=SIPInboundTrunkInfo(
            name=number.id,
            # Carriers send both forms, and not every version of LiveKit takes one for the other.
            numbers=[number.phone_number, number.phone_number.removeprefix("+")],
            allowed_addresses=allowed_addresses,
            ringing_timeout=Duration(seconds=RINGING_TIMEOUT_S),
            # Not the rule's metadata, which goes to the participant: the agent's name says which
            # of several installations at one LiveKit this trunk belongs to.
            metadata=json.dumps({**label(number), "agent_name": agent_name}),
        )
    )


def label(number: PhoneNumber) -> dict[str, str]:
    """Whose it is, for the metadata of LiveKit's objects."""
    owner = {} if number.auth_id is None else {"auth_id": number.auth_id}
    return {**owner, "number_id": number.id}


def number_id_of(trunk: SIPInboundTrunkInfo, agent_name: str) -> str | None:
    """The id of the number that the trunk was made for; None: it is not this installation's."""
    metadata = read_label(trunk.metadata)
    ours = metadata.get("number_id") == trunk.name and metadata.get("agent_name") == agent_name
    return trunk.name if ours and trunk.name else None


def read_label(metadata: str) -> dict[str, object]:
    """Empty for what is no JSON object."""
    try:
        value = json.loads(metadata)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
