"""The tenant's webhook, which answers the caller's turns: it fails, or is slow."""

from __future__ import annotations

from collections import Counter

from gateway.diagnosis.facts import Facts, number, text
from gateway.diagnosis.finding import Finding, Rule, Weight, evidence
from gateway.store.call_status import StoredEvent

SLOW_MS = 3000
"""A caller takes a longer pause for a broken line."""

_ADDRESS = "The address is not public"
_ADVICE = {
    "webhook_server_error": "Look in the log of your endpoint at this time: it answered with a "
    "status of its own. Repeat the request with POST /v1/webhooks/test.",
    "webhook_refused": "Look at what your endpoint or a proxy before it refuses: authentication, "
    "the signature's check, the path, the method.",
    "webhook_timeout": "Answer within the webhook's timeout: send a first chunk of NDJSON at once, "
    "do slow work after it. Or raise timeout (5 to 120 s).",
    "webhook_address_refused": "The webhook's name must lead to public addresses only. For "
    "development, an operator may set WEBHOOK_ALLOW_PRIVATE.",
    "webhook_missing": "Set the agent's or the project's webhook, or make the agent hosted.",
    "webhook_unreachable": "Check that the endpoint is up, its name in DNS, and its certificate.",
    "webhook_broken": "The endpoint must answer with JSON or NDJSON, not compressed, and end the "
    "reply in time.",
}


def _code(event: StoredEvent) -> str:
    status, reason = number(event, "status"), text(event, "reason") or ""
    if status is not None and status >= 500:
        return "webhook_server_error"
    if status is not None and status >= 300:
        return "webhook_refused"
    if reason.startswith(("No answer within", "The answer did not end")):
        return "webhook_timeout"
    if reason == _ADDRESS:
        return "webhook_address_refused"
    if reason == "No webhook is set":
        return "webhook_missing"
    if reason in ("No connection", "The name cannot be resolved", "TLS failed"):
        return "webhook_unreachable"
    return "webhook_broken"


def failed(facts: Facts) -> Finding | None:
    failures = facts.all("webhook.failed")
    if not failures:
        return None
    turns = len(facts.all("webhook.failed", "webhook.replied", "webhook.aborted"))
    code, _ = Counter(map(_code, failures)).most_common(1)[0]
    example = next(event for event in failures if _code(event) == code)
    status, reason = number(example, "status"), text(example, "reason")
    why = f"HTTP {status:.0f}" if status and status >= 300 else reason or "no reason given"
    all_of_them = len(failures) == turns
    which = "the only turn" if turns == 1 else f"{len(failures)} of {turns} turns"
    return Finding(
        code,
        Weight.RUINED if all_of_them else Weight.HURT,
        f"The agent's webhook failed for {which}: {why}.",
        _ADVICE[code],
        evidence(*failures),
    )


def slow(facts: Facts) -> Finding | None:
    asked = facts.all("webhook.replied", "webhook.aborted")
    waits = [
        event
        for event in asked
        if (number(event, "firstReplyMs") or number(event, "durationMs") or 0) > SLOW_MS
        # A reply that was stopped after it had begun was long, not slow.
        and not (event.type == "webhook.aborted" and (number(event, "firstReplyMs") or 0) > 0)
    ]
    if not waits:
        return None
    worst = max(number(e, "firstReplyMs") or number(e, "durationMs") or 0 for e in waits)
    return Finding(
        "webhook_slow",
        Weight.RUINED if 2 * len(waits) > len(asked) else Weight.HURT,
        f"The agent's webhook was slow: callers waited up to {worst / 1000:.1f} s for its first "
        f"words ({len(waits)} of {len(asked)} turns over {SLOW_MS / 1000:.0f} s).",
        "Stream the reply as NDJSON and begin it with a few words at once.",
        evidence(*waits),
    )


def action_failed(facts: Facts) -> Finding | None:
    refused = [e for e in facts.all("webhook.action_failed") if text(e, "action") != "transfer"]
    if not refused:
        return None
    return Finding(
        "webhook_action_failed",
        Weight.HURT,
        f"An action that the webhook asked for was not done: {text(refused[0], 'action')}.",
        "Compare the reply with the webhooks guide: the actions are transfer, hangup, "
        "pause_recording and resume_recording.",
        evidence(*refused),
    )


RULES: tuple[Rule, ...] = (failed, slow, action_failed)
