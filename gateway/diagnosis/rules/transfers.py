"""A transfer to a human that failed; the agent went on."""

from __future__ import annotations

from gateway.diagnosis.facts import Facts, number, text
from gateway.diagnosis.finding import Finding, Rule, Weight, evidence

_REASONS = {
    "busy": ("the human's phone was busy", "Give the agent a number with a queue behind it."),
    "no_answer": ("the human did not answer", "Raise transferRingingMs, or use a queue's number."),
    "rejected": (
        "the human's phone, or its trunk, refused the call",
        "Check that the trunk accepts REFER (cold) or this caller ID (warm).",
    ),
    "invalid_destination": (
        "the transfer number does not exist, or the trunk cannot reach it",
        "Check the agent's transferNumber.",
    ),
    "not_allowed": (
        "the destination policy, a limit, or the lack of a number that may call out forbids it",
        "Check DIAL_ALLOWED_COUNTRIES and the limits, and attach a number that may call out.",
    ),
    "not_supported": (
        "this kind of call does not support it",
        "Warm transfers need a call in a room; cold ones on a stream need Twilio's credential.",
    ),
    "declined": ("the human declined the call", "Nothing is to be repaired."),
    "not_accepted": (
        "the human said neither yes nor no",
        "Make transferBriefing a clear question.",
    ),
    "hung_up": ("the human hung up", "Nothing is to be repaired."),
    "call_over": ("the caller hung up meanwhile", "Shorten transferRingingMs."),
}


def failed(facts: Facts) -> Finding | None:
    failures = facts.all("transfer.failed")
    if not failures or facts.first("call.transferred"):
        return None
    last = failures[-1]
    reason = text(last, "reason") or "failed"
    words, advice = _REASONS.get(reason, ("it could not be carried out", ""))
    status, phrase = number(last, "sipStatusCode"), text(last, "sipReason")
    sip = " ".join(part for part in (f"{status:.0f}" if status else "", phrase or "") if part)
    return Finding(
        f"transfer_{reason}" if reason in _REASONS else "transfer_failed",
        Weight.HURT,
        f"The transfer failed: {words}{f' ({sip})' if sip else ''}.",
        advice or "Look in the gateway's log for this call, and at the trunk's support of REFER.",
        evidence(*facts.all("transfer.started"), *failures),
        None if reason in _REASONS else "The timeline does not say why.",
    )


RULES: tuple[Rule, ...] = (failed,)
