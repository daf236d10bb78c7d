"""Sessions on a WebSocket, and visitors from a browser."""

from __future__ import annotations

from gateway.diagnosis.facts import Facts
from gateway.diagnosis.finding import Finding, Rule, Weight, evidence


def stream_lost(facts: Facts) -> Finding | None:
    lost = facts.last("stream.lost")
    end = facts.ends_with("cause", "leg_lost")
    if facts.call.type != "stream" or end is None:
        return None
    return Finding(
        "stream_lost",
        Weight.ENDED,
        "The session's socket broke, and no other one came within 30 s.",
        "Look at the network and the proxies between the client (or Twilio) and the gateway: their "
        "idle time-outs, and whether a reconnect reaches PUBLIC_URL.",
        evidence(facts.first("stream.connected"), lost, end),
    )


def stream_resumed(facts: Facts) -> Finding | None:
    lost = facts.all("stream.lost")
    if not lost or facts.ends_with("cause", "leg_lost"):
        return None
    back = facts.after(lost[-1], "stream.connected")
    times = "once" if len(lost) == 1 else f"{len(lost)} times"
    return Finding(
        "stream_interrupted",
        Weight.HURT,
        f"The session's socket broke {times}"
        + (", and another one took its place." if back else ", and the call ended without it."),
        "Look at the network and the proxies between the client (or Twilio) and the gateway.",
        evidence(*lost, back),
    )


def nobody_came(facts: Facts) -> Finding | None:
    end = facts.ends_with("note", "nobody came")
    if end is None:
        return None
    if facts.call.type == "stream":
        return Finding(
            "stream_never_connected",
            Weight.ENDED,
            "No socket came for the session before its token expired.",
            "Check that wss://… of PUBLIC_URL reaches the gateway on port 443, that the TwiML was "
            "passed on unchanged, and that Twilio's requests were not refused (403: the signature "
            "does not fit the account's auth token or PUBLIC_URL; 1008: the token).",
            evidence(facts.first("call.queued"), end),
            "A socket or request that was refused is in the gateway's log, not on the timeline.",
        )
    return Finding(
        "visitor_never_came",
        Weight.CLOSED,
        "The visitor did not join the room.",
        "Join within 30 s of POST /v1/calls/web. Check LIVEKIT_PUBLIC_URL, and the browser's "
        "console.",
        evidence(facts.first("call.queued"), end),
    )


RULES: tuple[Rule, ...] = (stream_lost, nobody_came, stream_resumed)
