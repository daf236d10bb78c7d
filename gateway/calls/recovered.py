"""What an agent that takes over a call is told of it (core.recovery.Recovered).

A pure function of the call, its timeline, and the tools that ran in it. A lost agent's last events
may arrive only later: an agent that asks before them knows less, and the call goes on all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.memory import ToolRun
from core.recovery import MOST_LOST, Recovered
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
    machine = next((event for event in events if event.type == "machine.detected"), None)
    return Recovered(
        epoch=call.agent_epoch,
        lost_at=lost[-1].data.get("seenAt") or lost[-1].at if lost else call.created_at,
        give_up=call.agent_epoch >= MOST_LOST,
        answered_at=call.answered_at,
        turns=in_spoken_order(event.data for event in events if event.type == "turn"),
        disclosed="disclosure.spoken" in types,
        consent=call.consent_status,
        machine=None if machine is None else str(machine.data.get("kind")),
        voicemail_left="voicemail.left" in types,
        silence_prompts=_prompts(events),
        keys=_keys(events),
        tools=list(tools),
    )


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
    """Return the keys since the last turn; masked ones are not known."""
    keys = ""
    for event in events:
        if event.type == "dtmf.received":
            keys += str(event.data.get("digit", ""))
        elif event.type == "turn":
            keys = ""
    return keys
