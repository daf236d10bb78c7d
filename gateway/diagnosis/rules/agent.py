"""The agent: it does not come, comes late, dies, or is stopped."""

from __future__ import annotations

from core.recovery import MOST_LOST
from gateway.diagnosis.facts import Facts, number, text
from gateway.diagnosis.finding import Finding, Rule, Weight, evidence
from gateway.store.call_status import StoredEvent


def not_taken(facts: Facts) -> Finding | None:
    end = facts.ends_with("note", "dispatch_not_taken")
    if end is None:
        return None
    return Finding(
        "dispatch_not_taken",
        Weight.ENDED,
        "LiveKit offered the call to the workers, and none took it.",
        "Look in the workers' logs. Are they connected to this LIVEKIT_URL, with this AGENT_NAME? "
        "Were they full?",
        evidence(*facts.all("agent.redispatched"), end),
    )


def not_joined(facts: Facts) -> Finding | None:
    end = facts.ends_with("note", "agent_not_joined", "no_agent", "no agent in the room")
    if end is None:
        return None
    note = text(end, "note") or ""
    return Finding(
        "agent_not_joined",
        Weight.ENDED,
        _NOT_JOINED[note],
        "Look in the worker's log at this time. Does it reach LIVEKIT_URL and GATEWAY_URL? Is its "
        "machine overloaded (AGENT_JOIN_TIMEOUT_S)?",
        evidence(*facts.all("agent.redispatched", "agent.joined"), end),
        "LiveKit did not say whether a worker took the call." if note == "no_agent" else None,
    )


_NOT_JOINED = {
    "agent_not_joined": "A worker took the call, but its agent did not join in time.",
    "no_agent": "No agent joined in time.",
    "no agent in the room": "No agent was in the room before the call was answered.",
}


def rang_out(facts: Facts) -> Finding | None:
    """An incoming call whose ringing timed out without a note that says why."""
    end = facts.ended
    unavailable = facts.call.disconnection_reason == "agent_unavailable"
    if end is None or not unavailable or text(end, "note") not in _GONE:
        return None
    joined = facts.first("agent.joined", "agent.dispatched")
    return Finding(
        "agent_did_not_answer",
        Weight.ENDED,
        "The SIP service stopped ringing because no agent answered in time.",
        "Look in the logs of the workers (did one take the call?) and of the gateway.",
        evidence(joined, *facts.all("livekit.participant_left"), end),
        "An agent had come, but why it did not answer in time is not on the timeline."
        if joined
        else "Whether a worker was offered the call is not on the timeline.",
    )


_GONE = (None, "found gone before an answer was seen")


def late(facts: Facts) -> Finding | None:
    """The agent had to be sent for again, and came; or the caller did not wait for it."""
    # One that takes over for a lost one has an epoch, and another rule.
    again = [e for e in facts.all("agent.redispatched") if not number(e, "epoch")]
    end = facts.ended
    if not again or (end is not None and facts.call.disconnection_reason == "agent_unavailable"):
        return None
    gave_up = not facts.answered and end is not None and facts.first("agent.ready") is None
    none_free = any(event.data.get("taken") is False for event in again)
    return Finding(
        "agent_late",
        Weight.RUINED if gave_up else Weight.HURT,
        "The agent had to be sent for again"
        + (": at first no worker took the call" if none_free else "")
        + (", and the call was over before it came." if gave_up else "."),
        "Add workers, or raise WORKER_IDLE_PROCESSES, so that one is ready at once.",
        evidence(*again, facts.first("agent.joined"), end if gave_up else None),
    )


def worker_lost(facts: Facts) -> Finding | None:
    end = facts.ends_with("note", "no agent in the room any more", "its worker is gone")
    if end is None:
        return None
    return Finding(
        "worker_lost",
        Weight.ENDED,
        "The worker that served the call died or vanished.",
        "Look in the worker's log and the system's (out of memory, kill, node lost) at the time of "
        "its last event. Give it memory, and stop workers with SIGTERM.",
        evidence(facts.first("agent.joined", "stream.connected"), _last_word(facts), end),
        "Why it died is not on the timeline.",
    )


