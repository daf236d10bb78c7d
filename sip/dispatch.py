"""The dispatch rule of an attached number: which room a call comes into, and which agent with it.

Pure; gateway.numbers.provisioning sends what is built here.
"""

from __future__ import annotations

import json

from livekit.protocol.agent_dispatch import RoomAgentDispatch
from livekit.protocol.room import RoomConfiguration
from livekit.protocol.sip import (
    CreateSIPDispatchRuleRequest,
    SIPDispatchRule,
    SIPDispatchRuleCallee,
    SIPDispatchRuleInfo,
)

from core.jobs import InboundJob
from core.legs import Leg
from core.models import PhoneNumber
from sip.trunks import label, read_label

ROOM_PREFIX = "in"

# A room nobody entered, and one that everybody left, in seconds: long enough for a
# slow dial or a reload, short enough that a dead call leaves nothing behind.
EMPTY_TIMEOUT_S = 30
DEPARTURE_TIMEOUT_S = 3


def dispatch_rule(
    number: PhoneNumber, trunk_id: str, *, agent_name: str
) -> CreateSIPDispatchRuleRequest:
    """A room of its own for every call to the number's trunk, with an agent.

    LiveKit names it ``in_<called>_<random>``. Every kind of rule that makes a room for a call puts
    a number into its name: this one the tenant's own, not the caller's, which would stand in the
    log of whoever handles rooms. The random part keeps calls apart. No number filters: they would
    have to match exactly.
    """
    metadata = json.dumps(label(number))
    job = InboundJob(number_id=number.id, auth_id=number.auth_id)
    return CreateSIPDispatchRuleRequest(
        dispatch_rule=SIPDispatchRuleInfo(
            rule=SIPDispatchRule(
                dispatch_rule_callee=SIPDispatchRuleCallee(room_prefix=ROOM_PREFIX, randomize=True)
            ),
            trunk_ids=[trunk_id],
            name=number.id,
            metadata=metadata,  # the participant's
            attributes=Leg("caller", number.id).attributes,
            room_config=RoomConfiguration(
                metadata=metadata,
                empty_timeout=EMPTY_TIMEOUT_S,
                departure_timeout=DEPARTURE_TIMEOUT_S,
                agents=[
                    RoomAgentDispatch(
                        agent_name=agent_name,
                        metadata=job.model_dump_json(by_alias=True, exclude_none=True),
                    )
                ],
            ),
        )
    )


def number_id_of(rule: SIPDispatchRuleInfo, agent_name: str) -> str | None:
    """The id of the number that the rule was made for; None: it is not this installation's."""
    dispatched = any(agent.agent_name == agent_name for agent in rule.room_config.agents)
    ours = dispatched and read_label(rule.metadata).get("number_id") == rule.name
    return rule.name if ours and rule.name else None
