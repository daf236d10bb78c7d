"""Outbound calls: from a CreateSIPParticipant request to an answered phone, or a verdict."""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import baresip
from livekit.protocol.sip import (
    CreateSIPParticipantRequest,
    SIPHeaderOptions,
    SIPOutboundTrunkInfo,
    SIPTransport,
)

from core.tasks.first_of import first_of
from sip.addresses import parse_outbound_address
from sip.bridge import validation
from sip.bridge.calls import attributes, verdict
from sip.bridge.calls.call import Call
from sip.bridge.calls.verdict import Verdict
from sip.bridge.ids import new_id
from sip.bridge.stack.endpoint import Endpoint, Identity, TooManyIdentities
from sip.bridge.stack.phone import PhoneCall
from sip.bridge.twirp import TwirpError
from sip.endings import Ending
from sip.guard import TENANT_DIAL, AddressRefused, SipGuard
from sip.participant import Participant

# livekit-sip's default, and livekit-server's cap on a request that waits for the answer.
RINGING_TIMEOUT_S: Final = 180.0
WAIT_CAP_S: Final = 80.0
# Subscribe to the room's audio while the phone rings, so that the answer need not wait for it. Not
# at once: the client may first want to restrict what this participant may hear.
SUBSCRIBE_AFTER_S: Final = 0.5

_TRANSPORTS: Final[Mapping[int, Literal["udp", "tcp", "tls"]]] = {
    SIPTransport.SIP_TRANSPORT_AUTO: "udp",
    SIPTransport.SIP_TRANSPORT_UDP: "udp",
    SIPTransport.SIP_TRANSPORT_TCP: "tcp",
    SIPTransport.SIP_TRANSPORT_TLS: "tls",
}


@dataclass(frozen=True, slots=True)
class Dial:
    """The validated parameters of one outbound call."""

    call_id: str
    participant: Participant
    identity: Identity
    uri: str
    hostname: str
    tenant: str | None
    """The mark of the tenant that chose the address; None: the operator."""
    headers: Mapping[str, str]
    attributes_to_headers: Mapping[str, str]
    headers_to_attributes: Mapping[str, str]
    include_headers: int
    dtmf: str
    ringing_timeout_s: float
    max_duration_s: float
    media_timeout_s: float


def plan(
    request: CreateSIPParticipantRequest, trunk: SIPOutboundTrunkInfo | None, local_host: str
) -> Dial:
    """Check ``request`` and merge it with its stored ``trunk``, which wins over an inline one.

    Raises TwirpError ``invalid_argument``, ``failed_precondition`` or ``unimplemented``.
    """
    if not request.sip_trunk_id and not request.HasField("trunk"):
        raise validation.invalid("missing sip trunk id and sip number")
    if not request.sip_call_to:
        raise validation.invalid("missing sip callee number")
    if not request.room_name:
        raise validation.invalid("missing room name")
    for name in ("sip_request_uri", "sip_to_header", "sip_from_header"):
        if request.HasField(name):
            raise TwirpError("unimplemented", f"{name} is not supported by this service")
    if request.to_user_override:
        raise TwirpError("unimplemented", "to_user_override is not supported by this service")
    validation.media(request.media, request.media_encryption)
    called = validation.user(request.sip_call_to, "SipCallTo")
    source = request.trunk if trunk is None else trunk
    hostname = request.trunk.hostname if trunk is None else trunk.address
    validation.host(hostname, "trunk hostname")
    if source.from_host:
        validation.host(source.from_host, "from_host")
    number = request.sip_number or (random.choice(trunk.numbers) if trunk and trunk.numbers else "")
    if not number:
        raise TwirpError("failed_precondition", "no numbers on outbound trunk")
    validation.user(number, "SipNumber")
    headers = validation.headers({**(trunk.headers if trunk else {}), **request.headers})
    include = request.include_headers or (
        trunk.include_headers if trunk else SIPHeaderOptions.SIP_NO_HEADERS
    )
    # Absent: the number is shown; present but empty: no name is.
    shown = validation.display_name(
        request.display_name if request.HasField("display_name") else number
    )
    call_id = new_id("SCL")
    transport = _TRANSPORTS[source.transport]
    ringing = request.ringing_timeout.ToTimedelta().total_seconds() or RINGING_TIMEOUT_S
    return Dial(
        call_id=call_id,
        participant=Participant(
            room=request.room_name,
            identity=request.participant_identity or f"sip_{called}",
            name=request.participant_name,
            metadata=request.participant_metadata,
            attributes=_attributes(request, call_id, hostname, number),
        ),
        identity=Identity(
            user=number,
            host=source.from_host or local_host,
            display_name=shown or None,
            transport=transport,
            auth_user=source.auth_username,
            auth_password=source.auth_password,
        ),
        uri=f"sip:{called.replace('#', '%23')}@{hostname};transport={transport}",
        hostname=hostname,
        tenant=request.participant_attributes.get(TENANT_DIAL),
        headers=headers,
        attributes_to_headers=dict(source.attributes_to_headers),
        headers_to_attributes=dict(source.headers_to_attributes),
        include_headers=include,
        dtmf=validation.dtmf(request.dtmf),
        ringing_timeout_s=min(ringing, WAIT_CAP_S) if request.wait_until_answered else ringing,
        max_duration_s=request.max_call_duration.ToTimedelta().total_seconds(),
        media_timeout_s=request.media.media_timeout.ToTimedelta().total_seconds(),
    )


