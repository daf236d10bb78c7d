"""Faults that a call survives: tools, MCP servers, the recording, an end that nobody reported."""

from __future__ import annotations

from gateway.diagnosis.facts import Facts, number, text
from gateway.diagnosis.finding import Finding, Rule, Weight, evidence

SLOW_TOOL_MS = 5000

_OWN_TOOLS = frozenset({"transfer_call", "collect_digits", "end_call", "send_dtmf"})
"""They wait for the caller, or for speech. A failed transfer has a rule of its own."""


def tool_failed(facts: Facts) -> Finding | None:
    failures = [
        event
        for event in facts.all("tool.called")
        if event.data.get("ok") is False and text(event, "name") not in _OWN_TOOLS
    ]
    if not failures:
        return None
    names = sorted({text(event, "name") or "?" for event in failures})
    slowest = max(number(event, "durationMs") or 0 for event in failures)
    return Finding(
        "tool_failed",
        Weight.HURT,
        f"A tool failed: {', '.join(names)} (after up to {slowest / 1000:.1f} s).",
        "Look in the log of the tool's server for the X-Call-Id of this call; check its address, "
        "headers and timeoutMs.",
        evidence(*failures),
        "The tool's answer is not kept on the timeline.",
    )


def tool_slow(facts: Facts) -> Finding | None:
    slow = [
        event
        for event in facts.all("tool.called")
        if event.data.get("ok") is True
        and (number(event, "durationMs") or 0) > SLOW_TOOL_MS
        and text(event, "name") not in _OWN_TOOLS
    ]
    if not slow:
        return None
    names = sorted({text(event, "name") or "?" for event in slow})
    longest = max(number(event, "durationMs") or 0 for event in slow)
    return Finding(
        "tool_slow",
        Weight.HURT,
        f"A tool was slow: {', '.join(names)}, up to {longest / 1000:.1f} s.",
        "Make it faster, or set speakDuringExecution so that the caller hears something.",
        evidence(*slow),
    )


def mcp_failed(facts: Facts) -> Finding | None:
    failures = facts.all("mcp.failed")
    if not failures:
        return None
    return Finding(
        "mcp_failed",
        Weight.HURT,
        f"The tools of an MCP server were missing: {text(failures[0], 'message') or 'it failed'}.",
        "Check the server's URL, headers and timeoutMs.",
        evidence(*failures),
    )


def recording_failed(facts: Facts) -> Finding | None:
    failures = facts.all("recording.failed")
    if not failures or facts.first("recording.stored"):
        return None
    reason = text(failures[-1], "reason")
    words = "the worker's disk was full" if reason == "disk_full" else reason or "no reason given"
    return Finding(
        "recording_failed",
        Weight.HURT,
        f"The call was to be recorded, and there is no recording: {words}.",
        "Check the space on the worker's DATA_DIR, and RECORDINGS_URL and its credentials.",
        evidence(facts.first("recording.started"), *failures),
    )


def end_not_seen(facts: Facts) -> Finding | None:
    end = facts.ended
    if end is None or end.source != "reconciler" or text(end, "note") != "found gone":
        return None
    return Finding(
        "end_not_seen",
        Weight.HURT,
        "Nobody reported the call's end; it was found over afterwards.",
        "Look for restarts of the gateway and the worker, and check that LiveKit's webhooks reach "
        "POST /livekit/webhook.",
        evidence(end),
        "The end may have been up to a minute and a half earlier, and who hung up is not known.",
    )


RULES: tuple[Rule, ...] = (tool_failed, recording_failed, mcp_failed, tool_slow, end_not_seen)
