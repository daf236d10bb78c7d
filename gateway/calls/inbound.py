"""Inbound calls: one record each, created by the first to report the call.

That is LiveKit's webhook, the dispatch of the number's rule (gateway.calls.places.doorman; in an
upgrade also a worker of an earlier release), or the reconciler. The record's id is derived from the
room's name, which LiveKit makes up for each call, so that several reports of a call, at the same
time or much later, create one record.

The caller hears ringing until the agent is there; while all workers' places are taken, the call
waits for one, up to RING_WHILE_FULL_S.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from livekit.api import LiveKitAPI
from livekit.protocol.models import ParticipantInfo

from core.errors import Gone, Unavailable
from core.events import ended
from core.jobs import Assignment, InboundRoom, agent_identity
from core.models import Agent, CallEvent, DisconnectionReason, PhoneNumber, Status, now
from core.recordings.config import TenantRecordings
from core.tasks.owned import Owned
from core.tokens import TokenIssuer
from gateway.calls.dispatcher import Arrival, Dispatcher, answering_webhook, brief_of
from gateway.calls.limits import CallLimits
from gateway.calls.livekit import LIVEKIT_ERRORS, leg_of, present, send_away_or_log
from gateway.calls.places.line import Line
from gateway.calls.timeline import Journal, Timeline, Watch
from gateway.lookup.agents import Agents, answering_agent
from gateway.lookup.numbers import Numbers
from gateway.store.call_status import Call
from gateway.store.calls import LiveIdentity, NewCall, Store
from gateway.store.database import Scope
from gateway.store.webhooks import WebhookStore
from sip.far_end import LONGEST_KEY, is_text, told
from sip.trunks import read_label

log = logging.getLogger(__name__)


# An agent may join the room shortly before its caller.
_CALLER_WITHIN_S = 2.0
_LOOK_EVERY_S = 0.05
_CONNECTED = ParticipantInfo.State.ACTIVE


class Inbound:
    """Admits or rejects callers, and waits for the agents of those admitted."""

    def __init__(
        self,
        *,
        livekit: LiveKitAPI,
        store: Store,
        numbers: Numbers,
        agents: Agents,
        webhooks: WebhookStore,
        limits: CallLimits,
        timeline: Timeline,
        journal: Journal,
        tokens: TokenIssuer,
        dispatcher: Dispatcher,
        line: Line,
        agent_join_timeout_s: float,
        tenant_recordings: Callable[[str | None], TenantRecordings],
    ) -> None:
        self._livekit = livekit
        self._store = store
        self._numbers = numbers
        self._agents = agents
        self._webhooks = webhooks
        self._limits = limits
        self._timeline = timeline
        self._journal = journal
        self._tokens = tokens
        self._dispatcher = dispatcher
        self._line = line
        self._agent_join_timeout_s = agent_join_timeout_s
        self._tenant_recordings = tenant_recordings
        self._tasks = Owned("following a caller")

    def follows(self, call_id: str) -> bool:
        """Return True while this process waits for the agent; the reconciler skips such calls."""
        return call_id in self._tasks

    async def aclose(self) -> None:
        """Stop following; the reconciler of the next gateway takes care of ringing calls."""
        await self._tasks.aclose()

    async def assign(self, room: InboundRoom) -> Assignment:
        """Return what a worker of an earlier release in ``room`` needs: it names no call.

        Raises Gone if the call was rejected or has ended, or waits for a place, or the caller has
        left.
        """
        await self.announce(room)
        call_id = call_id_of(room.room_name)
        found = await self._store.call_and_agent(call_id)
        if found is None:
            raise Gone("The call is unknown")
        call, agent = found
        if call.ended or agent is None:
            raise Gone("The call is over, or takes no agent")
        if call.agent_epoch:
            raise Gone("Another agent has taken over")  # a dispatch that was repeated too late
        if call.place == "wanted":
            raise Gone("Others wait for a place")
        await self.handed_over(call_id)
        webhook = await answering_webhook(call, agent, self._webhooks)
        return Assignment(
            brief=brief_of(call, agent, webhook, self._tenant_recordings(call.auth_id)),
            token=self._tokens.for_call(call_id),
        )

    async def handed_over(self, call_id: str) -> None:
        """Note that a worker has the call: from here on, it reports the call's course."""
        event = CallEvent(id=f"{call_id}_dispatched", type="agent.dispatched")
        await self._timeline.append(call_id, [event], "gateway")

    async def announce(self, room: InboundRoom) -> None:
        """Admit the caller in ``room``, or reject them. Raises Gone: there is none; Unavailable."""
        if await self._store.call(Scope(None), call_id_of(room.room_name)):
            return
        caller = await self._caller(room)
        if caller is None:
            raise Gone("The caller has left")
        await self.admit(room.room_name, caller)

    async def admit(
        self, room_name: str, caller: ParticipantInfo, at: datetime | None = None
    ) -> Call:
        """Return the record of the call of ``caller`` (see is_caller); create it if missing.

        A caller whom no agent can take is rejected, with a record that says why; if only no place
        is free, the caller waits. ``at``: when the caller joined; None: just now. Raises
        Unavailable; Gone for a caller whose names do not fit a record, who is rejected without one.
        """
        call_id = call_id_of(room_name)
        if not can_be_named(room_name, caller):
            log.warning("rejected a caller whose name is not text", extra={"call_id": call_id})
            self._tasks.begin(call_id, send_away_or_log(self._livekit, room_name, caller.identity))
            raise Gone("The caller has no usable name")
        if call := await self._store.call(Scope(None), call_id):
            return call
        number = await self._numbers.get(Scope(None), number_id_of(caller))
        agent, refusal = await answering_agent(number, self._agents, self._webhooks)
        new = new_call(call_id, room_name, caller, number, agent)
        try:
            call, refusal = await self._limits.admit(
                new, first_events(call_id, caller, at or now()), refusal, may_wait=True
            )
        except LiveIdentity:
            # A concurrent report created the record first.
            if call := await self._store.call(Scope(None), call_id):
                return call
            raise
        if refusal:
            log.info("call refused", extra={"call_id": call_id, "why": refusal})
            self._tasks.begin(call_id, send_away_or_log(self._livekit, room_name, caller.identity))
        else:
            self._tasks.begin(call_id, self._follow(room_name, caller, call))
        return call

    async def adopt(self, call: Call) -> None:
        """Follow a ringing call whose gateway is gone, from here on. Raises LIVEKIT_ERRORS."""
        for caller in filter(is_caller, await present(self._livekit, call.room_name)):
            if caller.identity == call.participant_identity:
                self._tasks.begin(call.id, self._follow(call.room_name, caller, call))

    async def _caller(self, room: InboundRoom) -> ParticipantInfo | None:
        """Wait briefly for the caller to be connected; None: no caller. Raises Unavailable.

        A LiveKit SDK that is removed while it is still connecting does not notice, and gives up
        only 10 s later.
        """
        deadline = asyncio.get_running_loop().time() + _CALLER_WITHIN_S
        while True:
            try:
                others = await present(self._livekit, room.room_name)
            except LIVEKIT_ERRORS:
                raise Unavailable("LiveKit is unavailable", code="LIVEKIT_UNAVAILABLE") from None
            for participant in filter(is_caller, others):
                if number_id_of(participant) != room.number_id:
                    continue
                if participant.state == _CONNECTED:
                    return participant
            if asyncio.get_running_loop().time() > deadline:
                return None
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _follow(self, room_name: str, caller: ParticipantInfo, call: Call) -> None:
        """Wait for a place if the call has none, then for its agent; send the caller away if none.

        The wait is over early if the caller leaves, as LiveKit's webhook reports.
        """
        waited = call.place == "wanted"
        if waited and (standing := await self._line.wait(call.id)) != "held":
            if standing == "wanted":
                await self._journal.write(call.id, "call.ended", await self._no_place())
                await send_away_or_log(self._livekit, room_name, caller.identity)
            return
        identity = agent_identity(room_name)
        seat = await self._dispatcher.seat(call.id)
        if waited or (seat is not None and not seat.by_livekit):
            await self._dispatcher.send(call.id, room_name, identity=identity)
        # Else a worker of an earlier release has the dispatch of the number's rule.
        arrival = Arrival(
            call.id,
            room_name,
            watch=Watch(call.id, self._store, self._timeline),
            journal=self._journal,
            dispatcher=self._dispatcher,
            timeout_s=self._agent_join_timeout_s,
            # The agent's worker has asked for the call. If it fails, the ringing time-out ends it.
            sign="agent.dispatched",
            identity=identity,
        )
        if not await arrival.seen():
            await send_away_or_log(self._livekit, room_name, caller.identity)

    async def _no_place(self) -> dict[str, Any]:
        return ended("failed", "agent_unavailable", note=await self._line.why("room"))


