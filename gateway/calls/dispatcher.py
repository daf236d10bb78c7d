"""A call's agent: dispatch it to the worker whose place the call holds, see it join, and brief it.

The gateway chooses the worker (gateway.store.places); LiveKit passes the job on. Each worker has a
name of its own there, so no job goes to one that is full, stops, or is silent.
"""

from __future__ import annotations

import asyncio
import logging

from livekit.api import LiveKitAPI
from livekit.protocol.agent import JobStatus
from livekit.protocol.agent_dispatch import CreateAgentDispatchRequest, RoomAgentDispatch
from livekit.protocol.room import RoomParticipantIdentity
from pydantic import ValidationError

from core.errors import Unavailable
from core.events import ended
from core.jobs import CallBrief, JobMetadata, VoiceWebhook, is_dispatch_name
from core.models import Agent
from core.recordings.config import TenantRecordings
from core.recordings.plan import RecordingPlan, object_key
from core.recovery import Recovered
from core.tokens import TokenIssuer
from gateway.calls.livekit import LIVEKIT_ERRORS
from gateway.calls.timeline import Journal, Watch
from gateway.fields.agent_recording import region_of
from gateway.fields.jurisdictions import consent_mode
from gateway.store.call_status import Call
from gateway.store.credentials import Unreadable
from gateway.store.places.fleet import Seat
from gateway.store.places.places import Places
from gateway.store.webhooks import WebhookEndpoint, WebhookStore
from sip.leave import remove_leg

log = logging.getLogger(__name__)

# Interval between two checks of a call without an agent. LiveKit gives a worker 3 s to take a
# dispatch (psrpc's DefaultClientTimeout). With twelve calls at once on two cores some took over
# 1.5 s, and a dispatch repeated too early sends a second agent, which disconnects the first.
_LOOK_EVERY_S = 3.5
_ON_IT = frozenset({JobStatus.JS_PENDING, JobStatus.JS_RUNNING})


class Dispatcher:
    """Dispatches our agents to rooms, each with its call's token."""

    def __init__(
        self, livekit: LiveKitAPI, tokens: TokenIssuer, places: Places, agent_name: str
    ) -> None:
        self._livekit = livekit
        self._tokens = tokens
        self._places = places
        self.agent_name = agent_name

    async def seat(self, call_id: str) -> Seat | None:
        """Return the place that the call holds. Raises Unavailable."""
        return await self._places.seat(call_id)

    def dispatch(
        self, call_id: str, seat: Seat | None, epoch: int = 0, identity: str | None = None
    ) -> RoomAgentDispatch:
        """Return the dispatch to create the call's room with. ``identity``: see JobMetadata."""
        token = self._tokens.for_call(call_id, epoch)
        metadata = JobMetadata(call_id=call_id, token=token, epoch=epoch, identity=identity)
        return RoomAgentDispatch(
            agent_name=self.agent_name if seat is None else seat.dispatch_name,
            metadata=metadata.model_dump_json(by_alias=True),
        )

    async def send(
        self,
        call_id: str,
        room_name: str,
        epoch: int = 0,
        identity: str | None = None,
        *,
        again: bool = False,
    ) -> None:
        """Dispatch to an existing room. A failure is logged: Arrival checks that an agent joins.

        ``again``, or another agent (``epoch``): to another worker, if one has a place. It need not
        wait in the line.
        """
        facts = {"call_id": call_id}
        try:
            if again or epoch:
                seat = await self._places.move(call_id, "room", self.agent_name)
            else:
                seat = await self.seat(call_id)
        except Unavailable:
            return log.warning("dispatch failed: no database", extra=facts)
        if seat is None:
            return log.warning("no dispatch: no worker has a place", extra=facts)
        wanted = self.dispatch(call_id, seat, epoch, identity)
        try:
            await self._livekit.agent_dispatch.create_dispatch(
                CreateAgentDispatchRequest(
                    room=room_name, agent_name=wanted.agent_name, metadata=wanted.metadata
                )
            )
        except LIVEKIT_ERRORS:
            log.warning("dispatch failed", extra=facts)

    async def make_way(self, room_name: str, identity: str) -> None:
        """Remove a lost agent from its room, before the next one with its identity is sent for.

        LiveKit (1.13) keeps the job of each identity, and when a participant leaves, also because
        another one with its identity joins, it terminates the job that it has then: the next
        agent's, if that was dispatched already. That agent would have to stop 15 s later.
        A failure is logged: LiveKit removes the lost agent when the next one joins.
        """
        try:
            await remove_leg(
                self._livekit, RoomParticipantIdentity(room=room_name, identity=identity)
            )
        except LIVEKIT_ERRORS:
            log.warning("a lost agent was not removed", extra={"room": room_name})

    async def taken(self, room_name: str, call_id: str = "", epoch: int = 0) -> bool | None:
        """Return True if a worker has taken a dispatch of this room; None if LiveKit fails.

        With an ``epoch``, only that agent's dispatches count. LiveKit does not retry a dispatch
        that found no worker: it stays listed, without a job.
        """
        try:
            listed = await self._livekit.agent_dispatch.list_dispatch(room_name)
        except LIVEKIT_ERRORS:
            return None
        ours = (one for one in listed if is_dispatch_name(one.agent_name, self.agent_name))
        if epoch:
            ours = (one for one in ours if _is_for(one.metadata, call_id, epoch))
        return any(job.state.status in _ON_IT for one in ours for job in one.state.jobs)


