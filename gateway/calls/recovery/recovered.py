"""What an agent that takes over a call is told of it (core.recovery.Recovered).

A pure function of the call, its timeline, and the tools that ran in it. A lost agent's last events
may arrive only later: an agent that asks before them knows less, and the call goes on all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from core.models import CallEvent, Turn
from core.recovery import MOST_LOST, OpenTransfer, Recovered
from core.tools.memory import ToolRun
from gateway.store.call_rows import in_spoken_order
from gateway.store.call_status import Call, StoredEvent

MOST_AGENTS: Final = 20
"""Of one call, whatever became of them."""

_CONSUMED: Final = ("consent.granted", "consent.refused")


def crashes(lost: Iterable[CallEvent]) -> int:
    """Return how many of these ``agent.lost`` are no planned stops of workers."""
    return sum(event.data.get("why") != "stopped" for event in lost if event.type == "agent.lost")


def is_hopeless(epoch: int, crashed: int) -> bool:
    """Return True if, after the loss of this agent, no other one is sent."""
    return crashed > MOST_LOST or epoch + 1 >= MOST_AGENTS


def recovered(
    call: Call, events: Sequence[StoredEvent], tools: Sequence[ToolRun] = ()
) -> Recovered | None:
    """Return it for the present agent of ``call``; None: it is the call's first.

    ``events`` are all of the call's, in any order, and ``tools`` those that ran.
    """
    if not call.agent_epoch:
        return None
    told = sorted(events, key=lambda event: (event.at, event.seq))
    lost = [event for event in told if event.type == "agent.lost"]
    types = {event.type for event in told}
    turns = in_spoken_order(
        event.data for event in sorted(events, key=lambda event: event.seq) if event.type == "turn"
    )
    transfer = _transfer(told)
    consent = call.consent_status
    return Recovered(
        epoch=call.agent_epoch,
        lost_at=_lost_at(lost) or call.created_at,
        give_up=crashes(lost) >= MOST_LOST or call.agent_epoch + 1 >= MOST_AGENTS,
        answered_at=call.answered_at,
        turns=turns,
        unfinished=transfer is not None or _last(told, "turn", "tool.called") == "tool.called",
        greeted="greeting.started" in types or any(map(_talked, turns)),
        disclosed="disclosure.spoken" in types,
        consent=None if consent == "not_asked" else consent,
        machine=_machine(told),
        voicemail_left="voicemail.left" in types,
        silence_prompts=_prompts(told),
        keys=_keys(told),
        tools=list(tools),
        transfer=transfer,
        **_privacy(told),
    )


def _last(told: Sequence[StoredEvent], *types: str) -> str | None:
    """Return which of these came last."""
    return next((event.type for event in reversed(told) if event.type in types), None)


def _talked(turn: Turn) -> bool:
    """Return True for an exchange: the greeting comes before the first one."""
    return bool(turn.transcript and turn.response)


def _machine(told: Sequence[StoredEvent]) -> Literal["voicemail", "ivr"] | None:
    kinds = [event.data.get("kind") for event in told if event.type == "machine.detected"]
    if not kinds:
        return None
    return "ivr" if kinds[0] == "ivr" else "voicemail"


def _lost_at(lost: Sequence[StoredEvent]) -> Any:
    """Return when the last of the agents was last known to do something."""
    if not lost:
        return None
    newest = max(lost, key=lambda event: event.data.get("epoch", 0))
    return newest.data.get("seenAt") or newest.at


def _prompts(told: Sequence[StoredEvent]) -> int:
    """Return the number of silence prompts since the caller's last words or keys.

    A turn is told again with each part of its answer; the caller spoke only once.
    """
    said = 0
    heard: set[object] = set()
    for event in told:
        if event.type == "silence.prompted":
            said += 1
        elif event.type == "dtmf.received":
            said = 0
        elif event.type == "turn" and event.data.get("transcript"):
            said = said if event.data.get("id") in heard else 0
            heard.add(event.data.get("id"))
    return said


def _keys(told: Sequence[StoredEvent]) -> str:
    """Return the keys that are in no turn, no tool's result and no answer to the opening.

    Masked ones are not known.
    """
    keys: list[tuple[datetime, str]] = []
    taken: list[datetime] = []
    spoken: dict[object, datetime] = {}
    for event in told:
        if event.type == "dtmf.received":
            keys.append((event.at, str(event.data.get("digit", ""))))
        elif event.type in _CONSUMED or (
            event.type == "tool.called"
            and event.data.get("name") == "collect_digits"
            and event.data.get("ok") is True  # else they become a turn
        ):
            taken.append(event.at)
        elif event.type == "turn" and event.data.get("transcript"):
            # It is told again when its answer has been spoken.
            spoken.setdefault(event.data.get("id"), event.at)
    since = max((*taken, *spoken.values()), default=None)
    return "".join(key for at, key in keys if since is None or at > since)


def _transfer(told: Sequence[StoredEvent]) -> OpenTransfer | None:
    """Return the transfer that has begun and has no outcome."""
    transfer: OpenTransfer | None = None
    for event in told:
        match event.type:
            case "transfer.started":
                transfer = OpenTransfer(
                    transfer_id=event.id.removesuffix(f"_{event.type}"),
                    mode="cold" if event.data.get("mode") == "cold" else "warm",
                )
            case "transfer.answered" if transfer is not None:
                transfer = transfer.model_copy(update={"answered": True})
            case "transfer.failed" | "call.transferred":
                transfer = None
    return transfer


def _privacy(told: Sequence[StoredEvent]) -> dict[str, Any]:
    """Return what was paused and masked. An agent's own mask, while it asks for secret keys, has
    no end that is known before."""
    paused, secretly, until = False, False, None
    for event in told:
        match event.type:
            case "recording.paused":
                paused = True
            case "recording.resumed":
                paused, until = False, None
            case "recording.masked" if isinstance(event.data.get("seconds"), int):
                until = event.at + timedelta(seconds=event.data["seconds"])  # by the API
            case "recording.masked":
                secretly = True
            case "recording.unmasked":
                secretly, until = False, None
    return {"paused": paused, "masked_until": until, "typing_secretly": secretly}
