"""Calls that a person, a machine or a limit ended. Nothing broke, but it may not be as intended."""

from __future__ import annotations

from gateway.diagnosis.facts import Facts
from gateway.diagnosis.finding import Finding, Rule, Weight, evidence


def caller_gave_up(facts: Facts) -> Finding | None:
    call, end = facts.call, facts.ended
    if end is None or facts.answered or call.direction != "inbound":
        return None
    if (call.status, call.disconnection_reason) != ("canceled", "user_hangup"):
        return None
    rang_s = (facts.until - call.created_at).total_seconds()
    return Finding(
        "caller_gave_up",
        Weight.CLOSED,
        f"The caller hung up before the answer, after {rang_s:.1f} s of ringing.",
        "If it rang for more than a second or two, see when the agent joined: add workers, or "
        "raise WORKER_IDLE_PROCESSES."
        if rang_s > 2
        else "Nothing is to be repaired.",
        evidence(facts.first("call.ringing"), facts.first("agent.joined"), end),
    )


def inbound_canceled(facts: Facts) -> Finding | None:
    call, end = facts.call, facts.ended
    if end is None or facts.answered or call.direction == "outbound":
        return None
    if (call.status, call.disconnection_reason) != ("canceled", "canceled"):
        return None
    if facts.ends_with("note", "nobody came"):
        return None
    return Finding(
        "canceled",
        Weight.CLOSED,
        "The call was ended from our side before it was answered.",
        "Look for the request that ended it, or removed the participant, or deleted the room.",
        evidence(end),
        None if facts.ends_with("by", "api") else "The timeline does not say who ended it.",
    )


def silence(facts: Facts) -> Finding | None:
    if facts.call.disconnection_reason != "inactivity":
        return None
    heard = any(turn.transcript for turn in facts.turns)
    return Finding(
        "silence",
        Weight.CLOSED,
        "The call was ended because nobody spoke"
        + (" any more." if heard else ": the caller said nothing in the whole call."),
        "If callers need more time, raise maxSilenceMs, or set silencePrompts.",
        evidence(*facts.all("silence.prompted"), facts.ended),
        None if heard else "Whether the caller could hear the agent is not measured.",
    )


def voicemail(facts: Facts) -> Finding | None:
    reached = facts.call.disconnection_reason in ("voicemail_reached", "ivr_reached")
    if not reached:
        return None
    left = facts.first("voicemail.left")
    menu = facts.call.disconnection_reason == "ivr_reached"
    return Finding(
        "menu_reached" if menu else "voicemail_reached",
        Weight.CLOSED,
        "A telephone menu answered, and the agent's onIvr ended the call."
        if menu
        else "A voicemail box answered"
        + (", and the message was left." if left else ", and the agent hung up."),
        "Call again later. onVoicemail and onIvr say what the agent does then.",
        evidence(facts.first("machine.detected"), left, facts.ended),
    )


def longest_duration(facts: Facts) -> Finding | None:
    if facts.call.disconnection_reason != "max_duration_reached":
        return None
    return Finding(
        "max_duration",
        Weight.CLOSED,
        f"The call reached its longest duration ({facts.call.max_duration_ms / 1000:.0f} s).",
        "Raise the agent's maxDurationMs (or the request's), or set maxDurationWarning.",
        evidence(facts.first("call.answered"), facts.ended),
    )


def consent_refused(facts: Facts) -> Finding | None:
    end = facts.ends_with("cause", "consent_refused")
    if end is None:
        return None
    return Finding(
        "consent_refused",
        Weight.CLOSED,
        "The caller did not consent to being recorded, and the agent ends such calls.",
        "Set consent.onRefused to continue if such calls are to go on unrecorded.",
        evidence(*facts.all("consent.asked", "consent.refused"), end),
    )


RULES: tuple[Rule, ...] = (
    consent_refused,
    voicemail,
    caller_gave_up,
    inbound_canceled,
    longest_duration,
    silence,
)
