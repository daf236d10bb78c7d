"""Calls with two things wrong: the cause is the one that ended or ruined the call."""

from __future__ import annotations

import pytest

from tests.gateway.diagnosis.timelines import (
    ANSWERED,
    TALKS,
    Told,
    completed,
    diagnosed,
    failed,
    gateway,
    over,
    turn,
    worker,
)

pytestmark = pytest.mark.unit


def _webhook(at: float, type: str, **data: object) -> Told:
    return worker(at, f"webhook.{type}", **{"status": None, "durationMs": 100, **data})


DURING: dict[str, list[Told]] = {
    # The call was not a conversation any more.
    "one_way_audio": [worker(9, "audio.missing", afterMs=5000)],
    "webhook_server_error": [_webhook(at, "failed", status=500) for at in (8, 13)],
    "webhook_timeout": [
        _webhook(at, "failed", reason="No answer within 5 s") for at in (8, 13)
    ],
    "webhook_slow": [_webhook(at, "replied", status=200, firstReplyMs=5000) for at in (8, 14)],
    "llm_slow": [
        turn(at, "hi", "yes", latency={"llm": 6000, "total": 6500}) for at in (7.5, 15)
    ],
    "turns_unanswered": [turn(8, "hello"), turn(16, "anybody there")],
    # The call survived it.
    "tool_failed": [worker(9, "tool.called", name="book", ok=False, durationMs=900)],
    "tool_slow": [worker(9.5, "tool.called", name="find", ok=True, durationMs=9000)],
    "mcp_failed": [worker(4, "mcp.failed", server="x", message="it did not answer in time")],
    "recording_failed": [
        worker(3, "recording.started", format="wav"),
        worker(10, "recording.failed", reason="disk_full"),
    ],
    "provider_error": [
        worker(8, "provider.error", stage="stt", message="HTTP 500", recoverable=True)
    ],
    "transfer_busy": [
        gateway(8, "transfer.started", to="+15550000000", mode="warm"),
        gateway(12, "transfer.failed", reason="busy"),
    ],
    "agent_replaced": [gateway(9, "agent.lost"), gateway(11, "agent.resumed", lostMs=2400)],
    "agent_late": [gateway(0.85, "agent.redispatched", taken=False)],
    "webhook_action_failed": [worker(9, "webhook.action_failed", action="dance", reason="…")],
}  # fmt: skip

ENDS: dict[str, list[Told]] = {
    "tts_key_wrong": [
        worker(20, "provider.error", stage="tts", message="HTTP 401", recoverable=False),
        *failed(20, "provider_failed", "tts: HTTP 401"),
    ],
    "llm_timeout": [
        worker(20, "provider.error", stage="llm", message="APITimeoutError", recoverable=False),
        *failed(20, "provider_failed", "llm: APITimeoutError"),
    ],
    "worker_lost": [
        over(90, "reconciler", "failed", "agent_error", note="no agent in the room any more")
    ],
    "worker_stopped": failed(20, "worker_stopped"),
    "livekit_lost": failed(20, "media_lost"),
    "sip_service_lost": failed(20, "leg_lost", "its SIP service died"),
    "leg_replaced": failed(20, "leg_replaced"),
    "silence": completed(30, "inactivity"),
    "voicemail_reached": completed(20, "voicemail_reached"),
    "max_duration": completed(ANSWERED + 60, "max_duration_reached"),
    "consent_refused": completed(20, "agent_hangup", cause="consent_refused"),
}
GOOD_END = completed(30)

