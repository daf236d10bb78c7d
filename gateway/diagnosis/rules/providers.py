"""The providers of speech and language: a wrong key, a quota, an outage, slowness."""

from __future__ import annotations

import re

from gateway.diagnosis.facts import Facts, text
from gateway.diagnosis.finding import Finding, Rule, Weight, evidence
from gateway.store.call_status import StoredEvent

_STAGES = {"stt": "speech recognition", "llm": "language model", "tts": "voice"}
_KEYS = {"deepgram": "DEEPGRAM_API_KEY", "openai": "OPENAI_API_KEY", "cartesia": "CARTESIA_API_KEY"}
SLOW_MS = {"stt": 2000, "llm": 3000, "tts": 2000}
"""Parts of a turn's latency beyond which the caller notices the stage."""

_HTTP = re.compile(r"HTTP (\d{3})")
_TIMEOUTS = ("APITimeoutError", "TimeoutError", "no words")
_UNREACHABLE = ("APIConnectionError", "ClientConnectorError", "ConnectError")


def _kind(message: str) -> tuple[str, str]:
    """Return the end of the finding's code, and the words for it."""
    status = int(found[1]) if (found := _HTTP.search(message)) else None
    if status in (401, 403):
        return "key_wrong", f"it refused the key (HTTP {status})"
    if status in (402, 429):
        return "quota", f"its limit or credit is used up (HTTP {status})"
    if status is not None and 400 <= status < 500:
        return "refused", f"it refused the request (HTTP {status})"
    if any(name in message for name in _TIMEOUTS):
        return "timeout", "it did not answer in time"
    if any(name in message for name in _UNREACHABLE):
        return "unreachable", "the connection failed or broke"
    return "failed", f"it failed ({message})" if message else "it failed"


def _advice(kind: str, stage: str, name: str) -> str:
    key = _KEYS.get(name.partition("/")[0], "the provider's key")
    match kind:
        case "key_wrong":
            return f"Set {key} of the workers to a valid key, and restart them."
        case "quota":
            return "Raise the limit or the credit of the provider's account, or name a fallback."
        case "refused":
            return f"Check the agent's {stage} setting: the model, the voice, the language."
        case "unreachable":
            return "Check the provider's base URL and the workers' way out to the internet."
    return "Look at the provider's status page, and name fallbacks: a list in stt, model or tts."


def _final(facts: Facts) -> tuple[StoredEvent, str, str] | None:
    """Return the end by a provider, with its stage and the last error's text."""
    end = facts.ends_with("cause", "provider_failed")
    if end is None:
        return None
    stage, _, message = (text(end, "detail") or "").partition(": ")
    return end, stage, message


def ended_by_one(facts: Facts) -> Finding | None:
    final = _final(facts)
    if final is None:
        return None
    end, stage, message = final
    errors = [e for e in facts.all("provider.error") if text(e, "stage") == stage]
    if stage not in _STAGES:
        return Finding(
            "session_failed",
            Weight.ENDED,
            "The agent's voice session closed by itself.",
            "Look in the worker's log for this call.",
            evidence(*errors, end),
            "The library gave no reason that names a provider.",
        )
    name = _name(facts, stage, errors)
    if ", " in name:
        return None  # a chain: see all_failed
    kind, words = _kind(message)
    shown = name or f"its {_STAGES[stage]} ({stage.upper()})"
    return Finding(
        f"{stage}_{kind}",
        Weight.ENDED,
        f"The call ended because the agent's {_STAGES[stage]} failed. {shown}: {words}.",
        _advice(kind, stage, name),
        evidence(*errors, end),
        None if name else "The timeline does not name the provider.",
    )


def all_failed(facts: Facts) -> Finding | None:
    final = _final(facts)
    if final is None:
        return None
    end, stage, message = final
    errors = [e for e in facts.all("provider.error") if text(e, "stage") == stage]
    name = _name(facts, stage, errors)
    if ", " not in name:
        return None
    said = {text(e, "provider"): text(e, "message") or "" for e in errors}
    each = [f"{one}: {_kind(said[one])[1]}" for one in name.split(", ") if one in said]
    last = f"the last error was: {_kind(message)[1]}"
    return Finding(
        f"{stage}_all_failed",
        Weight.ENDED,
        f"The call ended because all providers of the agent's {_STAGES[stage]} failed "
        f"({name}). {'; '.join([*each, last])}.",
        "Look at each one's status and key. If all are of one company or behind one network, name "
        "one that is not.",
        evidence(*errors, *facts.all("provider.switched"), end),
    )


def _name(facts: Facts, stage: str, errors: list[StoredEvent]) -> str:
    names = [name for e in errors if (name := text(e, "provider"))]
    return facts.providers.get(stage) or (names[-1] if names else "")


def survived(facts: Facts) -> Finding | None:
    """A provider failed, and the call went on: with the next one, or by a retry."""
    final = _final(facts)
    errors = [
        event
        for event in facts.all("provider.error")
        if event.data.get("recoverable") is True
        and (final is None or text(event, "stage") != final[1])
    ]
    if not errors:
        return None
    first = errors[0]
    stage = text(first, "stage") or ""
    name = text(first, "provider") or _name(facts, stage, []) or stage.upper()
    kind, words = _kind(text(first, "message") or "")
    switched = [e for e in facts.all("provider.switched") if text(e, "stage") == stage]
    return Finding(
        "provider_switched" if switched else "provider_error",
        Weight.HURT,
        f"{name} failed in the call: {words}. "
        + ("Another provider took over." if switched else "The call went on."),
        _advice(kind, stage, name),
        evidence(*errors, *switched),
    )


def slow(facts: Facts) -> Finding | None:
    measured = [turn for turn in facts.turns if turn.latency]
    by_webhook = facts.first("webhook.replied", "webhook.failed", "webhook.aborted")
    worst: tuple[int, str] | None = None
    for stage, limit in SLOW_MS.items():
        if stage == "llm" and by_webhook:
            continue  # the webhook took that time
        late = sum(turn.latency.get(stage, 0) > limit for turn in measured)
        if late and (worst is None or late > worst[0]):
            worst = late, stage
    if worst is None:
        return None
    late, stage = worst
    turns = [turn for turn in measured if turn.latency.get(stage, 0) > SLOW_MS[stage]]
    most = max(turn.latency[stage] for turn in turns)
    name = facts.providers.get(stage)
    return Finding(
        f"{stage}_slow",
        Weight.RUINED if 2 * late > len(measured) else Weight.HURT,
        f"The agent's {_STAGES[stage]}{f' ({name})' if name else ''} was slow: up to "
        f"{most / 1000:.1f} s, and over {SLOW_MS[stage] / 1000:.0f} s in {late} of "
        f"{len(measured)} answers.",
        "Choose a faster model or a nearer region, or look at the provider's status page. If all "
        "stages are slow, the workers' machine is overloaded.",
        evidence(*(facts.event_of(turn) for turn in turns)),
        None if name else "The timeline does not name the provider.",
    )


ENDINGS: tuple[Rule, ...] = (ended_by_one, all_failed)
RULES: tuple[Rule, ...] = (slow, survived)
