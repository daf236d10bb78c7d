"""Calls that come in: one record each, made by whoever tells of the call first.

That may be LiveKit's webhook, the worker that finds itself in the caller's room, or the
reconciler. The record's id follows from the room's name, which LiveKit makes up for one call,
so that two who tell at the same time, or much later, cannot make two of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Coroutine, Sequence
from datetime import datetime
from typing import Any

from livekit.api import LiveKitAPI
from livekit.protocol.agent_dispatch import RoomAgentDispatch
from livekit.protocol.models import ParticipantInfo

from core.errors import Conflict, Gone, ServerFault, TooManyRequests, Unavailable
from core.events import ended
from core.jobs import Assignment, InboundJob, InboundRoom
from core.models import Agent, CallEvent, DisconnectionReason, PhoneNumber, Status, now
from core.tokens import TokenIssuer
from gateway.calls.dispatcher import Arrival, Dispatcher, answering_webhook, brief_of
from gateway.calls.limits import CallLimits
from gateway.calls.livekit import LIVEKIT_ERRORS, leg_of, present, send_away_or_log
from gateway.calls.timeline import Journal, Timeline, Watch
from gateway.lookup.agents import Agents, check_takes_calls
from gateway.lookup.numbers import Numbers
from gateway.store.call_record import Call
from gateway.store.calls import LiveIdentity, NewCall, Store
from gateway.store.database import Scope
from gateway.store.webhooks import WebhookStore
from sip.far_end import LONGEST_KEY, is_text, told
from sip.trunks import read_label

log = logging.getLogger(__name__)


# An agent may be in the room a moment before its caller is.
_CALLER_WITHIN_S = 2.0
_LOOK_EVERY_S = 0.05
_CONNECTED = ParticipantInfo.State.ACTIVE


class Inbound:
    """Lets callers in or turns them away, and sees an agent to those it let in."""

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
        agent_name: str,
        agent_join_timeout_s: float,
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
        self._agent_name = agent_name
        self._agent_join_timeout_s = agent_join_timeout_s
        self._tasks: dict[asyncio.Task[None], str] = {}

    def follows(self, call_id: str) -> bool:
        """Whether this process still waits for the call's agent (the reconciler lets it)."""
        return call_id in self._tasks.values()

    async def aclose(self) -> None:
        """Stop following; the reconciler of the next gateway looks after what rings."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def assign(self, room: InboundRoom) -> Assignment:
        """What the worker in ``room`` needs. Raises Gone: refused, over, or nobody there."""
        call_id = call_id_of(room.room_name)
        found = await self._store.call_and_agent(call_id)
        if found is None:
            caller = await self._caller(room)
            if caller is None:
                raise Gone("The caller is not there any more")
            await self.admit(room.room_name, caller)
            found = await self._store.call_and_agent(call_id)
        if found is None:
            raise Gone("The call is not known")
        call, agent = found
        if call.ended or agent is None:
            raise Gone("The call is over, or takes no agent")
        # From here on the worker is the one to say how the call went.
        handed_over = CallEvent(id=f"{call_id}_dispatched", type="agent.dispatched")
        await self._timeline.append(call_id, [handed_over], "gateway")
        webhook = await answering_webhook(call, agent, self._webhooks)
        return Assignment(
            brief=brief_of(call, agent, webhook),
            token=self._tokens.for_call(call_id),
        )

    async def admit(
        self, room_name: str, caller: ParticipantInfo, at: datetime | None = None
    ) -> Call:
        """The record of the call of ``caller`` (see is_caller), made now if there is none.

        Whom no agent can take is turned away, with a record that says why. ``at``: when the
        caller came, if that was not just now. Raises Unavailable; Gone for one whom no record
        can name, who is turned away without.
        """
        call_id = call_id_of(room_name)
        if not can_be_named(room_name, caller):
            log.warning("turned away a caller whose name is no text", extra={"call_id": call_id})
            self._spawn(call_id, send_away_or_log(self._livekit, room_name, caller.identity))
            raise Gone("The caller cannot be named")
        if call := await self._store.call(Scope(None), call_id):
            return call
        number = await self._numbers.get(Scope(None), number_id_of(caller))
        agent, refusal = await self._agent_of(number)
        new = new_call(call_id, room_name, caller, number, agent)
        try:
            call, refusal = await self._insert(
                new, first_events(call_id, caller, at or now()), refusal
            )
        except LiveIdentity:
            # Somebody else was first, in this very moment.
            if call := await self._store.call(Scope(None), call_id):
                return call
            raise
        if refusal:
            log.info("call refused", extra={"call_id": call_id, "why": refusal})
            self._spawn(call_id, send_away_or_log(self._livekit, room_name, caller.identity))
        else:
            self._spawn(call_id, self._see_agent_in(room_name, caller, call_id))
        return call

    async def _insert(
        self, new: NewCall, events: Sequence[CallEvent], refusal: str | None
    ) -> tuple[Call, str | None]:
        """The record, and why the call was refused after all."""
        if refusal is None:
            try:
                return await self._limits.insert(new, *events), None
            except TooManyRequests:
                refusal = "concurrency_limit"
        refused = CallEvent(
            type="call.ended", data=ended("failed", "agent_unavailable", note=refusal)
        )
        return await self._store.insert_call(new, *events, refused), refusal

    async def _agent_of(self, number: PhoneNumber | None) -> tuple[Agent | None, str | None]:
        """Who answers calls to the number, and why nobody does."""
        if number is None or number.status in {"pending", "detaching"}:
            return None, "number_not_attached"
        agent = None
        if number.agent_id is not None:
            try:
                agent = await self._agents.get(Scope(number.auth_id), number.agent_id)
            except ServerFault as error:
                return None, error.code.lower()
        if number.direction == "outbound":
            return agent, "number_outbound_only"
        if agent is None:
            return None, "agent_not_found" if number.agent_id else "number_without_agent"
        try:
            await check_takes_calls(agent, number.auth_id, self._webhooks)
        except Conflict as error:
            return agent, error.code.lower()
        return agent, None

    async def _caller(self, room: InboundRoom) -> ParticipantInfo | None:
        """Who called, waited for a little. Raises Unavailable.

        Connected, too: a LiveKit SDK that is still at it would not hear that it is sent away
        before it gives up, 10 s later.
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

    async def _see_agent_in(self, room_name: str, caller: ParticipantInfo, call_id: str) -> None:
        arrival = Arrival(
            call_id,
            room_name,
            watch=Watch(call_id, self._store, self._timeline),
            journal=self._journal,
            dispatcher=_Redispatcher(self._livekit, self._tokens, self._agent_name, caller),
            timeout_s=self._agent_join_timeout_s,
            # Its worker has asked: should it fail, the ringing time-out ends the call.
            sign="agent.dispatched",
        )
        if not await arrival.seen():
            await send_away_or_log(self._livekit, room_name, caller.identity)

    def _spawn(self, call_id: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"inbound {call_id}")
        self._tasks[task] = call_id
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        call_id = self._tasks.pop(task)
        if not task.cancelled() and task.exception():
            log.error(
                "following a call failed", exc_info=task.exception(), extra={"call_id": call_id}
            )


