"""Dialling: one request to LiveKit's SIP API, one verdict.

The request waits for the answer, because only then does the API return the SIP status of a
refusal. Meanwhile this module looks the participant up, so that its ids are known as soon
as it is in the room (after 9 to 11 ms, sooner than from a request that does not wait).
A dial is never sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from livekit.api import LiveKitAPI, ServerError, SipCallError
from livekit.protocol.models import ParticipantInfo
from livekit.protocol.room import RoomParticipantIdentity
from livekit.protocol.sip import CreateSIPParticipantRequest, SIPOutboundConfig, SIPTransport

from core.models import DisconnectionReason, Status
from sip.guard import TENANT_DIAL, tenant_mark, with_port
from sip.leave import send_away

Transport = Literal["auto", "udp", "tcp", "tls"]

Problem = Literal[
    "authentication",  # the trunk refused the credentials, or asked for some
    "unresolved",  # the trunk's name has no address
    "no_response",  # nothing came back from the trunk's address, not even 100
    "not_sent",  # the connection to the trunk failed
    "not_allowed",  # the guard of SIP addresses refused the trunk's host
    "invalid_request",  # the SIP service refused the request as such
    "overloaded",  # the SIP service had no capacity
    "sip_service",  # the SIP service did not answer our request
    "livekit",  # LiveKit did not serve the call's room
]
"""Why a dial failed without a final SIP response."""

_TRANSPORTS: Mapping[Transport, SIPTransport] = {
    "auto": SIPTransport.SIP_TRANSPORT_AUTO,
    "udp": SIPTransport.SIP_TRANSPORT_UDP,
    "tcp": SIPTransport.SIP_TRANSPORT_TCP,
    "tls": SIPTransport.SIP_TRANSPORT_TLS,
}

# Look up often at first, when the participant is expected, then less and less.
_LOOKUP_FIRST_S, _LOOKUP_GROWTH, _LOOKUP_MAX_S = 0.004, 1.3, 0.25
_JOIN_DEADLINE_S = 10.0
# The SIP service's ringing time may seem this much shorter than the requested one.
_CLOCKS_S = 0.5
# The bridge's text, and those of Go's resolver, which livekit-sip passes on.
_UNRESOLVED = re.compile(r"resolve|lookup |no such host")
# The server ends a waiting request after 80 s; leave it time to report the outcome.
MAX_RINGING_S = 75


@dataclass(frozen=True, slots=True, kw_only=True)
class Trunk:
    """The trunk of an outbound call. ``address`` is host or host:port; no password is printed.

    ``country``: the one whose national numbers it dials (ISO 3166-1 alpha-2); None: unknown.
    ``tenant``: the one that chose the address, which sip.guard must allow; None: the operator.
    """

    address: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    transport: Transport = "auto"
    country: str | None = None
    tenant: str | None = None

    @property
    def tls(self) -> bool:
        return self.transport == "tls"


@dataclass(frozen=True, slots=True, kw_only=True)
class DialRequest:
    trunk: Trunk
    from_number: str
    to_number: str
    room_name: str
    participant_identity: str
    participant_name: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    dtmf: str = ""
    ringing_timeout_s: int = 30
    max_call_duration_s: int | None = None

    def to_proto(self) -> CreateSIPParticipantRequest:
        hostname, attributes = self.trunk.address, dict(self.attributes)
        if self.trunk.tenant is not None:
            hostname = with_port(hostname, tls=self.trunk.tls)
            attributes[TENANT_DIAL] = tenant_mark(self.trunk.tenant)
        request = CreateSIPParticipantRequest(
            trunk=SIPOutboundConfig(
                hostname=hostname,
                transport=_TRANSPORTS[self.trunk.transport],
                auth_username=self.trunk.username or "",
                auth_password=self.trunk.password or "",
            ),
            sip_call_to=self.to_number,
            sip_number=self.from_number,
            room_name=self.room_name,
            participant_identity=self.participant_identity,
            participant_name=self.participant_name,
            participant_attributes=attributes,
            headers=dict(self.headers),
            dtmf=self.dtmf,
            ringing_timeout=Duration(seconds=self.ringing_timeout_s),
            wait_until_answered=True,
        )
        if self.max_call_duration_s is not None:
            request.max_call_duration.FromSeconds(self.max_call_duration_s)
        return request


@dataclass(frozen=True, slots=True, kw_only=True)
class DialOutcome:
    """The verdict on one dial, for the call's record, the API's response and the metrics.

    ``status`` is None when the far end answered. ``overloaded``: nothing was sent.
    """

    status: Status | None = None
    reason: DisconnectionReason | None = None
    sip_status_code: int | None = None
    sip_reason: str | None = None
    problem: Problem | None = None
    """None: the far end gave a final response, or nothing is known."""

    @property
    def overloaded(self) -> bool:
        return self.problem == "overloaded"

    @property
    def answered(self) -> bool:
        return self.status is None


ANSWERED = DialOutcome()


@dataclass(frozen=True, slots=True)
class Joined:
    """The ids of a SIP participant that is in the room, or was; dialling has begun.

    Both are empty if the participant left before it could be looked up.
    """

    participant_id: str
    sip_call_id: str


class DialFailed(Exception):
    """The dial ended before its participant was seen in the room."""

    def __init__(self, outcome: DialOutcome) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


class Dial:
    """One dial in progress. Owns one task, which ``aclose`` or a verdict ends."""

    def __init__(self, sip: LiveKitAPI, rooms: LiveKitAPI, request: DialRequest) -> None:
        self._sip = sip
        self._rooms = rooms
        self._request = request
        self._whom = RoomParticipantIdentity(
            room=request.room_name, identity=request.participant_identity
        )
        self._task = asyncio.create_task(self._run(), name=f"dial {request.room_name}")
        self._ids: Joined | None = None

    async def joined(self) -> Joined:
        """Wait for the participant (usually ms). Raises DialFailed. Cancelling is safe."""
        delay = _LOOKUP_FIRST_S
        async with asyncio.timeout(_JOIN_DEADLINE_S):
            while True:
                await asyncio.wait({self._task}, timeout=delay)
                if self._ids is not None:
                    return self._ids
                if self._task.done():
                    raise DialFailed(self._task.result())
                if (participant := await self._lookup()) is not None:
                    return Joined(participant.sid, participant.attributes["sip.callID"])
                delay = min(delay * _LOOKUP_GROWTH, _LOOKUP_MAX_S)

    async def verdict(self) -> DialOutcome:
        """Wait for the far end's answer, little longer than the ringing time. Never raises."""
        return await asyncio.shield(self._task)

    async def call_status(self) -> str | None:
        """Return the participant's current ``sip.callStatus``; None if it is not in the room."""
        participant = await self._lookup()
        return participant.attributes.get("sip.callStatus") if participant else None

    async def cancel(self) -> None:
        """Stop ringing, or hang up. Dropping the HTTP request would do neither."""
        with contextlib.suppress(ServerError, aiohttp.ClientError, TimeoutError):
            await send_away(self._rooms, self._whom)

    async def abandon(self) -> None:
        """Hang up and stop waiting for the verdict."""
        await self.cancel()
        await self.aclose()

    async def aclose(self) -> None:
        """Stop waiting for the verdict; a ringing phone goes on ringing."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self) -> DialOutcome:
        started = time.monotonic()
        try:
            info = await self._sip.sip.create_sip_participant(self._request.to_proto())
        except ServerError as error:
            rang_s = time.monotonic() - started
            self._ids = _ids_of_refused(error)
            outcome = _refused(error, gave_up=rang_s < self._request.ringing_timeout_s - _CLOCKS_S)
            told = outcome.sip_status_code is not None or outcome.reason != "dial_failed"
            return outcome if told else await self._unless_answered(outcome)
        except TimeoutError:
            no_answer = DialOutcome(status="no-answer", reason="dial_no_answer")
            return await self._unless_answered(no_answer)
        except (aiohttp.ClientError, DecodeError, AttributeError):
            # The last two: not a SIP API, so the SDK cannot read the response.
            failed = DialOutcome(status="failed", reason="dial_failed", problem="sip_service")
            return await self._unless_answered(failed)
        self._ids = Joined(info.participant_id, info.sip_call_id)
        return ANSWERED

    async def _unless_answered(self, outcome: DialOutcome) -> DialOutcome:
        """Ask the room whether the phone was answered: the request failed, perhaps not the dial.

        If unanswered, cancel: nobody is left to talk to the callee.
        """
        if await self.call_status() == "active":
            return ANSWERED
        await self.cancel()
        return outcome

    async def _lookup(self) -> ParticipantInfo | None:
        """Return the participant, once it has its call id; None until then."""
        try:
            found = await self._rooms.room.get_participant(self._whom)
        except (ServerError, aiohttp.ClientError, TimeoutError):
            return None
        return found if found.attributes.get("sip.callID") else None


def _ids_of_refused(error: ServerError) -> Joined | None:
    """Return the ids of a participant that left after a fast refusal, before it was looked up.

    The far end was reached, so this was a call. Our bridge adds the ids to the error;
    livekit-sip does not, so they stay empty.
    """
    if not isinstance(error, SipCallError) or error.sip_status_code is None:
        return None
    meta = error.metadata
    return Joined(meta.get("participant_id", ""), meta.get("sip_call_id", ""))


def _refused(error: ServerError, *, gave_up: bool) -> DialOutcome:
    """Turn LiveKit's error into a verdict (measured with livekit-sip 1.10).

    ``gave_up``: the ringing time was not over, so a canceled dial was canceled by our side
    (the participant was removed, or the room deleted).
    """
    code = error.sip_status_code if isinstance(error, SipCallError) else None
    if code is not None:
        phrase = error.sip_status if isinstance(error, SipCallError) else None
        status, reason = by_sip_status(code)
        return DialOutcome(status=status, reason=reason, sip_status_code=code, sip_reason=phrase)
    match error.code:
        case "canceled" if "0 intermediate responses" in error.message:
            return DialOutcome(status="no-answer", reason="dial_no_answer", problem="no_response")
        case "canceled" if gave_up:
            return DialOutcome(status="canceled", reason="canceled")
        case "canceled" | "deadline_exceeded":
            return DialOutcome(status="no-answer", reason="dial_no_answer")
        case "failed_precondition" if "deadline" in error.message:
            # A ringing time-out with the wrong code (livekit/sip#857).
            return DialOutcome(status="no-answer", reason="dial_no_answer")
        case "failed_precondition" if "auth" in error.message or "credentials" in error.message:
            # The trunk's digest challenge failed: credentials missing or wrong. The SIP
            # service does not report the final response (401, 403 or 407).
            return DialOutcome(
                status="failed",
                reason="dial_rejected",
                sip_reason="Authentication failed",
                problem="authentication",
            )
    return DialOutcome(status="failed", reason="dial_failed", problem=_problem(error))


def _problem(error: ServerError) -> Problem | None:
    match error.code:
        case "resource_exhausted" | "unavailable":
            return "overloaded"
        case "permission_denied":
            return "not_allowed"
        case "invalid_argument" | "malformed" if _UNRESOLVED.search(error.message):
            return "unresolved"
        case "invalid_argument" | "malformed":
            return "invalid_request"
        case "failed_precondition" if "INVITE failed" in error.message:
            return "not_sent"
    return None


def by_sip_status(code: int) -> tuple[Status, DisconnectionReason]:
    """Map a final response (RFC 3261 §21) to a call status and its reason."""
    match code:
        case 486 | 600:
            return "busy", "dial_busy"
        case 408 | 480:
            return "no-answer", "dial_no_answer"
        case 487:
            return "canceled", "canceled"
        case 404 | 410 | 416 | 484 | 485 | 604:
            return "failed", "invalid_destination"
        case 403 | 433 | 603 | 607 | 608:
            return "failed", "dial_rejected"
    return "failed", "dial_failed"