def call_id_of(room_name: str) -> str:
    """Return the id of the inbound call that this room was created for."""
    return f"call_{hashlib.sha256(room_name.encode()).hexdigest()[:24]}"


def is_caller(participant: ParticipantInfo) -> bool:
    """Return True if the participant is the leg of someone who called one of our numbers."""
    leg = leg_of(participant)
    return leg is not None and leg.role == "caller"


def number_id_of(caller: ParticipantInfo) -> str:
    """Return the id of the called number (see is_caller)."""
    leg = leg_of(caller)
    assert leg is not None
    return leg.id


def can_be_named(room_name: str, participant: ParticipantInfo) -> bool:
    """Return True if the names fit a record; a SIP service takes them from the far end."""
    return all(
        is_text(key, LONGEST_KEY) for key in (room_name, participant.identity, participant.sid)
    )


def left_unanswered(
    call_status: str | None, reason: str | None
) -> tuple[Status, DisconnectionReason]:
    """Return status and reason of a call whose caller left before the answer.

    ``call_status`` is the last ``sip.callStatus``: ``hangup`` after a CANCEL, still ``ringing``
    if the SIP service gave up. ``reason`` is the name of LiveKit's DisconnectReason.
    """
    if reason in {"PARTICIPANT_REMOVED", "ROOM_DELETED"}:
        return "canceled", "canceled"
    if call_status == "hangup":
        return "canceled", "user_hangup"
    return "failed", "agent_unavailable"


