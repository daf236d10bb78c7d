"""Inbound calls: from an INVITE to a room, ringing until there is something to hear in it."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any, Final
from urllib.parse import unquote

import baresip

from sip.bridge import attributes, matching
from sip.bridge.call import (
    INTERNAL_ERROR,
    NOBODY_IN_ROOM,
    PHONE_HUNG_UP,
    Call,
    Ending,
    LiveKit,
    Participant,
)
from sip.bridge.endpoint import Endpoint
from sip.bridge.matching import Invite
from sip.bridge.outbound import RINGING_TIMEOUT_S, new_id
from sip.bridge.phone import PhoneCall
from sip.bridge.registry import Registry

log = logging.getLogger(__name__)

_ADDRESS: Final = re.compile(r"sips?:(?:([^@>;]*)@)?(\[[^\]]+\]|[^:;>?]+)", re.IGNORECASE)


def parse_address(value: str) -> tuple[str, str]:
    """User and host of a From or To header, or of a bare SIP URI; empty when it is neither."""
    match = _ADDRESS.search(value)
    return (unquote(match[1] or ""), match[2]) if match else ("", "")


class Inbound:
    """Takes what the endpoint receives; ``handle`` is one call from INVITE to its end."""

    def __init__(self, endpoint: Endpoint, registry: Registry, livekit: LiveKit) -> None:
        self._endpoint = endpoint
        self._registry = registry
        self._livekit = livekit

    async def place(self, phone: PhoneCall) -> tuple[Call, float, float] | None:
        """The call, its ringing timeout and its longest duration (s); None: refuse it."""
        dialog = await self._endpoint.dialog(phone.call_id)
        caller, caller_host = parse_address(phone.peer)
        called, _ = parse_address(phone.called)
        source_ip = dialog.opening.source_ip if dialog.opening is not None else ""
        invite = Invite(caller, caller_host, called, source_ip)
        trunk = matching.match_trunk(self._registry.inbound.values(), invite)
        rule = matching.match_rule(self._registry.rules.values(), trunk, invite)
        facts = {"caller": caller, "called": called, "source_ip": source_ip}
        if rule is None:
            log.warning("no trunk and rule for an incoming call", extra=facts)
            return None
        if trunk is not None and trunk.auth_username:
            # The SIP stack cannot challenge an INVITE; letting it in unchecked would be worse.
            log.warning("the trunk asks for digest credentials: call refused", extra=facts)
            return None
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
        return Call(call_id, participant, self._livekit), ringing, longest

    async def serve(
        self, call: Call, phone: PhoneCall, ringing_s: float, longest_s: float
    ) -> Ending:
        """Join, let it ring until the room can be heard, answer, talk; the ending."""
        call.adopt(phone)
        await call.join()
        call.subscribe()
        heard = asyncio.ensure_future(call.first_track())
        try:
            outcomes: set[asyncio.Future[Any]] = {heard, phone.closed, call.over}
            await asyncio.wait(outcomes, timeout=ringing_s, return_when=asyncio.FIRST_COMPLETED)
            audible = heard.done()
        finally:
            heard.cancel()
        if call.over.done():
            return call.over.result()
        if phone.closed.done():
            return PHONE_HUNG_UP
        if not audible:
            return NOBODY_IN_ROOM
        try:
            await phone.answer()
        except baresip.BaresipError as error:
            log.warning("answering failed", extra={"call_id": call.id, "cause": str(error)})
            return PHONE_HUNG_UP if phone.closed.done() else INTERNAL_ERROR
        return await call.talk("", longest_s)
