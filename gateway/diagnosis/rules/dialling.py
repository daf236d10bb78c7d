"""Calls that were placed and not answered: the trunk, the way to it, and the callee."""

from __future__ import annotations

from collections.abc import Container

from gateway.diagnosis.facts import Facts, text
from gateway.diagnosis.finding import Finding, Rule, Weight, evidence
from sip.dial import Problem

_CREDENTIALS = (
    "Compare the trunk's user name and password (the request's sip, the number's credential, or "
    "SIP_OUTBOUND_AUTH_USERNAME and _PASSWORD) with the provider's. Some providers know you by "
    "your IP address instead: then register it there."
)
_TRUNK_IS_DOWN = "If it happens again, ask the trunk's provider, with the SIP call id."


def _dialled(
    facts: Facts, code: str, cause: str, advice: str, unknown: str | None = None
) -> Finding:
    shown = evidence(facts.first("call.dialing"), facts.last("call.ringing"), facts.ended)
    return Finding(code, Weight.ENDED, cause, advice, shown, unknown)


def trunk_password(facts: Facts) -> Finding | None:
    by_status = facts.sip_status in (401, 407)
    if facts.unanswered_dial is None:
        return None
    if not by_status and not facts.ends_with("problem", "authentication"):
        return None
    return _dialled(
        facts,
        "trunk_password",
        "The trunk refused the call because its user name or password is wrong or missing.",
        _CREDENTIALS,
        None if by_status else "The SIP service does not report the trunk's final status.",
    )


def refused(
    code: str, statuses: Container[int], cause: str, advice: str, *, reason: str | None = None
) -> Rule:
    """Return a rule for these final responses; ``{sip}`` in ``cause`` is the response.

    ``reason``: the record's, which tells the same if there is no status.
    """

    def rule(facts: Facts) -> Finding | None:
        known = facts.sip_status in statuses or (
            facts.sip_status is None and facts.call.disconnection_reason == reason
        )
        if facts.unanswered_dial is None or not known:
            return None
        sip = f" ({facts.sip})" if facts.sip else ""
        return _dialled(facts, code, cause.format(sip=sip), advice)

    rule.__name__ = code
    return rule


def failed(problem: Problem, code: str, cause: str, advice: str) -> Rule:
    """Return a rule for a dial that failed without a final response."""

    def rule(facts: Facts) -> Finding | None:
        if facts.unanswered_dial is None or not facts.ends_with("problem", problem):
            return None
        return _dialled(facts, code, cause, advice)

    rule.__name__ = code
    return rule


def gateway_restarted(facts: Facts) -> Finding | None:
    notes = ("never dialled", "found gone before an answer was seen", "left behind")
    if facts.unanswered_dial is None or not facts.ends_with("note", *notes):
        return None
    return _dialled(
        facts,
        "gateway_restarted",
        "The gateway that placed the call stopped before the call's outcome was known.",
        "Look in the gateway's log for a restart at this time. Nothing was dialled twice: place "
        "the call again if nobody was reached.",
        "Whether the phone rang, and how the callee's side ended it, was not seen."
        if facts.first("call.dialing")
        else None,
    )


def no_answer(facts: Facts) -> Finding | None:
    end = facts.unanswered_dial
    if end is None or facts.call.disconnection_reason != "dial_no_answer":
        return None
    rang = facts.first("call.ringing")
    return _dialled(
        facts,
        "no_answer",
        "The phone rang and nobody answered."
        if rang
        else f"Nobody answered in time{f' ({facts.sip})' if facts.sip else ''}.",
        "Try at another time, or let it ring for longer (ringing_timeout_s).",
        None if rang else "No ringing was seen: the phone may be switched off or out of reach.",
    )


def placed_by_twilio(facts: Facts) -> Finding | None:
    note = text(facts.unanswered_dial, "note")
    if note is None or facts.call.type != "stream" or not note.startswith("Twilio error"):
        return None
    return _dialled(
        facts,
        "twilio_refused",
        f"Twilio did not place the call: {note}.",
        "Look up the error's number at twilio.com/docs/api/errors. Often the number may not be "
        "called from this account (geographic permissions), or the caller ID is not the account's.",
    )