def _is_for(metadata: str, call_id: str, epoch: int) -> bool:
    try:
        job = JobMetadata.model_validate_json(metadata)
    except ValidationError:
        return False  # a caller's: it names the called number
    return (job.call_id, job.epoch) == (call_id, epoch)


class Arrival:
    """Waits for an agent and repeats its dispatch: LiveKit neither queues nor retries one."""

    def __init__(
        self,
        call_id: str,
        room_name: str,
        *,
        watch: Watch,
        journal: Journal,
        dispatcher: Dispatcher,
        timeout_s: float,
        sign: str = "agent.joined",
        identity: str | None = None,
    ) -> None:
        """``sign``: the event that shows that the agent has come. ``identity``: see JobMetadata."""
        self._sign = sign
        self._identity = identity
        self._call_id = call_id
        self._room_name = room_name
        self._watch = watch
        self._journal = journal
        self._dispatcher = dispatcher
        self._timeout_s = timeout_s
        self._taken: bool | None = None

    async def seen(self) -> bool:
        """Return True once the agent has joined, or the call has ended and needs none.

        The dispatch is repeated while no worker takes it, and once, at half time, if a worker took
        it but no agent has joined. At the deadline the call is ended as ``agent_unavailable``;
        hanging up the far end is then up to the caller of this method.
        """
        clock = asyncio.get_running_loop()
        deadline = clock.time() + self._timeout_s
        half_time = deadline - self._timeout_s / 2
        pause_s = min(_LOOK_EVERY_S, self._timeout_s / 2)
        hurried = False
        while not await self._joined(min(pause_s, deadline - clock.time())):
            if clock.time() >= deadline:
                return await self._write_off()
            late = not hurried and clock.time() >= half_time
            hurried |= late
            self._taken = await self._dispatcher.taken(self._room_name)
            if late or self._taken is False:
                log.warning("agent dispatched again", extra={"call_id": self._call_id})
                await self._dispatcher.send(
                    self._call_id, self._room_name, identity=self._identity, again=True
                )
                await self._note_again()
        return True

    async def _note_again(self) -> None:
        try:
            data = {"taken": self._taken}
            await self._journal.write(self._call_id, "agent.redispatched", data)
        except Unavailable:
            log.warning("another dispatch not written", extra={"call_id": self._call_id})

    async def _joined(self, within_s: float) -> bool:
        # One that is lost has come; gateway.calls.recovery sends for the next.
        return await self._watch.until(self._sign, "agent.lost", "call.ended", timeout_s=within_s)

    async def _write_off(self) -> bool:
        log.error("no agent joined the call", extra={"call_id": self._call_id})
        notes = {True: "agent_not_joined", False: "dispatch_not_taken", None: "no_agent"}
        data = ended("failed", "agent_unavailable", note=notes[self._taken])
        await self._journal.write(self._call_id, "call.ended", data)
        return False


def brief_of(
    call: Call,
    agent: Agent,
    webhook: WebhookEndpoint | None,
    tenant: TenantRecordings,
    recovered: Recovered | None = None,
) -> CallBrief:
    """Return the worker's brief. ``webhook``: the one that answers the caller's turns, if any."""
    return CallBrief(
        call_id=call.id,
        phone_number_id=call.phone_number_id,
        direction=call.direction,
        participant_identity=call.participant_identity,
        from_number=call.from_number,
        to_number=call.to_number,
        metadata=call.metadata,
        max_duration_ms=call.max_duration_ms,
        agent=agent,
        webhook=VoiceWebhook.model_validate(webhook.model_dump(), extra="ignore")
        if webhook is not None
        else None,
        recording=plan_of(call, agent, tenant, call.agent_epoch),
        consent=consent_mode(agent.config.consent, call.from_number, call.to_number),
        remembers=True,
        recovered=recovered,
    )


def plan_of(
    call: Call, agent: Agent, tenant: TenantRecordings, part: int = 0
) -> RecordingPlan | None:
    """Return how the call is recorded; None if the agent or the call does not ask for it."""
    wanted = agent.config.recording
    if not (wanted.enabled and call.record):
        return None
    return RecordingPlan(
        key=object_key(call.id, call.auth_id, call.created_at, wanted.format, part),
        part=part,
        format=wanted.format,
        region=region_of(agent.config, tenant),
        after_transfer=wanted.after_transfer,
    )


async def answering_webhook(
    call: Call, agent: Agent, webhooks: WebhookStore
) -> WebhookEndpoint | None:
    """Return the webhook that answers the caller's turns.

    None: the agent is hosted, or the webhook is missing or unreadable.
    """
    if agent.config.voice_mode != "webhook":
        return None
    try:
        return await webhooks.of_call(call.id)
    except Unreadable:
        log.error("the webhook's secret cannot be read", extra={"call_id": call.id})
        return None
