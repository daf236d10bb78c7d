"""``POST /sip/transfer``: transfer a call to another phone (SIP REFER)."""

from __future__ import annotations

from aiohttp import web
from google.protobuf.duration_pb2 import Duration
from livekit.protocol.models import ParticipantInfo
from livekit.protocol.sip import TransferSIPParticipantRequest
from pydantic import BaseModel, Field, StrictInt, StrictStr

from core.errors import Conflict
from gateway.api import faults
from gateway.api.livekit_rooms import (
    ParticipantRequest,
    find_participant,
    json_answer,
    no_participant,
)
from gateway.http.body import parse_body
from gateway.http.principal import PRINCIPAL
from gateway.http.route import Route
from gateway.keys import POLICY, SIP_GUARD, call_services
from sip.addresses import called_host, parse_transfer_target
from sip.refer import Referred, refer
from sip.twirp import livekit_errors


class TransferRequest(ParticipantRequest):
    transfer_to: StrictStr = Field(
        description="A phone number, tel:number or sip:user@host[:port], without parameters; "
        "the user: a number or a plain name.",
        examples=["+15551234567"],
    )
    ringing_timeout_s: StrictInt = Field(30, ge=1, le=75)


class TransferAnswer(BaseModel):
    status: Referred = Field(
        description="completed: the other phone has the call. initiated: no outcome in time."
    )
    room_name: str
    participant_identity: str
    transfer_to: str = Field(description="The URI referred to.", examples=["tel:+15551234567"])


async def create(request: web.Request) -> web.StreamResponse:
    """Refer the participant's phone to another one, and wait for the outcome."""
    body = await parse_body(request, TransferRequest)
    target = parse_transfer_target(body.transfer_to)
    tenant, host = request[PRINCIPAL].auth_id, called_host(target)
    request.app[POLICY].check(target, tenant=tenant is not None)
    if tenant is not None and host is not None:
        tls = target.startswith("sips:")
        await request.app[SIP_GUARD].check(host, tls=tls, tenant=tenant)
    sip = call_services(request.app).sip
    participant = await find_participant(request, body)
    if participant.kind != ParticipantInfo.Kind.SIP:
        raise Conflict("The participant is not a phone", code="NOT_A_SIP_PARTICIPANT")
    with livekit_errors(no_participant(), failed="CALL_FAILED"):
        status = await refer(
            sip,
            TransferSIPParticipantRequest(
                room_name=body.room_name,
                participant_identity=body.participant_identity,
                transfer_to=target,
                ringing_timeout=Duration(seconds=body.ringing_timeout_s),
            ),
        )
    return json_answer(
        TransferAnswer(
            status=status,
            room_name=body.room_name,
            participant_identity=body.participant_identity,
            transfer_to=target,
        )
    )


ROUTES: tuple[Route, ...] = (
    Route(
        "POST /sip/transfer",
        create,
        "Transfer a phone to another number (cold: REFER)",
        body=TransferRequest,
        answer=TransferAnswer,
        errors=(
            faults.INVALID_PHONE_NUMBER,
            (400, "INVALID_TRANSFER_TARGET"),
            faults.DESTINATION,
            *faults.NO_PARTICIPANT,
            (409, "NOT_A_SIP_PARTICIPANT"),
            faults.CALL_FAILED,
            faults.NOT_CONFIGURED,
        ),
    ),
)
