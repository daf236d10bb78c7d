"""``dry_run`` of ``POST /sip/call``: describe the call that would be placed, without placing it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from gateway.calls.plan import CallPlan
from sip.dial import Transport


class _Policy(BaseModel):
    allowed: bool
    reason: str | None


class _Sip(BaseModel):
    outbound_address: str
    outbound_address_from: Literal["request", "settings"]
    auth_username: str | None
    auth_password: Literal["[redacted]"] | None
    transport: Transport


class _Agent(BaseModel):
    id: str
    version: int
    chosen_by: Literal["request", "default"]


class DryRun(BaseModel):
    """The call that would be placed; nothing was dialled. Contains no secrets."""

    status: Literal["dry_run"]
    room_name: str
    room: Literal["exists", "would be created"]
    participant_identity: str
    from_phone_number: str
    to_phone_number: str
    policy: _Policy = Field(description="The destination policy's decision.")
    sip: _Sip
    agent: _Agent | None
    ringing_timeout_s: int
    max_duration_s: int
    headers: dict[str, str]
    dtmf: str
    metadata: dict[str, Any]
    record: bool


def explain(
    plan: CallPlan, *, own_address: bool, room_exists: bool, objection: str | None
) -> DryRun:
    """Describe ``plan``. ``own_address``: the request chose the host; ``objection``: if refused."""
    return DryRun(
        status="dry_run",
        room_name=plan.room_name,
        room="exists" if room_exists else "would be created",
        participant_identity=plan.participant_identity,
        from_phone_number=plan.from_number,
        to_phone_number=plan.to_number,
        policy=_Policy(allowed=objection is None, reason=objection),
        sip=_Sip(
            outbound_address=plan.trunk.address,
            outbound_address_from="request" if own_address else "settings",
            auth_username=plan.trunk.username,
            auth_password="[redacted]" if plan.trunk.password is not None else None,
            transport=plan.trunk.transport,
        ),
        agent=None
        if plan.agent is None
        else _Agent(
            id=plan.agent.id,
            version=plan.agent.version,
            chosen_by="request" if plan.agent_named else "default",
        ),
        ringing_timeout_s=plan.ringing_timeout_s,
        max_duration_s=plan.max_duration_s,
        headers=dict(plan.headers),
        dtmf=plan.dtmf,
        metadata=dict(plan.metadata),
        record=plan.record,
    )