def agent_lost(facts: Facts) -> Finding | None:
    """An agent was lost, and another one took over, or was meant to."""
    lost = facts.all("agent.lost")
    if not lost:
        return None
    why = text(lost[-1], "why") or ""
    seen = evidence(*lost, *facts.all("agent.redispatched", "agent.resumed"), facts.ended)
    crashed = sum(text(event, "why") != "stopped" for event in lost)
    failed = facts.ended is not None and facts.call.disconnection_reason == "agent_error"
    if facts.ends_with("note", "agents were lost too often") or (crashed >= MOST_LOST and failed):
        return Finding(
            "agents_lost_repeatedly",
            Weight.ENDED,
            f"{len(lost)} agents were lost in this call, one after the other, so it was ended.",
            "Something in this call brings agents down. Look in the workers' logs at these times: "
            "each process that died has its exit code there.",
            seen,
        )
    if end := facts.ends_with("note", "no agent took over"):
        return Finding(
            "agent_not_replaced",
            Weight.ENDED,
            f"{_LOST.get(why, _DIED)}, and {_NOT_REPLACED.get(text(end, 'detail') or '', _NOBODY)}",
            "Have places free on another worker, so that it can take over (WORKER_MAX_CALLS, more "
            "workers). " + _LOOK.get(why, _LOOK_FOR_A_KILL),
            seen,
        )
    resumed = facts.after(lost[-1], "agent.resumed") or _greeted(facts, lost[-1])
    silence = number(resumed, "lostMs") or number(lost[-1], "lostMs")
    seconds = "" if silence is None else f" after {silence / 1000:.1f} s"
    if resumed:
        return Finding(
            "agent_replaced",
            Weight.HURT,
            f"{_LOST.get(why, _DIED)}, and another one took over{seconds}.",
            _LOOK.get(why, _LOOK_FOR_A_KILL),
            seen,
        )
    return Finding(
        "agent_lost",
        Weight.ENDED if failed else Weight.RUINED,
        f"{_LOST.get(why, _DIED)}, and no other one took over"
        + (" before the call was over." if facts.ended else " so far."),
        _LOOK.get(why, _LOOK_FOR_A_KILL),
        seen,
    )


def _greeted(facts: Facts, lost: StoredEvent) -> StoredEvent | None:
    """Return the coming of the next agent, if the call was not answered yet: nothing was missed."""
    answered_at = facts.call.answered_at
    if answered_at is None or answered_at < lost.at:
        return None
    return facts.after(lost, "agent.joined")


_DIED = "The agent died in the call"
_LOST = {
    "killed": "The agent's process died in the call",
    "hung": "The agent hung in the call",
    "stopped": "The agent's worker was stopped during the call",
    "failed": "The agent failed in the call",
    "vanished": "The agent's worker fell silent during the call",
}
_NOBODY = "no other one took over in time."
_NOT_REPLACED = {
    "dispatch_not_taken": "no worker took the call over in time.",
    "agent_not_joined": "a worker took the call over, but its agent did not join in time.",
}
_LOOK_FOR_A_KILL = (
    "Look in the worker's log and the system's (out of memory, kill) at the time of the loss."
)
_LOOK = {
    "stopped": "Give the worker time to drain: its supervisor must wait WORKER_DRAIN_TIMEOUT_S "
    "after SIGTERM, and send no second signal.",
    "failed": "This is a defect: the worker's log has a traceback for this call id. Please report "
    "it.",
    "hung": "Look in the worker's log: what ran at the time of the loss? Is its machine "
    "overloaded, or a tool's library blocking?",
    "vanished": "Look for the machine, its network, and the worker's main process at the time of "
    "the loss.",
}


def worker_stopped(facts: Facts) -> Finding | None:
    end = facts.ends_with("cause", "worker_stopped")
    if end is None:
        return None
    return Finding(
        "worker_stopped",
        Weight.ENDED,
        "The worker was stopped, or its main process was killed, before the call was over.",
        "Give it time to drain: the supervisor must wait WORKER_DRAIN_TIMEOUT_S after SIGTERM, and "
        "send no second signal. If nobody stopped it, look in the system's log for a kill.",
        evidence(facts.first("agent.joined"), end),
    )


def worker_failed(facts: Facts) -> Finding | None:
    end = facts.ends_with("cause", "worker_failed")
    if end is None:
        return None
    kind = text(end, "detail")
    return Finding(
        "worker_failed",
        Weight.ENDED,
        f"The worker failed in the call{f' ({kind})' if kind else ''}.",
        "This is a defect: the worker's log has a traceback for this call id. Please report it.",
        evidence(facts.first("agent.joined"), end),
    )


def no_brief(facts: Facts) -> Finding | None:
    end = facts.ends_with("cause", "no_brief")
    if end is None:
        return None
    return Finding(
        "worker_without_gateway",
        Weight.ENDED,
        "The worker did not get the call's configuration from the gateway.",
        "Check the worker's GATEWAY_URL, that LIVEKIT_API_SECRET is the same on both, and the "
        "gateway's log.",
        evidence(facts.first("agent.joined"), end),
    )


def _last_word(facts: Facts) -> StoredEvent | None:
    return next((e for e in reversed(facts.events) if e.source == "worker"), None)


RULES: tuple[Rule, ...] = (
    not_taken,
    not_joined,
    worker_lost,
    agent_lost,
    worker_stopped,
    worker_failed,
    no_brief,
    rang_out,
    late,
)
