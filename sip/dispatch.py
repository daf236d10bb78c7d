"""The dispatch rule of an attached number: the room that a call enters, and the agent it gets.

Pure: gateway.numbers.provisioning sends the requests built here.
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

# Lifetime of a room that nobody entered, and of one that everybody left, in seconds: long
# enough for a slow dial or a page reload, short enough that a dead call leaves no room behind.
EMPTY_TIMEOUT_S = 30
DEPARTURE_TIMEOUT_S = 3


def dispatch_rule(
    number: PhoneNumber, trunk_id: str, *, agent_name: str
) -> CreateSIPDispatchRuleRequest:
    """Build the rule: every call to the number's trunk gets a room of its own, with an agent.

    LiveKit names the room ``in_<called>_<random>``. Every kind of rule that creates a room per
    call puts a number into its name. This kind uses the tenant's own; the caller's would appear
    in the logs of everything that handles rooms. The random part keeps calls apart. There are no
    number filters, as they would have to match exactly.
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
    """Return the id of the rule's number; None if the rule is not this installation's."""
    dispatched = any(agent.agent_name == agent_name for agent in rule.room_config.agents)
    ours = dispatched and read_label(rule.metadata).get("number_id") == rule.name
    return rule.name if ours and rule.name else None
