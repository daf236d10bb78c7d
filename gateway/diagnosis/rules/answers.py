"""Sound that does not come, and turns that get no answer."""

from __future__ import annotations

from gateway.diagnosis.facts import Facts, number
from gateway.diagnosis.finding import Finding, Rule, Weight, evidence


def one_way_audio(facts: Facts) -> Finding | None:
    missing = facts.no_sound
    if missing is None:
        return None
    seconds = (number(missing, "afterMs") or 0) / 1000
    advice = (
        "Check the RTP ports of the SIP service in the firewall, its public address "
        "(use_external_ip, nat_1_to_1_ip), and whether the trunk sends media to a private address."
        if facts.on_phone
        else "Check the client's microphone and that it sends audio on the socket."
    )
    return Finding(
        "one_way_audio",
        # Keys are turns, too.
        Weight.HURT if any(turn.transcript for turn in facts.turns) else Weight.RUINED,
        f"No sound came from the far end, neither in the first {seconds:.0f} s nor later.",
        advice,
        evidence(facts.first("call.answered"), missing),
        "A phone on mute that sends digital silence looks the same. Whether the far end heard the "
        "agent is not measured.",
    )


def unanswered(facts: Facts) -> Finding | None:
    """The caller spoke and never got an answer, for a reason that is not on the timeline."""
    said = [turn for turn in facts.turns if turn.transcript]
    silent = [turn for turn in said if not turn.response and not turn.masked]
    explained = facts.first(
        "provider.error", "webhook.failed", "webhook.aborted", "webhook.replied"
    )
    # The last words of a caller who hangs up get no answer; one turn shows nothing.
    if len(silent) < 2 or len(silent) < len(said) or explained:
        return None
    return Finding(
        "turns_unanswered",
        Weight.RUINED,
        f"The agent answered none of the caller's {len(said)} turns.",
        "Read the agent's prompt and its model's replies. Look in the worker's log for this call.",
        evidence(*(facts.event_of(turn) for turn in silent)),
        "No error of a provider or a webhook is on the timeline.",
    )


RULES: tuple[Rule, ...] = (one_way_audio, unanswered)