def new_call(
    call_id: str,
    room_name: str,
    caller: ParticipantInfo,
    number: PhoneNumber | None,
    agent: Agent | None,
) -> NewCall:
    """Return the record of an arriving call."""
    attributes = caller.attributes
    return NewCall(
        id=call_id,
        auth_id=number.auth_id if number else owner(caller),
        direction="inbound",
        room_name=room_name,
        participant_identity=caller.identity,
        from_number=told(attributes.get("sip.phoneNumber")),
        to_number=number.phone_number if number else told(attributes.get("sip.trunkPhoneNumber")),
        max_duration_ms=agent.config.max_duration_ms if agent else 0,
        agent=agent,
        phone_number_id=number_id_of(caller),
        metadata={},
        record=number is not None and number.record,
    )


def owner(caller: ParticipantInfo) -> str | None:
    """Return the tenant that the number's dispatch rule names; a caller has its metadata."""
    auth_id = read_label(caller.metadata).get("auth_id")
    return auth_id if isinstance(auth_id, str) else None


def first_events(call_id: str, caller: ParticipantInfo, at: datetime) -> list[CallEvent]:
    """Return the first two events; their ids are deterministic, so any reporter may write them."""
    ids = {"participantId": caller.sid, "sipCallId": told(caller.attributes.get("sip.callID"))}
    return [
        CallEvent(id=f"{call_id}_queued", type="call.queued", at=at),
        CallEvent(id=f"{call_id}_ringing", type="call.ringing", at=at, data=ids),
    ]
