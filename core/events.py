"""The timeline's vocabulary.

Whoever learns a fact appends an event: the gateway (the dial and its verdict),
the worker (what it sees and hears in the room), LiveKit (webhooks), the
reconciler. The gateway folds them into a call's status (gateway.store.call_status).

    call.queued                                          accepted, nothing dialled yet
    call.dialing     {participantId, sipCallId}          the SIP participant is in the room
    call.ringing     {participantId?, sipCallId?}        the callee is ringing (180 or 183); or a
                                                         caller is in the room and hears ringing
    call.answered                                        the call was answered (200)
    call.ended       {status, reason, sipStatusCode?, sipReason?, problem?, note?, …}
                                                         problem: sip.dial.Problem
    agent.dispatched {epoch?}     agent.left {cause}
    agent.joined     {worker, epoch}                     its worker's id
    agent.lost       {epoch, why, seenAt, detail?}       core.recovery; another one is sent for
    agent.resumed    {epoch, lostMs, unanswered}         it speaks; lostMs since seenAt
    agent.redispatched {taken, epoch?}                   sent for again; taken: by a worker, who
                                                         has not joined; null: not known
    agent.ready      {stt, llm?, tts}                    the providers' names
    audio.missing    {afterMs}                           no sound from the far end so far
    audio.received   {afterMs}                           the first sound, after audio.missing
    greeting.started                                     its first sound left the worker
    turn             {a core.models.Turn}                for the same id, the newer wins
    barge_in         {atMs, heard}
    tool.called      {name, ok, durationMs}
    mcp.ready        {server, tools}      mcp.failed {server, message}
    call.answered_by {answeredBy, afterMs?}              what Twilio's machine detection says
    machine.detected {kind, afterMs, evidence}           a machine answered: voicemail or ivr
    voicemail.left   {durationMs}                        the message was played to its end
    dtmf.received    {digit}      dtmf.sent {digits}
    provider.error   {stage, provider?, message, recoverable}
    transfer.started {to, mode}   transfer.ringing   transfer.answered   transfer.accepted
    transfer.failed  {reason, sipStatusCode?, sipReason?}                the agent continues
    call.transferred {to, mode}                          the caller is with a human
    stream.connected {accountSid?, callSid?, streamSid?} a session has a socket (Twilio's ids)
    stream.lost                                          its socket broke; it waits for another
    recording.stored   {key, format, bytes, sha256, durationMs, encrypted}
    recording.accessed {by, via, what}   via: api, link  what: audio, peaks, waveform
    recording.deleted  {by}                              api or retention
    recording.exported {job}
    livekit.<webhook>{…}                                 LiveKit's webhook, reduced to facts
    memory.<…>       on no timeline: see core.tools.memory
"""

from __future__ import annotations

from typing import Any, Final, Literal

from core.models import DisconnectionReason, Status

GATEWAYS_OWN: Final = frozenset(
    {"recording.accessed", "recording.deleted", "recording.exported", "agent.lost"}
)
"""What the gateway alone decides or does: no worker may report it."""

Source = Literal["gateway", "worker", "livekit", "reconciler"]


def ended(
    status: Status,
    reason: DisconnectionReason,
    *,
    sip_status_code: int | None = None,
    sip_reason: str | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Build the data of a ``call.ended`` event."""
    data: dict[str, Any] = {"status": status, "reason": reason, **facts}
    if sip_status_code is not None:
        data["sipStatusCode"] = sip_status_code
    if sip_reason:
        data["sipReason"] = sip_reason
    return data