class _Redispatcher(Dispatcher):
    """Sends the agent that the number's rule sent, once more: the later one takes over."""

    def __init__(
        self, livekit: LiveKitAPI, tokens: TokenIssuer, agent_name: str, caller: ParticipantInfo
    ) -> None:
        super().__init__(livekit, tokens, agent_name)
        self._job = InboundJob(number_id=number_id_of(caller), auth_id=owner(caller))

    def dispatch(self, call_id: str) -> RoomAgentDispatch:
        metadata = self._job.model_dump_json(by_alias=True, exclude_none=True)
        return RoomAgentDispatch(agent_name=self.agent_name, metadata=metadata)


def call_id_of(room_name: str) -> str:
    """The id of the inbound call that this room was made for."""
    return f"call_{hashlib.sha256(room_name.encode()).hexdigest()[:24]}"


def is_caller(participant: ParticipantInfo) -> bool:
    """Whether it is the phone of somebody who called a number of ours."""
    leg = leg_of(participant)
    return leg is not None and leg.role == "caller"


def number_id_of(caller: ParticipantInfo) -> str:
    """The id of the number that was called (see is_caller)."""
    leg = leg_of(caller)
    assert leg is not None
    return leg.id


def can_be_named(room_name: str, participant: ParticipantInfo) -> bool:
    """Whether a record can name the participant, which a SIP service calls as its caller does."""
    return all(
        is_text(key, LONGEST_KEY) for key in (room_name, participant.identity, participant.sid)
    )


def left_unanswered(
    call_status: str | None, reason: str | None
) -> tuple[Status, DisconnectionReason]:
    """How a call ended whose caller left before the answer.

    ``call_status`` is the last ``sip.callStatus``: ``hangup`` after a CANCEL, still ``ringing``
    when the SIP service gave up; ``reason`` the name of LiveKit's DisconnectReason.
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
    """The record of the call as it comes in."""
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
    )


def owner(caller: ParticipantInfo) -> str | None:
    """Whose the number was when its rule was made: the rule's metadata is the caller's."""
    auth_id = read_label(caller.metadata).get("auth_id")
    return auth_id if isinstance(auth_id, str) else None


def first_events(call_id: str, caller: ParticipantInfo, at: datetime) -> list[CallEvent]:
    """What is known of it by then, whoever tells."""
    ids = {"participantId": caller.sid, "sipCallId": told(caller.attributes.get("sip.callID"))}
    return [
        CallEvent(id=f"{call_id}_queued", type="call.queued", at=at),
        CallEvent(id=f"{call_id}_ringing", type="call.ringing", at=at, data=ids),
    ]
