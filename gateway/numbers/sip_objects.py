"""The inbound trunks and dispatch rules of numbers in LiveKit's SIP service."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message
from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.sip import (
    CreateSIPInboundTrunkRequest,
    DeleteSIPDispatchRuleRequest,
    DeleteSIPTrunkRequest,
    ListSIPDispatchRuleRequest,
    ListSIPInboundTrunkRequest,
    SIPDispatchRuleInfo,
    SIPInboundTrunkInfo,
)

from core.errors import Conflict, NotFound
from core.models import PhoneNumber
from sip import dispatch, trunks
from sip.twirp import livekit_errors


@dataclass(frozen=True, slots=True)
class Listing:
    """A snapshot of all objects by LiveKit's ids, including those of other applications."""

    trunks: dict[str, SIPInboundTrunkInfo]
    rules: dict[str, SIPDispatchRuleInfo]


class SipObjects:
    """Creates, compares and removes SIP objects.

    Raises Unavailable ``LIVEKIT_UNAVAILABLE``, ServerFault ``LIVEKIT_ERROR``.
    """

    def __init__(self, sip: LiveKitAPI, agent_name: str, while_full_s: float = 0.0) -> None:
        """``while_full_s``: RING_WHILE_FULL_S."""
        self._sip = sip.sip
        self._agent_name = agent_name
        self._while_full_s = while_full_s

    async def listing(self) -> Listing:
        with livekit_errors():
            found = await self._sip.list_inbound_trunk(ListSIPInboundTrunkRequest())
            rules = await self._sip.list_dispatch_rule(ListSIPDispatchRuleRequest())
        return Listing(
            {trunk.sip_trunk_id: trunk for trunk in found.items},
            {rule.sip_dispatch_rule_id: rule for rule in rules.items},
        )

    def trunk_owner(self, trunk: SIPInboundTrunkInfo) -> str | None:
        """Return the id of the number that this installation made the trunk for, else None."""
        return trunks.number_id_of(trunk, self._agent_name)

    def rule_owner(self, rule: SIPDispatchRuleInfo) -> str | None:
        return dispatch.number_id_of(rule, self._agent_name)

    def right(self, number: PhoneNumber, there: Listing) -> bool:
        """Return True if the number's trunk and rule exist and are correct.

        The allowed addresses are not compared, since they are in an encrypted credential.
        """
        trunk = there.trunks.get(number.trunk_id or "")
        rule = there.rules.get(number.rule_id or "")
        if trunk is None or rule is None:
            return False
        name = self._agent_name
        wanted = dispatch.dispatch_rule(number, trunk.sip_trunk_id, agent_name=name)
        right = self._trunk(number, ())
        return _holds(trunk, right.trunk) and _holds(rule, wanted.dispatch_rule)

    async def put_trunk(
        self, number: PhoneNumber, allowed: Sequence[str], there: Listing | None = None
    ) -> str:
        """Create or correct the number's trunk, and return its id.

        Raises Conflict ``TRUNK_CONFLICT``.
        """
        request = self._trunk(number, allowed)
        known = self._known_trunk(number, there)
        with _refusals():
            if known is None:
                return (await self._sip.create_inbound_trunk(request)).sip_trunk_id
            if not _holds(known, request.trunk):
                await self._sip.update_inbound_trunk(known.sip_trunk_id, request.trunk)
            return known.sip_trunk_id

    async def put_rule(
        self, number: PhoneNumber, trunk_id: str, there: Listing | None = None
    ) -> str:
        """Create or correct the number's rule, and return its id."""
        request = dispatch.dispatch_rule(number, trunk_id, agent_name=self._agent_name)
        known = self._known_rule(number, there)
        with _refusals():
            if known is None:
                return (await self._sip.create_dispatch_rule(request)).sip_dispatch_rule_id
            if not _holds(known, request.dispatch_rule):
                await self._sip.update_dispatch_rule(
                    known.sip_dispatch_rule_id, request.dispatch_rule
                )
            return known.sip_dispatch_rule_id

    def _trunk(self, number: PhoneNumber, allowed: Sequence[str]) -> CreateSIPInboundTrunkRequest:
        return trunks.inbound_trunk(
            number,
            agent_name=self._agent_name,
            allowed_addresses=allowed,
            while_full_s=self._while_full_s,
        )

    def _known_trunk(
        self, number: PhoneNumber, there: Listing | None
    ) -> SIPInboundTrunkInfo | None:
        """Find the trunk by the row, else by its label if a crash came before it was noted."""
        if there is None:
            return None
        labelled = (t for t in there.trunks.values() if self.trunk_owner(t) == number.id)
        return there.trunks.get(number.trunk_id or "") or next(labelled, None)

    def _known_rule(self, number: PhoneNumber, there: Listing | None) -> SIPDispatchRuleInfo | None:
        if there is None:
            return None
        labelled = (r for r in there.rules.values() if self.rule_owner(r) == number.id)
        return there.rules.get(number.rule_id or "") or next(labelled, None)

    async def remove(self, number: PhoneNumber) -> None:
        """Remove all trunks and rules of the number, by its row or by their label."""
        there = await self.listing()
        for rule_id, rule in there.rules.items():
            if rule_id == number.rule_id or self.rule_owner(rule) == number.id:
                await self.remove_rule(rule_id)
        for trunk_id, trunk in there.trunks.items():
            if trunk_id == number.trunk_id or self.trunk_owner(trunk) == number.id:
                await self.remove_trunk(trunk_id)

    async def remove_rule(self, rule_id: str) -> None:
        """Delete a rule; ignore one that is already gone."""
        request = DeleteSIPDispatchRuleRequest(sip_dispatch_rule_id=rule_id)
        with contextlib.suppress(_Gone), livekit_errors(_Gone("Gone")):
            await self._sip.delete_dispatch_rule(request)

    async def remove_trunk(self, trunk_id: str) -> None:
        """Delete a trunk; ignore one that is already gone."""
        with contextlib.suppress(_Gone), livekit_errors(_Gone("Gone")):
            await self._sip.delete_trunk(DeleteSIPTrunkRequest(sip_trunk_id=trunk_id))


class _Gone(NotFound):
    pass


def _holds(there: Message, wanted: Message) -> bool:
    """Return True if every field set in ``wanted`` has the same value in ``there``.

    LiveKit may have set other fields.
    """
    for field, value in wanted.ListFields():
        found = getattr(there, field.name)
        if not (_holds(found, value) if isinstance(value, Message) else found == value):
            return False
    return True


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Raise Conflict if another application has made an inbound trunk for the number."""
    with livekit_errors():
        try:
            yield
        except ServerError as error:
            if error.code == "invalid_argument" and "onflict" in error.message:
                raise Conflict(
                    "LiveKit has another inbound trunk for this number; delete that one first",
                    code="TRUNK_CONFLICT",
                ) from None
            raise
