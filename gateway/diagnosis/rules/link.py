"""The connection between agent and far end broke: the SIP service, LiveKit, another leg."""

from __future__ import annotations

from gateway.diagnosis.facts import Facts, text
from gateway.diagnosis.finding import Finding, Rule, Weight, evidence


def sip_service_lost(facts: Facts) -> Finding | None:
    end = facts.ended
    if end is None or facts.call.type == "stream":
        return None
    lost = facts.ends_with("cause", "leg_lost") or (
        facts.call.disconnection_reason == "agent_error"
        and facts.ends_with("disconnectReason", *_LOST)
    )
    if not lost:
        return None
    return Finding(
        "sip_service_lost",
        Weight.ENDED,
        "The phone's leg vanished without a hang-up: its SIP service died, or lost LiveKit.",
        "Look in the log of livekit-sip (or sip.bridge) for a restart, and at the network between "
        "it and LiveKit.",
        evidence(*facts.all("livekit.participant_left"), end),
    )


_LOST = ("CONNECTION_TIMEOUT", "MEDIA_FAILURE", "UNKNOWN_REASON", "SIGNAL_CLOSE", "JOIN_FAILURE")


def leg_replaced(facts: Facts) -> Finding | None:
    end = facts.ends_with("cause", "leg_replaced") or facts.ends_with(
        "disconnectReason", "DUPLICATE_IDENTITY"
    )
    if end is None:
        return None
    return Finding(
        "leg_replaced",
        Weight.ENDED,
        "Another participant joined the room under the phone's identity, which removed the phone.",
        "Use an identity of its own for every participant of a room.",
        evidence(*facts.all("livekit.participant_left"), end),
    )


def livekit_lost(facts: Facts) -> Finding | None:
    end = facts.ends_with("cause", "media_lost")
    if end is None:
        return None
    detail = text(end, "detail")
    return Finding(
        "livekit_lost",
        Weight.ENDED,
        f"The agent lost its connection to LiveKit for good{f' ({detail})' if detail else ''}.",
        "Look for a restart of livekit-server, and at the network between the worker and it.",
        evidence(facts.first("agent.joined"), end),
    )


RULES: tuple[Rule, ...] = (livekit_lost, leg_replaced, sip_service_lost)