def _attributes(
    request: CreateSIPParticipantRequest, call_id: str, hostname: str, number: str
) -> dict[str, str]:
    result = dict(request.participant_attributes)
    result.pop(TENANT_DIAL, None)
    result["sip.callID"] = call_id
    result["sip.trunkID"] = request.sip_trunk_id
    result["sip.callStatus"] = "dialing"
    if not request.hide_phone_number:
        result["sip.phoneNumber"] = request.sip_call_to
        result["sip.hostname"] = hostname
        result["sip.trunkPhoneNumber"] = number
    return result


async def checked_uri(order: Dial, guard: SipGuard, local_host: str) -> str:
    """Return the URI to dial; for a tenant's trunk, pinned to the address that was checked.

    Raises AddressRefused.
    """
    if order.tenant is None:
        return order.uri
    tls = order.identity.transport == "tls"
    found = await guard.check(order.hostname, tls=tls, tenant=order.tenant)
    if found == [parse_outbound_address(order.hostname).host]:
        return order.uri
    # Prefer the address family that we listen on, as the stack sends from that address.
    version = ipaddress.ip_address(local_host).version
    found.sort(key=lambda each: ipaddress.ip_address(each).version != version)
    # RFC 3261 §19.1.1: maddr overrides the host's address, and the host's name stays in the URI
    # for the trunk to read. The stack then makes no DNS query, not even for SRV records.
    return f"{order.uri};maddr={found[0]}"


async def dial(call: Call, order: Dial, endpoint: Endpoint, guard: SipGuard) -> Verdict | None:
    """Ring the phone; return None if it answered. The call may be ended meanwhile."""
    headers = dict(order.headers)
    for attribute, header in order.attributes_to_headers.items():
        if attribute in call.participant.attributes:
            headers[header] = call.participant.attributes[attribute]
    try:
        uri, _ = await first_of(checked_uri(order, guard, endpoint.host), call.over)
        if uri is None or call.over.done():
            return _ended(call)
        phone = await endpoint.dial(order.identity, uri, validation.headers(headers))
    except AddressRefused:
        return verdict.not_allowed()
    except TooManyIdentities:
        return verdict.exhausted()
    except TwirpError as error:
        return Verdict(error, verdict.canceled("").reason)
    except (ValueError, baresip.BaresipError) as error:
        return Verdict(validation.invalid(f"cannot dial: {error}"), verdict.canceled("").reason)
    call.adopt(phone)
    negotiation = asyncio.get_running_loop().call_later(SUBSCRIBE_AFTER_S, call.room_leg.subscribe)
    try:
        await first_of(
            phone.answered.wait(), phone.closed, call.over, timeout=order.ringing_timeout_s
        )
    finally:
        negotiation.cancel()
    call.room_leg.set_attributes(attributes.of_dialog(phone.call_id, endpoint.seen(phone.call_id)))
    if call.over.done():
        return _ended(call)
    if phone.closed.done():
        text = phone.closed.result()
        if not verdict.is_status_line(text):
            # For a redirection the stack has its own text; prefer the far end's status line.
            text = (await endpoint.dialog(phone.call_id)).status_line or text
        return verdict.refused(text)
    if not phone.answered.is_set():
        return verdict.unanswered()
    if order.tenant is None:
        return None
    stays, _, _ = await first_of(
        _stays_outside(phone, endpoint, guard, order.tenant), phone.closed, call.over
    )
    if call.over.done():
        return _ended(call)
    # On a refusal, the stack has sent its ACK there and will send its BYE, but there is no call.
    # (``stays`` is None if the phone has hung up: nothing more is sent.)
    return verdict.not_allowed() if stays is False else None


async def _stays_outside(
    phone: PhoneCall, endpoint: Endpoint, guard: SipGuard, tenant: str
) -> bool:
    """Return True if all further requests to the tenant's far end go to allowed addresses."""
    dialog = await endpoint.dialog(phone.call_id)
    try:
        for target in dialog.next_hops:
            # The far end also chooses the transport of further requests.
            await guard.check(target, tls=None, tenant=tenant)
    except AddressRefused:
        return False
    # No real phone answers without a usable Contact (RFC 3261 §12.1.1 requires one).
    return dialog.opening is None or bool(dialog.next_hops)


def _ended(call: Call) -> Verdict:
    return verdict.canceled(f"the call was ended: {call.over.result().cause}")


async def talk(call: Call, order: Dial, endpoint: Endpoint, *, dialled_for_s: float) -> Ending:
    """Run the call from the answer to its end; its maximum duration counts from the request."""
    assert call.phone is not None
    dialog = await endpoint.dialog(call.phone.call_id)
    call.room_leg.set_attributes(
        attributes.of_dialog(call.phone.call_id, dialog)
        | attributes.of_headers(
            dialog.remote_headers, order.include_headers, order.headers_to_attributes
        )
    )
    if order.media_timeout_s > 0:
        call.media_timeout_s = order.media_timeout_s
    longest = order.max_duration_s
    return await call.talk(order.dtmf, max(0.001, longest - dialled_for_s) if longest > 0 else 0)
