"""Literal timelines, with the cause that each of them shows and words of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.diagnosis.timelines import (
    ARRIVES,
    DIALLED,
    RINGS,
    STREAMS,
    TALKS,
    Told,
    completed,
    failed,
    gateway,
    livekit,
    over,
    turn,
    worker,
)


def agent_lost(at: float, epoch: int, why: str = "killed") -> Told:
    return gateway(at, "agent.lost", epoch=epoch, why=why, seenAt="2026-03-01T12:00:08.000Z")


def refused(code: int, phrase: str, status: Any = "failed", reason: Any = "dial_failed") -> Told:
    return over(2, "gateway", status, reason, sip_status_code=code, sip_reason=phrase)


def never(problem: str, status: Any = "failed", reason: Any = "dial_failed") -> list[Told]:
    return [*DIALLED, over(2, "gateway", status, reason, problem=problem)]


def turned_away(note: str) -> list[Told]:
    return [*ARRIVES, over(0.1, "gateway", "failed", "agent_unavailable", note=note)]


def broken(stage: str, message: str, **more: Any) -> list[Told]:
    error = {"stage": stage, "message": message, "recoverable": False, **more}
    return [
        *TALKS,
        worker(10, "provider.error", **error),
        *failed(11, "provider_failed", f"{stage}: {message}"),
    ]


def asked(at: float, type: str, **data: Any) -> Told:
    return worker(at, f"webhook.{type}", **{"status": None, "durationMs": 100, **data})


def webhook_failed(status: int | None, reason: str) -> list[Told]:
    failures = [asked(at, "failed", status=status, reason=reason) for at in (8, 12)]
    return [*TALKS, turn(7, "hello"), *failures, *completed()]


def transfer_failed(reason: str, **sip: Any) -> list[Told]:
    return [
        *TALKS,
        gateway(8, "transfer.started", to="+15550000000", mode="warm"),
        gateway(12, "transfer.failed", reason=reason, **sip),
        worker(13, "tool.called", name="transfer_call", ok=False, durationMs=4000),
        *completed(),
    ]


def slow_turns(**latency: int) -> list[Told]:
    total = sum(latency.values())
    turns = [turn(at, "hi", "yes", latency={**latency, "total": total}) for at in (8, 14, 20)]
    return [*TALKS, *turns, *completed()]


NO_SOUND = worker(9, "audio.missing", afterMs=5000)
REFERRED = "Twilio error 21215"

OUTBOUND: dict[str, tuple[list[Told], str, str]] = {
    # name: timeline, code, a part of the sentence
    "wrong password": (
        [*DIALLED, over(1, "gateway", "failed", "dial_rejected",
                        sip_reason="Authentication failed", problem="authentication")],
        "trunk_password", "user name or password",
    ),
    "401": ([*DIALLED, refused(401, "Unauthorized")], "trunk_password", "password"),
    "DNS": (never("unresolved"), "trunk_unresolved", "DNS"),
    "nothing came back": (
        never("no_response", "no-answer", "dial_no_answer"), "trunk_silent", "Nothing came back",
    ),
    "connection refused": (never("not_sent"), "trunk_unreachable", "connection to the trunk"),
    "private host": (never("not_allowed"), "trunk_not_allowed", "may not send SIP"),
    "SIP service full": (never("overloaded"), "sip_service_full", "no capacity"),
    "SIP service away": (never("sip_service"), "sip_service_away", "could not be reached"),
    "LiveKit has no room": (never("livekit"), "livekit_away", "nothing was dialled"),
    "bad parameters": (never("invalid_request"), "sip_request_invalid", "parameters"),
    "486": ([*RINGS, refused(486, "Busy Here", "busy", "dial_busy")], "callee_busy", "486 Busy"),
    "603": (
        [*RINGS, refused(603, "Decline", "failed", "dial_rejected")], "callee_declined", "603",
    ),
    "403": ([*DIALLED, refused(403, "Forbidden", reason="dial_rejected")], "trunk_forbids", "403"),
    "404": (
        [*DIALLED, refused(404, "Not Found", reason="invalid_destination")], "no_route", "no route",
    ),
    "488": (
        [*DIALLED, refused(488, "Not Acceptable Here")], "codec_refused", "none of the offered",
    ),
    "503": ([*DIALLED, refused(503, "Service Unavailable")], "trunk_failed", "503"),
    "no answer": (
        [*RINGS, over(31, "gateway", "no-answer", "dial_no_answer")], "no_answer", "rang",
    ),
    "480": (
        [*DIALLED, refused(480, "Unavailable", "no-answer", "dial_no_answer")],
        "no_answer", "480 Unavailable",
    ),
    "ended by the API": (
        [*RINGS, over(4, "gateway", "canceled", "canceled", by="api")], "canceled", "The API",
    ),
    "gateway killed": (
        [*DIALLED, over(60, "reconciler", "failed", "dial_failed",
                        note="found gone before an answer was seen")],
        "gateway_restarted", "gateway that placed",
    ),
    "gateway killed before the dial": (
        [gateway(0, "call.queued"),
         over(60, "reconciler", "failed", "dial_failed", note="never dialled")],
        "gateway_restarted", "gateway that placed",
    ),
    "no worker": (
        [gateway(0, "call.queued"),
         over(0.1, "gateway", "failed", "agent_unavailable", note="no_worker")],
        "no_worker", "heartbeat",
    ),
    "workers full": (
        [gateway(0, "call.queued"),
         over(0.1, "gateway", "failed", "agent_unavailable", note="workers_full")],
        "workers_full", "full",
    ),
    "workers draining": (
        [gateway(0, "call.queued"),
         over(0.1, "gateway", "failed", "agent_unavailable", note="workers_draining")],
        "workers_draining", "stopping",
    ),
    "nobody took the dispatch": (
        [*RINGS, gateway(4, "agent.redispatched", taken=False),
         over(15, "gateway", "failed", "agent_unavailable", note="dispatch_not_taken")],
        "dispatch_not_taken", "none took it",
    ),
    "agent did not join": (
        [*RINGS, gateway(7, "agent.redispatched", taken=True),
         over(15, "gateway", "failed", "agent_unavailable", note="agent_not_joined")],
        "agent_not_joined", "did not join",
    ),
    "no agent, and LiveKit does not say why": (
        [*RINGS, over(15, "gateway", "failed", "agent_unavailable", note="no_agent")],
        "agent_not_joined", "No agent joined",
    ),
    "worker killed": (
        [*TALKS, over(90, "reconciler", "failed", "agent_error",
                      note="no agent in the room any more")],
        "worker_lost", "died or vanished",
    ),
    "worker stopped": ([*TALKS, *failed(cause="worker_stopped")], "worker_stopped", "stopped"),
    "worker's defect": (
        [*TALKS, *failed(detail="KeyError")], "worker_failed", "KeyError",
    ),
    "no brief": (
        [*DIALLED, worker(1, "agent.joined"), *failed(2, "no_brief", "401")],
        "worker_without_gateway", "configuration",
    ),
    "agent died for good": (
        [*TALKS, gateway(9, "agent.lost"), over(20, "gateway", "failed", "agent_error")],
        "agent_lost", "no other one took over",
    ),
    "agent died and was replaced": (
        [*TALKS, gateway(9, "agent.lost"), gateway(11, "agent.resumed", lostMs=2400), *completed()],
        "agent_replaced", "2.4 s",
    ),
    "no agent took over": (
        [*TALKS, agent_lost(9, 0), gateway(10.3, "agent.redispatched", epoch=1, taken=False),
         over(19, "gateway", "failed", "agent_error", note="no agent took over",
              detail="dispatch_not_taken")],
        "agent_not_replaced", "process died in the call, and no worker took the call over",
    ),
    "the next agent did not join": (
        [*TALKS, agent_lost(9, 0, "hung"),
         over(19, "gateway", "failed", "agent_error", note="no agent took over",
              detail="agent_not_joined")],
        "agent_not_replaced", "hung in the call, and a worker took the call over, but",
    ),
    "nobody to dispatch to": (
        [*TALKS, agent_lost(9, 0, "stopped"),
         over(19, "gateway", "failed", "agent_error", note="no agent took over",
              detail="no_agent")],
        "agent_not_replaced", "worker was stopped during the call, and no other one",
    ),
    "poison": (
        [*TALKS, *(agent_lost(9 + 3 * epoch, epoch) for epoch in range(4)),
         *(gateway(11 + 3 * epoch, "agent.resumed", epoch=epoch + 1, lostMs=2000)
           for epoch in range(3)),
         over(19, "gateway", "failed", "agent_error", note="agents were lost too often")],
        "agents_lost_repeatedly", "4 agents were lost",
    ),
    "poison, and the fourth agent gave up": (
        [*TALKS, *(agent_lost(9 + 3 * epoch, epoch, "failed") for epoch in range(3)),
         *(worker(11 + 3 * epoch, "agent.resumed", epoch=epoch + 1, lostMs=2000)
           for epoch in range(3)),
         *failed(20)],
        "agents_lost_repeatedly", "3 agents were lost",
    ),
    "worker fell silent": (
        [*TALKS, agent_lost(9, 0, "vanished"),
         worker(13, "agent.resumed", epoch=1, lostMs=5100), *completed()],
        "agent_replaced", "fell silent during the call, and another one took over after 5.1 s",
    ),
    "the caller did not wait for the next agent": (
        [*TALKS, agent_lost(9, 0, "vanished"), *completed(10)],
        "agent_lost", "no other one took over before the call was over",
    ),
    "replaced while it rang": (
        [*RINGS, worker(0.9, "agent.joined", epoch=0), agent_lost(1.5, 0),
         worker(2.1, "agent.joined", epoch=1), worker(2.4, "agent.ready"),
         gateway(3, "call.answered"), turn(4, answer="Hello."), *completed()],
        "agent_replaced", "another one took over",
    ),
    "late agent": (
        [*RINGS, gateway(4, "agent.redispatched", taken=False), worker(5, "agent.joined"),
         worker(5.5, "agent.ready"), gateway(6, "call.answered"), *completed()],
        "agent_late", "sent for again",
    ),
    "STT key": (broken("stt", "HTTP 401"), "stt_key_wrong", "deepgram/nova-3: it refused the key"),
    "LLM key": (broken("llm", "HTTP 401"), "llm_key_wrong", "openai/gpt-x: it refused the key"),
    "TTS key": (broken("tts", "HTTP 403"), "tts_key_wrong", "cartesia/sonic-3: it refused the key"),
    "quota": (broken("llm", "HTTP 429"), "llm_quota", "limit or credit"),
    "wrong model": (broken("llm", "HTTP 404"), "llm_refused", "refused the request"),
    "provider hangs": (broken("llm", "APITimeoutError"), "llm_timeout", "did not answer in time"),
    "provider away": (broken("tts", "APIConnectionError"), "tts_unreachable", "connection"),
    "provider broken": (broken("stt", "HTTP 500"), "stt_failed", "HTTP 500"),
    "all of a chain": (
        [*DIALLED, worker(1, "agent.joined"), worker(2, "agent.ready", llm="openai/a, openai/b"),
         gateway(3, "call.answered"),
         worker(8, "provider.error", stage="llm", provider="openai/a", message="HTTP 401",
                recoverable=True),
         worker(8, "provider.switched", stage="llm", **{"from": "openai/a", "to": "openai/b"}),
         worker(9, "provider.error", stage="llm", provider="openai/a, openai/b",
                message="HTTP 500", recoverable=False),
         *failed(10, "provider_failed", "llm: HTTP 500")],
        "llm_all_failed", "openai/a: it refused the key",
    ),
    "a fallback took over": (
        [*TALKS,
         worker(8, "provider.error", stage="stt", provider="deepgram/nova-3", message="no words",
                recoverable=True),
         worker(8, "provider.switched", stage="stt",
                **{"from": "deepgram/nova-3", "to": "deepgram/nova-2"}),
         *completed()],
        "provider_switched", "Another provider took over",
    ),
    "a retry helped": (
        [*TALKS, worker(8, "provider.error", stage="llm", message="HTTP 500", recoverable=True),
         *completed()],
        "provider_error", "The call went on",
    ),
    "session closed": (broken("session", "error"), "session_failed", "voice session"),
    "slow LLM": (slow_turns(stt=200, llm=5200, tts=150), "llm_slow", "openai/gpt-x"),
    "slow STT": (slow_turns(stt=2600, llm=300, tts=150), "stt_slow", "deepgram/nova-3"),
    "slow TTS": (slow_turns(stt=200, llm=300, tts=4000), "tts_slow", "cartesia/sonic-3"),
    "webhook 500": (webhook_failed(500, "The endpoint failed"), "webhook_server_error", "500"),
    "webhook 404": (webhook_failed(404, "The endpoint refused it"), "webhook_refused", "404"),
    "webhook hangs": (webhook_failed(None, "No answer within 5 s"), "webhook_timeout", "5 s"),
    "webhook never ends": (
        webhook_failed(200, "The answer did not end within 5 s"), "webhook_timeout", "did not end",
    ),
    "webhook on a private address": (
        webhook_failed(None, "The address is not public"), "webhook_address_refused", "not public",
    ),
    "no webhook": (webhook_failed(None, "No webhook is set"), "webhook_missing", "No webhook"),
    "webhook down": (webhook_failed(None, "No connection"), "webhook_unreachable", "connection"),
    "webhook talks nonsense": (
        webhook_failed(200, "The answer is compressed"), "webhook_broken", "compressed",
    ),
    "webhook slow": (
        [*TALKS, asked(8, "replied", status=200, firstReplyMs=4200, durationMs=4300), *completed()],
        "webhook_slow", "4.2 s",
    ),
    "webhook too slow for the caller": (
        [*TALKS, asked(9, "aborted", durationMs=6000), *completed()], "webhook_slow", "6.0 s",
    ),
    "webhook's action": (
        [*TALKS, asked(8, "replied", status=200, firstReplyMs=90),
         worker(9, "webhook.action_failed", action="dance", reason="only …"), *completed()],
        "webhook_action_failed", "dance",
    ),
    "one-way audio": ([*TALKS, NO_SOUND, *completed()], "one_way_audio", "No sound came"),
    "no answers": (
        [*TALKS, turn(8, "hello"), turn(16, "anybody there"), *completed()],
        "turns_unanswered", "none of the caller's 2 turns",
    ),
    "silence": ([*TALKS, *completed(reason="inactivity")], "silence", "said nothing"),
    "voicemail": (
        [*TALKS, worker(8, "machine.detected", kind="voicemail"),
         *completed(reason="voicemail_reached")],
        "voicemail_reached", "the agent hung up",
    ),
    "voicemail, message left": (
        [*TALKS, worker(8, "machine.detected", kind="voicemail"),
         worker(12, "voicemail.left", durationMs=4000), *completed(reason="voicemail_reached")],
        "voicemail_reached", "the message was left",
    ),
    "menu": ([*TALKS, *completed(reason="ivr_reached")], "menu_reached", "menu"),
    "longest duration": (
        [*TALKS, *completed(63, "max_duration_reached")], "max_duration", "60 s",
    ),
    "no consent": (
        [*TALKS, worker(6, "consent.asked"), worker(8, "consent.refused", by="words"),
         *completed(reason="agent_hangup", cause="consent_refused")],
        "consent_refused", "did not consent",
    ),
    "transfer: busy": (
        transfer_failed("busy", sipStatusCode=486, sipReason="Busy Here"),
        "transfer_busy", "486 Busy Here",
    ),
    "transfer: no answer": (transfer_failed("no_answer"), "transfer_no_answer", "did not answer"),
    "transfer: refused": (transfer_failed("rejected"), "transfer_rejected", "refused the call"),
    "transfer: wrong number": (
        transfer_failed("invalid_destination"), "transfer_invalid_destination", "does not exist",
    ),
    "transfer: policy": (transfer_failed("not_allowed"), "transfer_not_allowed", "policy"),
    "transfer: this kind of call": (
        transfer_failed("not_supported"), "transfer_not_supported", "not support",
    ),
    "transfer: declined": (transfer_failed("declined"), "transfer_declined", "declined"),
    "transfer: who knows": (transfer_failed("failed"), "transfer_failed", "could not be"),
    "tool failed": (
        [*TALKS, worker(9, "tool.called", name="book", ok=False, durationMs=10_000), *completed()],
        "tool_failed", "book",
    ),
    "tool slow": (
        [*TALKS, worker(9, "tool.called", name="book", ok=True, durationMs=8000), *completed()],
        "tool_slow", "8.0 s",
    ),
    "MCP server down": (
        [*TALKS, worker(4, "mcp.failed", server="x", message="it did not answer in time"),
         *completed()],
        "mcp_failed", "did not answer in time",
    ),
    "recording lost": (
        [*TALKS, worker(3.1, "recording.started", format="wav"),
         worker(9, "recording.failed", reason="disk_full"), *completed()],
        "recording_failed", "disk was full",
    ),
    "SIP service died": (
        [*TALKS, *failed(cause="leg_lost", detail="its SIP service died")],
        "sip_service_lost", "SIP service died",
    ),
    "SIP service died, by LiveKit": (
        [*TALKS, livekit(20, "participant_left", disconnectReason="CONNECTION_TIMEOUT"),
         over(20, "livekit", "failed", "agent_error", disconnectReason="CONNECTION_TIMEOUT")],
        "sip_service_lost", "SIP service died",
    ),
    "identity used twice": ([*TALKS, *failed(cause="leg_replaced")], "leg_replaced", "identity"),
    "LiveKit away": ([*TALKS, *failed(cause="media_lost")], "livekit_lost", "LiveKit"),
    "end not seen": (
        [*TALKS, over(90, "reconciler", "completed", "user_hangup", note="found gone")],
        "end_not_seen", "found over afterwards",
    ),
}  # fmt: skip

INBOUND: dict[str, tuple[list[Told], str, str]] = {
    "number without agent": (
        turned_away("number_without_agent"), "number_without_agent", "no agent",
    ),
    "agent deleted": (turned_away("agent_not_found"), "agent_not_found", "deleted"),
    "agent disabled": (turned_away("agent_disabled"), "agent_disabled", "takes no calls"),
    "agent without webhook": (
        turned_away("webhook_not_configured"), "webhook_not_configured", "webhook",
    ),
    "outbound number": (turned_away("number_outbound_only"), "number_outbound_only", "outgoing"),
    "number not approved": (turned_away("number_not_attached"), "number_not_attached", "approved"),
    "limit": (turned_away("concurrency_limit"), "concurrency_limit", "as many calls"),
    "caller hung up": (
        [*ARRIVES, over(9, "worker", "canceled", "user_hangup", cause="caller_gave_up")],
        "caller_gave_up", "9.0 s",
    ),
    "caller gave up on a late agent": (
        [*ARRIVES, gateway(4, "agent.redispatched", taken=False),
         over(9, "livekit", "canceled", "user_hangup")],
        "agent_late", "over before it came",
    ),
    "rang out": (
        [*ARRIVES, over(15, "worker", "failed", "agent_unavailable", cause="rang_out")],
        "agent_did_not_answer", "no agent answered",
    ),
    "removed while it rang": (
        [*ARRIVES, over(5, "worker", "canceled", "canceled", cause="ring_removed")],
        "canceled", "from our side",
    ),
}  # fmt: skip

STREAMED: dict[str, tuple[list[Told], str, str]] = {
    "no stream worker": (
        [gateway(0, "call.queued"),
         over(0.1, "gateway", "failed", "agent_unavailable", note="no_stream_worker")],
        "no_stream_worker", "No stream worker",
    ),
    "nobody came": (
        [gateway(0, "call.queued"),
         over(61, "gateway", "canceled", "canceled", note="nobody came")],
        "stream_never_connected", "No socket came",
    ),
    "stream broke": (
        [*STREAMS, worker(9, "stream.lost"), *failed(39, "leg_lost", "no other socket")],
        "stream_lost", "no other one came",
    ),
    "stream came back": (
        [*STREAMS, worker(9, "stream.lost"), worker(11, "stream.connected"), *completed()],
        "stream_interrupted", "broke once",
    ),
    "stream worker killed": (
        [*STREAMS, over(90, "reconciler", "failed", "agent_error", note="its worker is gone")],
        "worker_lost", "died or vanished",
    ),
    "silent client": ([*STREAMS, NO_SOUND, *completed()], "one_way_audio", "No sound came"),
    "Twilio refuses": (
        [gateway(0, "call.queued"),
         over(0.3, "gateway", "failed", "invalid_destination", note=REFERRED)],
        "twilio_refused", REFERRED,
    ),
}  # fmt: skip

CASES: list[Any] = [
    *(pytest.param(case, "outbound", "pstn", id=name) for name, case in OUTBOUND.items()),
    *(pytest.param(case, "inbound", "pstn", id=name) for name, case in INBOUND.items()),
    *(pytest.param(case, "outbound", "stream", id=name) for name, case in STREAMED.items()),
    pytest.param(
        ([gateway(0, "call.queued"), over(30, "gateway", "canceled", "canceled",
                                          note="nobody came")],
         "visitor_never_came", "did not join"), "web", "web", id="no visitor",
    ),
]  # fmt: skip