def canceled(facts: Facts) -> Finding | None:
    end = facts.unanswered_dial
    if end is None or facts.call.status != "canceled":
        return None
    by_api = facts.ends_with("by", "api") is not None
    return Finding(
        "canceled",
        Weight.CLOSED,
        "The API ended the call before it was answered."
        if by_api
        else "The call was canceled before it was answered.",
        "Nothing is to be repaired: the request that ended it came from your side."
        if by_api
        else "Look for what removed the phone's participant from the room, or deleted the room.",
        evidence(facts.first("call.ringing"), end),
        None if by_api else "The timeline does not say who canceled it.",
    )


RULES: tuple[Rule, ...] = (
    placed_by_twilio,
    trunk_password,
    failed(
        "unresolved",
        "trunk_unresolved",
        "The trunk's name has no address: DNS does not resolve it.",
        "Check the spelling of the trunk's host (outbound_address, or SIP_OUTBOUND_ADDRESS), and "
        "resolve it on the machine of the SIP service.",
    ),
    failed(
        "no_response",
        "trunk_silent",
        "Nothing came back from the trunk's address, not even a provisional response.",
        "Check the trunk's host, port and transport, and that no firewall drops the packets in "
        "either direction. The provider may ignore addresses that it does not know.",
    ),
    failed(
        "not_sent",
        "trunk_unreachable",
        "The INVITE could not be sent: the connection to the trunk failed.",
        "Check the trunk's port and transport (udp, tcp, tls), and its certificate for tls.",
    ),
    failed(
        "not_allowed",
        "trunk_not_allowed",
        "The trunk's host leads to an address where tenants may not send SIP.",
        "Name a host with public addresses. An operator may allow a network with "
        "SIP_ALLOWED_NETWORKS.",
    ),
    failed(
        "overloaded",
        "sip_service_full",
        "The SIP service had no capacity for the call, and nothing was sent.",
        "Repeat it later, or add a node of the SIP service.",
    ),
    failed(
        "sip_service",
        "sip_service_away",
        "The SIP service could not be reached.",
        "Check that livekit-sip (or sip.bridge) runs, and LIVEKIT_SIP_URL and LIVEKIT_URL.",
    ),
    failed(
        "livekit",
        "livekit_away",
        "LiveKit did not serve the call's room, and nothing was dialled.",
        "Check that livekit-server runs, and LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET.",
    ),
    failed(
        "invalid_request",
        "sip_request_invalid",
        "The SIP service refused the call's parameters.",
        "Its log names the parameter. Check the caller ID, the headers and the trunk's host.",
    ),
    gateway_restarted,
    refused(
        "callee_busy",
        {486, 600},
        "The callee was busy{sip}.",
        "Call again later.",
        reason="dial_busy",
    ),
    refused(
        "callee_declined",
        {603, 607, 608},
        "The callee, or a network on the way, declined the call{sip}.",
        "If every call is declined, the network takes you for spam: check the caller ID's "
        "registration (STIR/SHAKEN, branded calling). Otherwise the callee did not want it.",
    ),
    refused(
        "trunk_forbids",
        {403, 433},
        "The trunk refused the call{sip}.",
        "Usually the caller ID is not verified with the provider, the destination is not enabled, "
        "or the account has no credit. The provider's log has the reason.",
    ),
    refused(
        "no_route",
        {404, 410, 416, 484, 485, 604},
        "There is no route to the number{sip}: it does not exist, or the trunk cannot reach it.",
        "Check the number, and the form that the trunk expects (with +, with the national prefix).",
        reason="invalid_destination",
    ),
    refused(
        "codec_refused",
        {415, 488, 606},
        "The far end accepts none of the offered codecs or media settings{sip}.",
        "Enable PCMU or PCMA on the trunk, and agree on media encryption (SRTP) on both sides.",
    ),
    refused(
        "trunk_failed",
        range(500, 600),
        "The trunk could not serve the call{sip}.",
        _TRUNK_IS_DOWN,
    ),
    no_answer,
    canceled,
)
