"""What an agent that takes over a call is told of it (core.recovery.Recovered).

A pure function of the call, its timeline, and the tools that ran in it. A lost agent's last events
may arrive only later: an agent that asks before them knows less, and the call goes on all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

from core.memory import ToolRun
from core.models import Turn
from core.recovery import MOST_LOST, OpenTransfer, Recovered
from gateway.store.call_rows import in_spoken_order
from gateway.store.call_status import Call, StoredEvent


def recovered(
    call: Call, events: Sequence[StoredEvent], tools: Sequence[ToolRun] = ()
) -> Recovered | None:
    """Return it for the present agent of ``call``; None: it is the call's first.

    ``events`` are all of the call's, by arrival, and ``tools`` those that ran.
    """
    if not call.agent_epoch:
        return None
    lost = [event for event in events if event.type == "agent.lost"]
    types = {event.type for event in events}
    turns = in_spoken_order(event.data for event in events if event.type == "turn")
    transfer = _transfer(events)
    masked_until, typing_secretly = _masks(events)
    return Recovered(
        epoch=call.agent_epoch,
        lost_at=lost[-1].data.get("seenAt") or lost[-1].at if lost else call.created_at,
        give_up=call.agent_epoch >= MOST_LOST,
        answered_at=call.answered_at,
        turns=turns,
        unfinished=transfer is not None or _tool_ran(events),
        greeted="greeting.started" in types or any(map(_talked, turns)),
        disclosed="disclosure.spoken" in types,
        consent=call.consent_status,
        machine=_machine(events),
        voicemail_left="voicemail.left" in types,
        silence_prompts=_prompts(events),
        keys=_keys(events),
        tools=list(tools),
        paused=_last(events, "recording.paused", "recording.resumed") == "recording.paused",
        recorded=_last(events, *_RECORDER) == "recording.started",
        transfer=transfer,
        masked_until=masked_until,
        typing_secretly=typing_secretly,
    )


_RECORDER = ("recording.started", "recording.stopped", "recording.failed")


def _machine(events: Sequence[StoredEvent]) -> Literal["voicemail", "ivr"] | None:
    told = [event.data.get("kind") for event in events if event.type == "machine.detected"]
    if not told:
        return None
    return "ivr" if told[0] == "ivr" else "voicemail"


def _talked(turn: Turn) -> bool:
    """Return True for an exchange: the greeting comes before the first one."""
    return bool(turn.transcript and turn.response)


def _last(events: Sequence[StoredEvent], *types: str) -> str | None:
    """Return which of these came last."""
    return next((event.type for event in reversed(events) if event.type in types), None)


def _tool_ran(events: Sequence[StoredEvent]) -> bool:
    """Return True if a tool's result is not spoken of yet."""
    return _last(events, "turn", "tool.called") == "tool.called"


def _masks(events: Sequence[StoredEvent]) -> tuple[datetime | None, bool]:
    """Return when the mask of the API's ends that is in force, and whether there is one of a secret
    entry."""
    until, secretly = None, False
    for event in events:
        if event.type == "recording.unmasked":
            until, secretly = None, False
        elif event.type == "recording.masked":
            seconds = event.data.get("seconds")
            if isinstance(seconds, int):
                until = event.at + timedelta(seconds=seconds)
            else:
                secretly = True
    return until, secretly


def _transfer(events: Sequence[StoredEvent]) -> OpenTransfer | None:
    """Return the last transfer, if it has neither failed nor succeeded."""
    transfer = None
    for event in events:
        match event.type:
            case "transfer.started":
                mode = "cold" if event.data.get("mode") == "cold" else "warm"
                transfer_id = event.id.removesuffix(f"_{event.type}")
                transfer = OpenTransfer(transfer_id=transfer_id, mode=mode)
            case "transfer.failed" | "call.transferred":
                transfer = None
    return transfer


def _prompts(events: Sequence[StoredEvent]) -> int:
    """Return the number of silence prompts since the caller's last words or keys."""
    said = 0
    for event in events:
        if event.type == "silence.prompted":
            said += 1
        elif event.type == "dtmf.received" or (event.type == "turn" and event.data["transcript"]):
            said = 0
    return said


def _keys(events: Sequence[StoredEvent]) -> str:
    """Return the keys since the last turn that no tool has collected; masked ones are not known."""
    keys = ""
    for event in events:
        if event.type == "dtmf.received":
            keys += str(event.data.get("digit", ""))
        elif event.type == "turn" or _collected(event):
            keys = ""
    return keys


def _collected(event: StoredEvent) -> bool:
    collects = event.type == "tool.called" and event.data.get("name") == "collect_digits"
    return collects and event.data.get("ok") is True
