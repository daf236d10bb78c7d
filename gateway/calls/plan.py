"""A call to be placed: checked and complete, but nothing has been done for it yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.legs import Leg
from core.models import Agent, new_id
from gateway.calls.trunks import sealable
from gateway.store.calls import NewCall
from gateway.store.database import Principal
from sip.dial import DialRequest, Trunk

# The worker ends a call at its maximum duration, and can warn first; the SIP service only if that
# failed.
_BACKSTOP_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPlan:
    """``principal``: the owner of the call and of its room."""

    principal: Principal
    room_name: str
    participant_identity: str
    participant_name: str
    from_number: str
    to_number: str
    trunk: Trunk
    own_trunk: bool = False
    """The request specified (part of) ``trunk``, so a transfer of the call must use it too."""
    agent: Agent | None
    agent_named: bool = False
    phone_number_id: str | None = None
    ringing_timeout_s: int = 30
    max_duration_s: int = 3600
    headers: Mapping[str, str] = field(default_factory=dict)
    dtmf: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    record: bool = False
    call_id: str = field(default_factory=lambda: new_id("call"))

    def new_call(self, agent: Agent | None) -> NewCall:
        """Return the call's record; ``agent``: the one that joins, which depends on the room."""
        return NewCall(
            id=self.call_id,
            auth_id=self.principal.auth_id,
            direction="outbound",
            room_name=self.room_name,
            participant_identity=self.participant_identity,
            from_number=self.from_number,
            to_number=self.to_number,
            max_duration_ms=self.max_duration_s * 1000,
            agent=agent,
            phone_number_id=self.phone_number_id,
            own_trunk=sealable(self.trunk) if self.own_trunk else None,
            metadata=self.metadata,
            record=self.record,
        )

    def dial(self, agent: Agent | None) -> DialRequest:
        return DialRequest(
            trunk=self.trunk,
            from_number=self.from_number,
            to_number=self.to_number,
            room_name=self.room_name,
            participant_identity=self.participant_identity,
            participant_name=self.participant_name,
            attributes=Leg("callee", self.call_id).attributes,
            headers=self.headers,
            dtmf=self.dtmf,
            ringing_timeout_s=self.ringing_timeout_s,
            max_call_duration_s=self.max_duration_s + (_BACKSTOP_S if agent else 0),
        )
