"""Send for the agent that takes over a call, until it has joined the call's room.

Any gateway may do this at any time, also several of them: the one that sent first may have died.
Each dispatch is an event with a number in its id, and whoever's append stores it sends it, so that
none is sent twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from core.errors import Unavailable
from core.models import CallEvent
from gateway.calls.dispatcher import Dispatcher
from gateway.calls.timeline import Timeline
from gateway.store.call_status import Call, StoredEvent
from gateway.store.calls import Store
from gateway.store.database import Scope

log = logging.getLogger(__name__)

_PAUSE_S: Final = 1.2
"""A free worker takes a dispatch within 0.4 s. One that was offered to a frozen worker is lost."""
_TOLD: Final = (
    "agent.lost",
    "agent.joined",
    "agent.dispatched",
    "agent.redispatched",
    "call.transferred",
)


def own_ids(call_id: str) -> tuple[str, ...]:
    """Return how the ids of recovery's own events begin; no worker may use them up."""
    return f"{call_id}_lost_", f"{call_id}_dispatched_", f"{call_id}_unrecovered"


def sending(call_id: str, epoch: int, number: int, taken: bool | None = None) -> CallEvent:
    """Return the event that the agent of ``epoch`` is sent for, the ``number``-th time from 0.

    ``taken``: whether a worker had taken the dispatch before; None: not known.
    """
    again = {} if number == 0 else {"taken": taken}
    return CallEvent(
        id=f"{call_id}_dispatched_{epoch}_{number}",
        type="agent.redispatched" if again else "agent.dispatched",
        data={"epoch": epoch, **again},
    )


@dataclass(frozen=True, slots=True)
class _Look:
    settled: bool
    """The agent has joined, or is not wanted any more."""
    sent: int
    """How many times it was sent for."""


class Successor:
    """The agent of ``epoch`` of a call in a room; it joins as ``identity``."""

    def __init__(
        self,
        call: Call,
        epoch: int,
        identity: str,
        *,
        store: Store,
        timeline: Timeline,
        dispatcher: Dispatcher,
        within_s: float,
    ) -> None:
        self._call_id = call.id
        self._room = call.room_name
        self._epoch = epoch
        self._identity = identity
        self._store = store
        self._timeline = timeline
        self._dispatcher = dispatcher
        self._within_s = within_s
        self._taken: bool | None = None

    async def comes(self, *, first: bool) -> bool:
        """Return True once the agent has joined, or is not wanted any more; False: not in time.

        ``first``: our event is the one that it is sent for, and nothing has been sent yet. The
        dispatch is repeated while no worker takes it, and after half the time if one took it but
        no agent has joined.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._within_s
        if first:
            await self._make_way()
            await self._send()
        sent, since, look_at = -1, clock(), 0.0
        async with self._timeline.listen(self._call_id) as news:
            while True:
                seen = await self._look()
                if seen is not None and seen.settled:
                    return True
                moment = clock()
                if moment >= deadline:
                    return False
                if seen is not None and seen.sent != sent:
                    sent, since = seen.sent, moment
                    look_at = since + (_PAUSE_S if sent else 0.0)
                if seen is not None and moment >= look_at:
                    look_at = moment + _PAUSE_S
                    self._taken = await self._dispatcher.taken(
                        self._room, self._call_id, self._epoch
                    )
                    if self._taken is False or moment - since >= self._within_s / 2:
                        await self._send_again(sent)
                        continue
                await news.wait(max(0.05, min(deadline, look_at) - clock()))

    @property
    def note(self) -> str:
        """Why it has not come."""
        return {True: "agent_not_joined", False: "dispatch_not_taken", None: "no_agent"}[
            self._taken
        ]

    async def _look(self) -> _Look | None:
        """Return None if the database does not answer."""
        try:
            call = await self._store.call(Scope(None), self._call_id)
            told = await self._store.events(self._call_id, types=_TOLD)
        except Unavailable:
            log.warning("cannot look for an agent", extra={"call_id": self._call_id})
            return None
        if call is None or call.ended or call.agent_epoch != self._epoch:
            return _Look(settled=True, sent=0)
        ours = [event for event in told if event.data.get("epoch") == self._epoch]
        sent = sum(event.type in ("agent.dispatched", "agent.redispatched") for event in ours)
        return _Look(settled=call.agent_worker is not None or _is_settled(told), sent=sent)

    async def _send_again(self, number: int) -> None:
        event = sending(self._call_id, self._epoch, number, self._taken)
        try:
            if await self._timeline.append(self._call_id, [event], "gateway"):
                log.warning("agent dispatched again", extra={"call_id": self._call_id})
                if self._taken is False:
                    await self._make_way()  # whoever sent first may have died before
                await self._send()
        except Unavailable:
            log.warning("no other dispatch", extra={"call_id": self._call_id})

    async def _make_way(self) -> None:
        await self._dispatcher.make_way(self._room, self._identity)

    async def _send(self) -> None:
        await self._dispatcher.send(self._call_id, self._room, self._epoch, self._identity)


def _is_settled(told: Sequence[StoredEvent]) -> bool:
    """Return True if an agent has joined since the last one was lost, or a human has taken over.

    Of a former agent no ``agent.joined`` is stored.
    """
    for event in reversed(told):
        if event.type in ("agent.joined", "call.transferred"):
            return True
        if event.type == "agent.lost":
            return any(before.type == "call.transferred" for before in told)
    return False
