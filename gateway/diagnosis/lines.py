"""Each event of a timeline as one line: the part of the system it belongs to, and a few words.

Only facts that are neither words nor keys nor numbers of callers are shown, whatever else the
event holds. The SIP methods are inferred from the events: no SIP trace is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from gateway.diagnosis.facts import Facts, number, text
from gateway.store.call_status import StoredEvent

Area = Literal[
    "http", "sip", "room", "worker", "provider", "webhook", "tool", "transfer", "recording",
    "stream", "call",
]  # fmt: skip

_AREAS: Final[dict[str, Area]] = {
    "agent": "worker",
    "audio": "room",
    "barge_in": "call",
    "call": "call",
    "consent": "recording",
    "disclosure": "recording",
    "dtmf": "call",
    "livekit": "room",
    "machine": "call",
    "mcp": "tool",
    "provider": "provider",
    "recording": "recording",
    "redaction": "recording",
    "silence": "call",
    "stream": "stream",
    "tool": "tool",
    "transfer": "transfer",
    "turn": "call",
    "voicemail": "call",
    "webhook": "webhook",
}


def area_of(event: StoredEvent, facts: Facts) -> Area:
    if event.type == "call.queued":
        return "sip" if facts.call.direction == "inbound" and facts.on_phone else "http"
    if event.type == "call.transferred":
        return "transfer"
    if event.type.startswith("call.") and facts.on_phone and event.type != "call.answered_by":
        return "sip"
    return _AREAS.get(event.type.partition(".")[0], "call")


def line_of(event: StoredEvent, facts: Facts) -> str:
    """Return the event in words."""
    if (say := _LINES.get(event.type)) is not None:
        return say(event, facts)
    if event.type.startswith("livekit."):
        return _livekit(event)
    words = event.type.replace(".", " ").replace("_", " ")
    told = [f"{name} {_plain(event, name)}" for name in _SHOWN if _plain(event, name) is not None]
    return ", ".join([words, *told])


_SHOWN: Final = ("reason", "status", "durationMs", "afterMs", "kind", "mode", "ok", "cause")


def _plain(event: StoredEvent, name: str) -> str | None:
    """Return a short fact as text; None for what is no such fact."""
    value = event.data.get(name)
    return str(value) if isinstance(value, str | int | float) and len(str(value)) <= 64 else None


def _queued(event: StoredEvent, facts: Facts) -> str:
    call = facts.call
    if call.direction == "inbound" and facts.on_phone:
        return "INVITE received, room created"
    return "request accepted, record created"


def _dialing(event: StoredEvent, facts: Facts) -> str:
    return "INVITE sent" if facts.on_phone else "Twilio places the call"


def _ringing(event: StoredEvent, facts: Facts) -> str:
    if not facts.on_phone:
        return "rings"
    return "180 sent: the caller hears ringing" if _inbound(facts) else "180 or 183: it rings"


def _answered(event: StoredEvent, facts: Facts) -> str:
    if not facts.on_phone:
        return "answered"
    return "200 sent: answered" if _inbound(facts) else "200: answered"


def _inbound(facts: Facts) -> bool:
    return facts.call.direction == "inbound"


def _ended(event: StoredEvent, facts: Facts) -> str:
    status, reason = text(event, "status"), text(event, "reason")
    told = [f"{status}, {reason}"]
    if (method := _last_method(event, facts)) is not None:
        told.insert(0, method)
    for name in ("cause", "detail", "problem", "note", "disconnectReason"):
        if (value := text(event, name)) is not None:
            told.append(f"{name} {value}")
    return "; ".join(told)


def _last_method(event: StoredEvent, facts: Facts) -> str | None:
    """Return the SIP message that ended the call; None if it is not known."""
    if not facts.on_phone:
        return None
    if (code := number(event, "sipStatusCode")) is not None:
        return f"{code:.0f} {text(event, 'sipReason') or ''}".strip()
    match text(event, "reason"), facts.answered:
        case "user_hangup", True:
            return "BYE received"
        case "user_hangup", False:
            return "CANCEL received"
        case (("agent_hangup" | "inactivity" | "max_duration_reached" | "voicemail_reached"), True):
            return "BYE sent"
        case "canceled" | "dial_no_answer", False if not _inbound(facts):
            return "CANCEL sent" if facts.first("call.dialing") else None
    return None


def _turn(event: StoredEvent, facts: Facts) -> str:
    """Say who spoke; the words are in the transcript."""
    said, answer = bool(event.data.get("transcript")), bool(event.data.get("response"))
    who = {
        (True, True): "the caller spoke, the agent answered",
        (True, False): "the caller spoke",
        (False, True): "the agent spoke",
        (False, False): "a turn without words",
    }[said, answer]
    latency = event.data.get("latency")
    total = latency.get("total") if isinstance(latency, dict) else None
    waited = f" after {total:.0f} ms" if isinstance(total, int | float) else ""
    return who + waited + (", interrupted" if event.data.get("interrupted") is True else "")


def _livekit(event: StoredEvent) -> str:
    told = [event.type.removeprefix("livekit.").replace("_", " ")]
    told += [v for name in ("callStatus", "disconnectReason") if (v := text(event, name))]
    return "LiveKit: " + ", ".join(told)


def _ready(event: StoredEvent, facts: Facts) -> str:
    names = ", ".join(f"{stage} {name}" for stage, name in facts.providers.items())
    return f"agent ready ({names})" if names else "agent ready"


def _again(event: StoredEvent, facts: Facts) -> str:
    why = {True: ": it did not join", False: ": no worker took the call"}
    taken = event.data.get("taken")
    return "agent sent for again" + (why[taken] if isinstance(taken, bool) else "")


def _lost(event: StoredEvent, facts: Facts) -> str:
    why = {
        "killed": "its process died",
        "hung": "it hung",
        "stopped": "its worker was stopped",
        "failed": "it failed",
        "vanished": "its worker fell silent",
    }.get(text(event, "why") or "")
    return "agent lost" + (f": {why}" if why else "")


def _resumed(event: StoredEvent, facts: Facts) -> str:
    ms = number(event, "lostMs")
    return "another agent took over" + ("" if ms is None else f" after {ms / 1000:.1f} s")


def _provider(event: StoredEvent, facts: Facts) -> str:
    stage = text(event, "stage") or "provider"
    whose = text(event, "provider") or stage
    goes_on = event.data.get("recoverable") is True
    message = text(event, "message") or "failed"
    return f"{stage}: {whose} failed, {message}" + (" (the call goes on)" if goes_on else "")


def _switched(event: StoredEvent, facts: Facts) -> str:
    return f"{text(event, 'stage')}: {text(event, 'from')} → {text(event, 'to')}"


def _webhook(event: StoredEvent, facts: Facts) -> str:
    told = [event.type.replace(".", " ").replace("_", " ")]
    if (status := number(event, "status")) is not None:
        told.append(f"HTTP {status:.0f}")
    if (reason := text(event, "reason")) is not None:
        told.append(reason)
    for name, words in (("firstReplyMs", "first words"), ("durationMs", "whole")):
        if (ms := number(event, name)) is not None:
            told.append(f"{words} {ms:.0f} ms")
    return ", ".join(told)


def _tool(event: StoredEvent, facts: Facts) -> str:
    outcome = "ok" if event.data.get("ok") is True else "failed"
    return f"{text(event, 'name')}: {outcome}, {number(event, 'durationMs') or 0:.0f} ms"


def _transfer_failed(event: StoredEvent, facts: Facts) -> str:
    status = number(event, "sipStatusCode")
    sip = f", {status:.0f} {text(event, 'sipReason') or ''}".rstrip() if status else ""
    return f"failed: {text(event, 'reason') or 'unknown'}{sip}"


def _key(event: StoredEvent, facts: Facts) -> str:
    return "a key was pressed" if event.type == "dtmf.received" else "keys were sent"


_LINES: Final[dict[str, Callable[[StoredEvent, Facts], str]]] = {
    "call.queued": _queued,
    "call.dialing": _dialing,
    "call.ringing": _ringing,
    "call.answered": _answered,
    "call.ended": _ended,
    "turn": _turn,
    "agent.ready": _ready,
    "agent.redispatched": _again,
    "agent.lost": _lost,
    "agent.resumed": _resumed,
    "provider.error": _provider,
    "provider.switched": _switched,
    "webhook.replied": _webhook,
    "webhook.failed": _webhook,
    "webhook.aborted": _webhook,
    "tool.called": _tool,
    "transfer.failed": _transfer_failed,
    "dtmf.received": _key,
    "dtmf.sent": _key,
}