# during, end (None: the caller hung up in the end), the one that mattered
PAIRS: list[tuple[str, str, str]] = [
    # A part that broke ended the call, whatever was wrong before.
    ("one_way_audio", "worker_lost", "worker_lost"),
    ("one_way_audio", "sip_service_lost", "sip_service_lost"),
    ("webhook_server_error", "tts_key_wrong", "tts_key_wrong"),
    ("webhook_server_error", "worker_stopped", "worker_stopped"),
    ("webhook_timeout", "livekit_lost", "livekit_lost"),
    ("webhook_slow", "worker_lost", "worker_lost"),
    ("llm_slow", "llm_timeout", "llm_timeout"),
    ("llm_slow", "leg_replaced", "leg_replaced"),
    ("turns_unanswered", "worker_lost", "worker_lost"),
    ("tool_failed", "tts_key_wrong", "tts_key_wrong"),
    ("tool_failed", "worker_lost", "worker_lost"),
    ("tool_slow", "livekit_lost", "livekit_lost"),
    ("mcp_failed", "llm_timeout", "llm_timeout"),
    ("recording_failed", "worker_lost", "worker_lost"),
    ("recording_failed", "sip_service_lost", "sip_service_lost"),
    ("provider_error", "llm_timeout", "llm_timeout"),
    ("transfer_busy", "worker_stopped", "worker_stopped"),
    ("transfer_busy", "tts_key_wrong", "tts_key_wrong"),
    ("agent_replaced", "worker_lost", "worker_lost"),
    ("agent_late", "leg_replaced", "leg_replaced"),
    # A limit or a person closed a call that was ruined before.
    ("one_way_audio", "silence", "one_way_audio"),
    ("one_way_audio", "max_duration", "one_way_audio"),
    ("one_way_audio", "voicemail_reached", "one_way_audio"),
    ("webhook_server_error", "silence", "webhook_server_error"),
    ("webhook_timeout", "silence", "webhook_timeout"),
    ("webhook_timeout", "max_duration", "webhook_timeout"),
    ("webhook_slow", "silence", "webhook_slow"),
    ("llm_slow", "silence", "llm_slow"),
    ("llm_slow", "max_duration", "llm_slow"),
    ("turns_unanswered", "silence", "turns_unanswered"),
    # It was closed, and only hurt before.
    ("tool_failed", "silence", "silence"),
    ("tool_slow", "max_duration", "max_duration"),
    ("mcp_failed", "voicemail_reached", "voicemail_reached"),
    ("recording_failed", "max_duration", "max_duration"),
    ("recording_failed", "consent_refused", "consent_refused"),
    ("provider_error", "silence", "silence"),
    ("transfer_busy", "max_duration", "max_duration"),
    ("agent_replaced", "silence", "silence"),
    ("agent_late", "voicemail_reached", "voicemail_reached"),
    ("webhook_action_failed", "max_duration", "max_duration"),
]
# Two faults in a call that the caller ended.
BOTH: list[tuple[str, str, str]] = [
    ("one_way_audio", "tool_failed", "one_way_audio"),
    ("webhook_server_error", "recording_failed", "webhook_server_error"),
    ("webhook_slow", "tool_failed", "webhook_slow"),
    ("llm_slow", "agent_replaced", "llm_slow"),
    ("turns_unanswered", "mcp_failed", "turns_unanswered"),
    ("one_way_audio", "webhook_timeout", "one_way_audio"),
    ("transfer_busy", "tool_failed", "transfer_busy"),
    ("transfer_busy", "recording_failed", "transfer_busy"),
    ("agent_replaced", "tool_failed", "agent_replaced"),
    ("tool_failed", "tool_slow", "tool_failed"),
    ("agent_replaced", "transfer_busy", "agent_replaced"),
    ("recording_failed", "mcp_failed", "recording_failed"),
]


def test_there_are_50() -> None:
    assert len({frozenset(pair[:2]) for pair in [*PAIRS, *BOTH]}) >= 50


@pytest.mark.parametrize(("during", "end", "mattered"), PAIRS)
def test_a_fault_and_an_end(during: str, end: str, mattered: str) -> None:
    check([*TALKS, *DURING[during], *ENDS[end]], during, end, mattered)


@pytest.mark.parametrize(("one", "other", "mattered"), BOTH)
def test_two_faults(one: str, other: str, mattered: str) -> None:
    check([*TALKS, *DURING[one], *DURING[other], *GOOD_END], one, other, mattered)


def check(events: list[Told], one: str, other: str, mattered: str) -> None:
    found = diagnosed(events)
    assert found.code == mattered
    also = {finding.code: finding for finding in found.others}
    (lesser,) = {one, other} - {mattered}
    assert lesser in also, "the other one is told, too"
    assert also[lesser].evidence
    # Each rests on its own events.
    assert {line.event_id for line in found.evidence} != {
        line.event_id for line in also[lesser].evidence
    }


@pytest.mark.parametrize("name", [*DURING, *ENDS])
def test_each_alone(name: str) -> None:
    events = [*DURING[name], *GOOD_END] if name in DURING else ENDS[name]
    found = diagnosed([*TALKS, *events])
    assert (found.code, found.others) == (name, [])
