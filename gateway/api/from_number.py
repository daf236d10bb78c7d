"""Outbound calls from an attached number: /v1/calls and /api/v1/sessions."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from aiohttp import web
from pydantic import AfterValidator, StringConstraints
from pydantic_core import PydanticCustomError

from core.errors import Forbidden
from core.models import Agent, PhoneNumber, new_id
from gateway.calls.plan import CallPlan
from gateway.calls.trunks import (
    SipOverrides,
    chosen_trunk,
    has_a_say,
    outbound_trunk,
    with_credentials,
)
from gateway.http.principal import PRINCIPAL
from gateway.keys import CREDENTIALS, SETTINGS
from gateway.store.database import Principal

MAX_METADATA_BYTES = 16 * 1024
# The room is the call's own, so a fixed identity is unique in it.
_IDENTITY, _NAME = "phone", "Phone"

# ITU-T E.164 §6: at most 15 digits, and no country code begins with 0.
E164 = Annotated[str, StringConstraints(strict=True, pattern=r"^\+[1-9][0-9]{1,14}$")]


def _small(metadata: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(metadata)) > MAX_METADATA_BYTES:
        raise PydanticCustomError("too_long", f"larger than {MAX_METADATA_BYTES} bytes")
    return metadata


Metadata = Annotated[dict[str, Any], AfterValidator(_small)]
"""Stored unchanged on the call's record."""


def not_a_caller_id() -> Forbidden:
    """Return the one error for numbers that are not the tenant's and numbers that may not call."""
    return Forbidden("Calls cannot be made from this number", code="FROM_NUMBER_NOT_ALLOWED")


async def plan_from(
    request: web.Request,
    number: PhoneNumber,
    agent: Agent,
    to_number: str,
    metadata: dict[str, Any],
    sip: SipOverrides | None = None,
    *,
    record: bool,
) -> CallPlan:
    """Return the plan of a call from ``number``, owned by the number's tenant, in its own room.

    Raises BadRequest ``INVALID_OUTBOUND_ADDRESS``, ServerFault ``OUTBOUND_ADDRESS_NOT_CONFIGURED``.
    """
    settings = request.app[SETTINGS]
    # The one who asks; that may be the operator, for a tenant's number.
    tenant = request[PRINCIPAL].auth_id
    trunk = chosen_trunk(sip, settings.sip_outbound_transport, tenant)
    if trunk is None:
        usual = await outbound_trunk(number, request.app[CREDENTIALS], settings)
        trunk = with_credentials(usual, sip)
    call_id = new_id("call")
    return CallPlan(
        call_id=call_id,
        principal=Principal(number.auth_id),
        room_name=call_id,
        participant_identity=_IDENTITY,
        participant_name=_NAME,
        from_number=number.phone_number,
        to_number=to_number,
        trunk=trunk,
        own_trunk=has_a_say(sip),
        agent=agent,
        agent_named=True,
        phone_number_id=number.id,
        max_duration_s=math.ceil(agent.config.max_duration_ms / 1000),
        metadata=metadata,
        record=record,
    )
