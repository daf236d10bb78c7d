"""Finds the trunk and the dispatch rule of an incoming call. Sans-I/O.

The order is livekit-server's: a trunk for the called number before one for all numbers; a rule
for the trunk before one for all trunks; then direct before individual before callee, each with
a penalty for a missing caller or called filter.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from livekit.protocol.sip import SIPDispatchRuleInfo, SIPInboundTrunkInfo

_NUMBER: Final = re.compile(r"\+?[\d\- ()]+", re.ASCII)
_FORMATTING: Final = str.maketrans("", "", " -()")

_KIND_PRIORITY: Final = {
    "dispatch_rule_direct": 0,
    "dispatch_rule_individual": 1,
    "dispatch_rule_callee": 2,
}
_FILTER_PENALTY: Final = 1000


@dataclass(frozen=True, slots=True)
class Invite:
    """An incoming call. ``source_ip`` is empty if unknown."""

    caller: str
    caller_host: str
    called: str
    source_ip: str


@dataclass(frozen=True, slots=True)
class Place:
    """The room of a matched call, and its participant there."""

    room: str
    identity: str
    name: str
    attributes: dict[str, str]


def normalize(number: str) -> str:
    """Return ``+`` and digits; a string that is not a phone number stays as it is."""
    if not _NUMBER.fullmatch(number):
        return number
    return "+" + number.translate(_FORMATTING).lstrip("+")


def normalized(numbers: Iterable[str]) -> set[str]:
    return {normalize(number) for number in numbers}


def match_trunk(
    trunks: Iterable[SIPInboundTrunkInfo], invite: Invite
) -> SIPInboundTrunkInfo | None:
    """Return the trunk for the called number, else one for all numbers."""
    default = None
    for trunk in trunks:
        if trunk.allowed_numbers and normalize(invite.caller) not in normalized(
            trunk.allowed_numbers
        ):
            continue
        if trunk.allowed_addresses and not _from_allowed(invite, trunk.allowed_addresses):
            continue
        if not trunk.numbers:
            default = default or trunk
        elif normalize(invite.called) in normalized(trunk.numbers):
            return trunk
    return default


def match_rule(
    rules: Iterable[SIPDispatchRuleInfo], trunk: SIPInboundTrunkInfo | None, invite: Invite
) -> SIPDispatchRuleInfo | None:
    """Return the best rule. Number filters match exactly, as livekit-server's do."""
    specific: list[SIPDispatchRuleInfo] = []
    default: list[SIPDispatchRuleInfo] = []
    for rule in rules:
        if rule.inbound_numbers and invite.caller not in rule.inbound_numbers:
            continue
        if rule.numbers and invite.called not in rule.numbers:
            continue
        if not rule.trunk_ids:
            default.append(rule)
        elif trunk is not None and trunk.sip_trunk_id in rule.trunk_ids:
            specific.append(rule)
    candidates = specific or default
    return min(candidates, key=lambda rule: (priority(rule), room_of(rule)), default=None)


def priority(rule: SIPDispatchRuleInfo) -> int:
    """Return the rule's rank; the lowest wins."""
    kind = rule.rule.WhichOneof("rule")
    result = _KIND_PRIORITY.get(kind or "", 99)
    if not pin_of(rule):
        result += 100
    if not rule.inbound_numbers:
        result += _FILTER_PENALTY
    if not rule.numbers:
        result += _FILTER_PENALTY
    return result


def pin_of(rule: SIPDispatchRuleInfo) -> str:
    kind = rule.rule.WhichOneof("rule")
    return str(getattr(rule.rule, kind).pin) if kind else ""


def room_of(rule: SIPDispatchRuleInfo) -> str:
    """Return the room's name, or its prefix."""
    match rule.rule.WhichOneof("rule"):
        case "dispatch_rule_direct":
            return rule.rule.dispatch_rule_direct.room_name
        case "dispatch_rule_individual":
            return rule.rule.dispatch_rule_individual.room_prefix
        case "dispatch_rule_callee":
            return rule.rule.dispatch_rule_callee.room_prefix
        case _:
            return ""


def place(
    rule: SIPDispatchRuleInfo, trunk: SIPInboundTrunkInfo | None, invite: Invite, call_id: str
) -> Place:
    """Return the room, identity and attributes that ``rule`` gives the call."""
    caller = invite.caller
    identity = f"sip_{caller}"
    attributes = dict(rule.attributes)
    attributes["sip.callID"] = call_id
    attributes["sip.trunkID"] = trunk.sip_trunk_id if trunk else ""
    attributes["sip.ruleID"] = rule.sip_dispatch_rule_id
    if rule.hide_phone_number:
        identity = "sip_" + hashlib.sha256(caller.encode()).hexdigest()[:16]
        caller = caller[-4:] if len(caller) > 4 else caller[-1:]
    else:
        attributes["sip.phoneNumber"] = invite.caller
        attributes["sip.hostname"] = invite.caller_host
        attributes["sip.trunkPhoneNumber"] = invite.called
    room = room_of(rule)
    match rule.rule.WhichOneof("rule"):
        case "dispatch_rule_individual":
            room = f"{room}_{caller}" if room else caller
            if not rule.rule.dispatch_rule_individual.no_randomness:
                room += f"_{secrets.token_urlsafe(9)}"
        case "dispatch_rule_callee":
            room = f"{room}_{invite.called}" if room else invite.called
            if rule.rule.dispatch_rule_callee.randomize:
                room += f"_{secrets.token_urlsafe(9)}"
    return Place(room, identity, f"Phone {caller}", attributes)


def conflicting_trunk(
    new: SIPInboundTrunkInfo, others: Iterable[SIPInboundTrunkInfo]
) -> SIPInboundTrunkInfo | None:
    """Return a trunk that would take the same calls: it shares a number and a caller."""
    for other in others:
        numbers = normalized(new.numbers), normalized(other.numbers)
        callers = normalized(new.allowed_numbers), normalized(other.allowed_numbers)
        if _overlap(*numbers) and _overlap(*callers):
            return other
    return None


def conflicting_rule(
    new: SIPDispatchRuleInfo, others: Iterable[SIPDispatchRuleInfo]
) -> SIPDispatchRuleInfo | None:
    """Return a rule for the same combination of trunk, caller, called number and PIN."""
    for other in others:
        if (
            pin_of(new) == pin_of(other)
            and _overlap(set(new.trunk_ids), set(other.trunk_ids))
            and _overlap(normalized(new.inbound_numbers), normalized(other.inbound_numbers))
            and _overlap(normalized(new.numbers), normalized(other.numbers))
        ):
            return other
    return None


def _overlap(one: set[str], two: set[str]) -> bool:
    # "All" conflicts only with "all", as a specific entry takes precedence.
    return bool(one & two) or (not one and not two)


def _from_allowed(invite: Invite, masks: Iterable[str]) -> bool:
    """Return True if the call comes from one of the addresses or networks.

    livekit-server also accepts the host in From, which anyone can forge.
    """
    try:
        source = ipaddress.ip_address(invite.source_ip)
    except ValueError:
        return False
    # A dual-stack socket names an IPv4 sender ::ffff:a.b.c.d. No other wrapping counts: the
    # sender at a 6to4 address is not at the IPv4 address in it.
    mapped = source.ipv4_mapped if isinstance(source, ipaddress.IPv6Address) else None
    for mask in masks:
        try:
            network = ipaddress.ip_network(mask, strict=False)
        except ValueError:
            continue  # a host name: matches nothing
        if source in network or (mapped is not None and mapped in network):
            return True
    return False
