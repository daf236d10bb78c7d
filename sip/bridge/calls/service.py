"""The SIP API's methods, and the calls in progress."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Final

import baresip
from livekit.api.access_token import Claims
from livekit.protocol import sip as pb
from livekit.rtc import DisconnectReason

from sip.bridge.calls import outbound
from sip.bridge.calls.call import Call
from sip.bridge.calls.inbound import Inbound, Refused
from sip.bridge.calls.inbound_limits import Admission, Ticket
from sip.bridge.calls.outbound import Dial
from sip.bridge.calls.refuser import Refuser
from sip.bridge.calls.sweeper import Sweeper
from sip.bridge.calls.transfer import transfer_error, transfer_target
from sip.bridge.calls.turns import Turns
from sip.bridge.ids import new_id
from sip.bridge.registry import Registry
from sip.bridge.stack.endpoint import Endpoint
from sip.bridge.stack.phone import PhoneCall
from sip.bridge.twirp import TwirpError
from sip.endings import INTERNAL_ERROR, SHUTDOWN, Ending
from sip.guard import SipGuard
from sip.participant import LiveKit

log = logging.getLogger(__name__)

# livekit-server's default timeout for a transfer.
TRANSFER_TIMEOUT_S: Final = 30.0
# A join takes some 50 ms of CPU: with 40 at once, none would finish before its deadline.
# Incoming calls have turns of their own, so that a flood of them delays no dial.
JOINING: Final = 4
# About ten seconds' worth on two cores; a further dial should be retried later.
DIALS_WAITING: Final = 100


class SipService:
    """Owns one task per call; ``close`` ends them all."""

    def __init__(
        self,
        endpoint: Endpoint,
        registry: Registry,
        livekit: LiveKit,
        guard: SipGuard,
        *,
        dials_waiting: int = DIALS_WAITING,
    ) -> None:
        self._endpoint = endpoint
        self._guard = guard
        self._registry = registry
        self._livekit = livekit
        self._dials = Turns(JOINING, dials_waiting)
        self._admission = Admission()
        self._inbound = Inbound(
            endpoint,
            registry,
            livekit,
            self._admission,
            Turns(JOINING, self._admission.limits.unanswered),
        )
        self._refuser = Refuser()
        self._calls: dict[str, Call] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._sweeper = Sweeper()
        endpoint.on_invite = self._on_invite

    @property
    def live_calls(self) -> int:
        return len(self._calls)

    async def close(self, timeout: float) -> None:
        """Hang up every call and leave every room; cancel the rest after ``timeout`` s."""
        self._closing = True
        self._sweeper.close()
        for call in self._calls.values():
            call.end(SHUTDOWN)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout)
            for task in late:
                task.cancel()
            if late:
                log.error("calls did not end in time", extra={"calls": len(late)})
                await asyncio.wait(late, timeout=1)
        await self._refuser.close()

    # --- participants

    async def create_participant(
        self, request: pb.CreateSIPParticipantRequest, _claims: Claims
    ) -> pb.SIPParticipantInfo:
        if self._closing:
            raise TwirpError("unavailable", "the service is shutting down")
        trunk = None
        if request.sip_trunk_id:
            trunk = self._registry.get_outbound(request.sip_trunk_id)
        order = outbound.plan(request, trunk, self._endpoint.host)
        self._dials.check()
        call = Call(order.call_id, order.participant, self._livekit)
        loop = asyncio.get_running_loop()
        joined: asyncio.Future[TwirpError | None] = loop.create_future()
        answered: asyncio.Future[TwirpError | None] = loop.create_future()
        # The service owns the call: a client that disconnects does not end the dial.
        self._own(call, self._run_outbound(call, order, joined, answered))
        error = await asyncio.shield(joined)
        info = pb.SIPParticipantInfo(
            participant_id="" if error else call.room_leg.sid,
            participant_identity=order.participant.identity,
            room_name=order.participant.room,
            sip_call_id=order.call_id,
        )
        if error is None and request.wait_until_answered:
            error = await asyncio.shield(answered)
            if error is not None and error.meta:
                # The far end refused, perhaps so fast that the participant left before our
                # client could look it up.
                ids = {"participant_id": info.participant_id, "sip_call_id": info.sip_call_id}
                error = TwirpError(error.code, error.message, error.meta | ids)
        if error is not None:
            raise error
        return info

    async def transfer_participant(
        self, request: pb.TransferSIPParticipantRequest, claims: Claims
    ) -> pb.TransferSIPParticipantResponse:
        if not request.room_name:
            raise TwirpError("invalid_argument", "Missing room name")
        if not request.participant_identity:
            raise TwirpError("invalid_argument", "Missing participant identity")
        video = claims.video
        if video is None or not video.room_admin or video.room != request.room_name:
            raise TwirpError("permission_denied", "the token is not an admin of the room")
        if request.headers:
            raise TwirpError("unimplemented", "headers of a transfer are not supported here")
        target = transfer_target(request.transfer_to)
        call = next(
            (
                call
                for call in self._calls.values()
                if call.participant.room == request.room_name
                and call.participant.identity == request.participant_identity
                and not call.over.done()
            ),
            None,
        )
        if call is None:
            raise TwirpError("not_found", "participant does not exist")
        timeout = request.ringing_timeout.ToTimedelta().total_seconds() or TRANSFER_TIMEOUT_S
        try:
            await call.transfer(target, timeout)
        except (baresip.BaresipError, ValueError) as error:
            raise transfer_error(error) from error
        return pb.TransferSIPParticipantResponse(
            transfer_id=new_id("STR"),
            status=pb.SIPTransferStatus.STS_TRANSFER_SUCCESSFUL,
            reason=pb.SIPTransferReason.STR_COMPLETED,
        )

    # --- calls

    def _own(self, call: Call, work: Coroutine[None, None, None]) -> None:
        self._calls[call.id] = call
        task = asyncio.create_task(work, name=f"call-{call.id}")
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._calls.pop(call.id, None)
            self._sweeper.soon()
            if not task.cancelled() and task.exception() is not None:
                log.error("a call failed", exc_info=task.exception(), extra={"call_id": call.id})

        task.add_done_callback(done)

    async def _run_outbound(
        self,
        call: Call,
        order: Dial,
        joined: asyncio.Future[TwirpError | None],
        answered: asyncio.Future[TwirpError | None],
    ) -> None:
        ending = INTERNAL_ERROR
        started = time.monotonic()
        try:
            try:
                await self._dials.join(call.room_leg)
            except TwirpError as error:
                joined.set_result(error)
                return
            joined.set_result(None)
            verdict = await outbound.dial(call, order, self._endpoint, self._guard)
            if verdict is not None:
                answered.set_result(verdict.error)
                ending = _unanswered(call, verdict.reason)
                return
            answered.set_result(None)
            ending = await outbound.talk(
                call, order, self._endpoint, dialled_for_s=time.monotonic() - started
            )
        finally:
            call.end(ending)
            ending = call.over.result()
            for waiter in (joined, answered):
                if not waiter.done():
                    waiter.set_result(TwirpError("internal", "the call failed"))
            await call.finish(ending)
            _log_end(call, ending, started)

    def _on_invite(self, phone: PhoneCall) -> None:
        ticket = None if self._closing else self._admission.ticket()
        if ticket is None:
            self._refuser.refuse(phone, "too many unanswered calls")
            return
        task = asyncio.create_task(self._run_inbound(phone, ticket), name="call-inbound")
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            ticket.give_back()
            if not task.cancelled() and task.exception() is not None:
                log.error("an incoming call failed", exc_info=task.exception())

        task.add_done_callback(done)

    async def _run_inbound(self, phone: PhoneCall, ticket: Ticket) -> None:
        started = time.monotonic()
        placed = await self._inbound.place(phone, ticket)
        if isinstance(placed, Refused):
            self._refuser.refuse(phone, placed.why)
            return
        call = placed.call
        self._calls[call.id] = call
        ending = INTERNAL_ERROR
        try:
            ending = await self._inbound.serve(placed, phone, ticket)
        except TwirpError as error:
            log.warning("incoming call refused", extra={"call_id": call.id, "cause": error.message})
        finally:
            call.end(ending)
            ending = call.over.result()
            await call.finish(ending)
            self._calls.pop(call.id, None)
            self._sweeper.soon()
            _log_end(call, ending, started)


def _unanswered(call: Call, reason: DisconnectReason.ValueType) -> Ending:
    if call.over.done():
        return call.over.result()
    return Ending("not_answered", reason)


def _log_end(call: Call, ending: Ending, started: float) -> None:
    log.info(
        "call ended",
        extra={
            "call_id": call.id,
            "room": call.participant.room,
            "cause": ending.cause,
            "duration_s": round(time.monotonic() - started, 3),
        },
    )
