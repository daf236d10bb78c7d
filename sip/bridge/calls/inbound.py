"""Inbound calls: from an INVITE to a room, ringing until the room has an audio track."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

import baresip

from core.tasks.first_of import first_of
from sip.bridge import matching
from sip.bridge.calls import attributes
from sip.bridge.calls.call import Call
from sip.bridge.calls.inbound_limits import Admission, Ticket
from sip.bridge.calls.outbound import RINGING_TIMEOUT_S
from sip.bridge.calls.turns import Turns
from sip.bridge.ids import new_id
from sip.bridge.matching import Invite
from sip.bridge.registry import Registry
from sip.bridge.stack.endpoint import Endpoint
from sip.bridge.stack.phone import PhoneCall
from sip.endings import INTERNAL_ERROR, NOBODY_IN_ROOM, PHONE_HUNG_UP, Ending
from sip.far_end import LONGEST_ID, told
from sip.participant import LiveKit, Participant

log = logging.getLogger(__name__)

_ADDRESS: Final = re.compile(r"sips?:(?:([^@>;]*)@)?(\[[^\]]+\]|[^:;>?]+)", re.IGNORECASE)


# Stands for a caller without a printable name (RFC 3323's name for callers who withhold theirs).
ANONYMOUS: Final = "anonymous"


def parse_address(value: str) -> tuple[str | None, str]:
    """Return user and host of a From or To header, or of a bare SIP URI.

    Both are empty if ``value`` is neither; the user is None if it is not printable text.
    """
    match = _ADDRESS.search(value)
    if match is None:
        return "", ""
    user = unquote(match[1] or "")
    return told(user) if user else "", told(match[2], LONGEST_ID) or ""


@dataclass(frozen=True, slots=True)
class Placed:
    """An admitted call."""

    call: Call
    ringing_s: float
    longest_s: float


@dataclass(frozen=True, slots=True)
class Refused:
    """A call that is not admitted."""

    why: str


class Inbound:
    """Handles incoming calls: ``place`` finds the room or refuses, ``serve`` carries the call."""

    def __init__(
        self,
        endpoint: Endpoint,
        registry: Registry,
        livekit: LiveKit,
        admission: Admission,
        turns: Turns,
    ) -> None:
        self._endpoint = endpoint
        self._registry = registry
        self._livekit = livekit
        self._admission = admission
        self._turns = turns

    async def place(self, phone: PhoneCall, ticket: Ticket) -> Placed | Refused:
        """Find the call's trunk, rule and room. A refused call creates nothing."""
        dialog = await self._endpoint.dialog(phone.call_id)
        source_ip = dialog.opening.source_ip if dialog.opening is not None else ""
        if self._admission.slower(source_ip):
            return Refused("too many calls from one address")
        caller, caller_host = parse_address(phone.peer)
        called, _ = parse_address(phone.called)
        if called is None:
            return Refused("the called number is no text")
        invite = Invite(caller or ANONYMOUS, caller_host, called, source_ip)
        trunk = matching.match_trunk(self._registry.inbound.values(), invite)
        rule = matching.match_rule(self._registry.rules.values(), trunk, invite)
        facts = {"caller": invite.caller, "called": called, "source_ip": source_ip}
        if rule is None:
            return Refused("no trunk and rule")
        if trunk is not None and trunk.auth_username:
            # The SIP stack cannot challenge an INVITE, and admitting it unchecked would be worse.
            return Refused("the trunk asks for digest credentials")
        if not ticket.enter_trunk(trunk.sip_trunk_id if trunk is not None else ""):
            return Refused("too many unanswered calls of one trunk")
        call_id = new_id("SCL")
        where = matching.place(rule, trunk, invite, call_id)
        extra = {"sip.callStatus": "ringing"} | attributes.of_dialog(phone.call_id, dialog)
        ringing, longest = RINGING_TIMEOUT_S, 0.0
        if trunk is not None:
            extra |= attributes.of_headers(
                dialog.remote_headers, trunk.include_headers, trunk.headers_to_attributes
            )
            ringing = trunk.ringing_timeout.ToTimedelta().total_seconds() or ringing
            longest = trunk.max_call_duration.ToTimedelta().total_seconds()
        participant = Participant(
            room=where.room,
            identity=where.identity,
            name=where.name,
            metadata=rule.metadata,
            attributes=where.attributes | extra,
            room_config=rule.room_config if rule.HasField("room_config") else None,
        )
        log.info("incoming call", extra={**facts, "call_id": call_id, "room": where.room})
        return Placed(Call(call_id, participant, self._livekit), ringing, longest)

    async def serve(self, placed: Placed, phone: PhoneCall, ticket: Ticket) -> Ending:
        """Join, ring until the room has an audio track, answer and talk; return the ending.

        Raises TwirpError if the room cannot be joined, or the caller gives up meanwhile.
        """
        call = placed.call
        call.adopt(phone)

        def gave_up(_: asyncio.Future[str]) -> None:
            call.end(PHONE_HUNG_UP)

        phone.closed.add_done_callback(gave_up)
        try:
            await self._turns.join(call.room_leg)
            call.room_leg.subscribe()
            audible, _ = await first_of(
                call.room_leg.first_track(), call.over, timeout=placed.ringing_s
            )
        finally:
            phone.closed.remove_done_callback(gave_up)
        if call.over.done():
            return call.over.result()
        if not audible:
            return NOBODY_IN_ROOM
        try:
            await phone.answer()
        except baresip.BaresipError as error:
            log.warning("answering failed", extra={"call_id": call.id, "cause": str(error)})
            return PHONE_HUNG_UP if phone.closed.done() else INTERNAL_ERROR
        ticket.give_back()
        return await call.talk("", placed.longest_s)
