"""Transfer a caller to the agent's transfer number, at its worker's request.

Cold: the caller's phone is referred there (REFER), which ends the call for us. Warm: the human is
dialled into the caller's room, through the call's own trunk. The worker decides who hears whom
there, and learns whether the human accepts the call. The trunks' secrets stay in the gateway.

Every step is on the timeline under an id derived from the transfer's. So a repeated request, even
to another gateway, finds the same transfer and does not dial again.
"""

from __future__ import annotations

import asyncio
import logging
import math

import aiohttp
from google.protobuf.duration_pb2 import Duration
from livekit.api import LiveKitAPI, ServerError, SipCallError
from livekit.protocol.models import ParticipantInfo
from livekit.protocol.sip import TransferSIPParticipantRequest

from core.errors import AppError, Conflict, Forbidden, Gone, NotFound, TooManyRequests, Unavailable
from core.events import ended
from core.legs import Leg
from core.models import CallEvent, now
from core.settings import Settings
from core.transfers import TransferOrder, TransferResult
from gateway.calls.following import NEVER_DIALLED, Following
from gateway.calls.limits import CallLimits
from gateway.calls.livekit import LIVEKIT_ERRORS, participant
from gateway.calls.policy import DialPolicy
from gateway.calls.streams.transfers import TwilioTransfers
from gateway.calls.timeline import Timeline, Watch
from gateway.calls.transfer_timeline import Order, Steps, refused
from gateway.calls.trunks import check_trunk, make_trunk, may_call_out, opened, outbound_trunk
from gateway.store.calls import Store
from gateway.store.credentials import CredentialStore
from gateway.store.database import Scope
from gateway.store.numbers import NumberStore
from sip.addresses import parse_transfer_target
from sip.dial import Dial, DialFailed, DialOutcome, DialRequest, Trunk, by_sip_status
from sip.guard import SipGuard
from sip.refer import refer

log = logging.getLogger(__name__)

_HUMAN = "Human"
_LOOK_S = 0.25
# If the outcome of a REFER is unknown, a caller who has not left by then was not referred.
_REFERRED_WITHIN_S = 3.0
# A younger transfer of another gateway may have its first event but no participant yet.
_BEGUN_S = 5.0


class Transfers:
    """Owns the tasks that carry transfers out."""

    def __init__(
        self,
        *,
        livekit: LiveKitAPI,
        sip: LiveKitAPI,
        store: Store,
        timeline: Timeline,
        numbers: NumberStore,
        credentials: CredentialStore,
        policy: DialPolicy,
        limits: CallLimits,
        guard: SipGuard,
        twilio: TwilioTransfers,
        settings: Settings,
    ) -> None:
        self._livekit = livekit
        self._sip = sip
        self._store = store
        self._timeline = timeline
        self._numbers = numbers
        self._credentials = credentials
        self._policy = policy
        self._limits = limits
        self._guard = guard
        self._twilio = twilio
        self._settings = settings
        self._steps = Steps(store, timeline)
        self._under_way: dict[tuple[str, str], asyncio.Task[TransferResult]] = {}

    async def carry_out(self, call_id: str, wanted: TransferOrder) -> TransferResult:
        """Carry out the transfer once, and wait for its outcome (a little over the ringing time).

        Raises NotFound ``CALL_NOT_FOUND``, Gone ``CALL_ENDED``, Conflict ``CALL_NOT_ANSWERED``
        or ``NO_TRANSFER_NUMBER``, Unavailable. Cancelling only stops the wait.
        """
        key = (call_id, wanted.transfer_id)
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._transfer(*key), name="transfer")
            self._under_way[key] = task
            task.add_done_callback(lambda task: self._finished(key, task))
        return await asyncio.shield(task)

    async def aclose(self) -> None:
        """Stop following; phones keep ringing, and another gateway can report the outcome."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finished(self, key: tuple[str, str], task: asyncio.Task[TransferResult]) -> None:
        del self._under_way[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("no transfer", extra={"call_id": key[0], "problem": type(error).__name__})

    async def _transfer(self, call_id: str, transfer_id: str) -> TransferResult:
        order = await self._order(call_id, transfer_id)
        if not await self._steps.begin(order):
            return await self._found_again(order)
        try:
            result = await self._carried_out(order)
        except (Forbidden, TooManyRequests):
            result = TransferResult(outcome="not_allowed")
        except Unavailable:
            raise
        except AppError as error:
            log.warning("transfer failed", extra={"call_id": call_id, "code": error.code})
            result = TransferResult(outcome="failed")
        await self._steps.result(order, result)
        return result

    async def _order(self, call_id: str, transfer_id: str) -> Order:
        found = await self._store.call_and_agent(call_id)
        if found is None:
            raise NotFound("Call not found", code="CALL_NOT_FOUND")
        call, agent = found
        if call.ended:
            raise Gone("The call is over")
        if agent is None or (to := agent.config.transfer_number) is None:
            raise Conflict("The call's agent has no transferNumber", code="NO_TRANSFER_NUMBER")
        if call.answered_at is None:
            raise Conflict("The call is not answered", code="CALL_NOT_ANSWERED")
        left_s = call.max_duration_ms / 1000 - (now() - call.answered_at).total_seconds()
        return Order(transfer_id, call, agent, to, max(1, math.ceil(left_s)))

    async def _carried_out(self, order: Order) -> TransferResult:
        if order.call.type == "stream":
            return await self._dial_by_twilio(order)
        return await (self._refer(order) if order.cold else self._dial(order))

    async def told(
        self,
        call_id: str,
        wanted: TransferOrder,
        result: TransferResult,
        *,
        caller_gone: bool = False,
    ) -> None:
        """Take Twilio's word about a transfer; only the first one counts. Raises Unavailable.

        ``caller_gone``: the caller has hung up, which nobody else notices without a stream.
        """
        try:
            order = await self._order(call_id, wanted.transfer_id)
        except (Conflict, Gone):
            return
        begun_at, known = await self._steps.known(order)
        if begun_at is None:
            return
        if known is None:
            await self._steps.result(order, result)
        if caller_gone and result.outcome != "transferred":
            left = CallEvent(type="call.ended", data=ended("completed", "user_hangup"))
            await self._timeline.append(call_id, [left], "gateway")

    # --- a call on a WebSocket

    async def _dial_by_twilio(self, order: Order) -> TransferResult:
        """Let Twilio dial the human in the caller's place. Raises Forbidden, TooManyRequests."""
        if not order.cold:
            return TransferResult(outcome="not_supported")
        call = order.call
        own = (call.from_number if call.direction == "outbound" else call.to_number) or ""
        self._policy.check(order.to, from_number=own, tenant=call.auth_id is not None)
        await self._limits.take(call.auth_id)
        return await self._twilio.dial(order, own)

    # --- cold

    async def _refer(self, order: Order) -> TransferResult:
        """Refer the caller's phone. Raises Forbidden."""
        target = parse_transfer_target(order.to)
        call = order.call
        own = call.from_number if call.direction == "outbound" else call.to_number
        self._policy.check(target, from_number=own or "", tenant=call.auth_id is not None)
        request = TransferSIPParticipantRequest(
            room_name=call.room_name,
            participant_identity=call.participant_identity,
            transfer_to=target,
            ringing_timeout=Duration(seconds=order.ringing_s),
        )
        try:
            known = await refer(self._sip, request) == "completed"
        except SipCallError as error:
            status = error.sip_status_code
            if status is None:
                return TransferResult(outcome="failed")
            _, reason = by_sip_status(status)
            return refused(reason, status, error.sip_status)
        except ServerError as error:
            log.warning("not referred", extra={"call_id": call.id, "problem": error.code})
            return TransferResult(outcome="failed")
        except aiohttp.ClientError:
            known = False
        if known or await self._caller_left(order):
            return TransferResult(outcome="transferred")
        return TransferResult(outcome="no_answer")

    async def _caller_left(self, order: Order) -> bool:
        clock = asyncio.get_running_loop()
        deadline = clock.time() + _REFERRED_WITHIN_S
        while clock.time() < deadline:
            if await self._look(order.call.room_name, order.call.participant_identity) is None:
                return True
            await asyncio.sleep(_LOOK_S)
        return False

    # --- warm

    async def _dial(self, order: Order) -> TransferResult:
        """Dial the human. Raises Forbidden, TooManyRequests, ServerFault, Unavailable."""
        trunk, from_number = await self._way_out(order)
        self._policy.check(
            order.to,
            from_number=from_number,
            trunk_country=trunk.country,
            tenant=order.call.auth_id is not None,
        )
        await self._limits.check_human(order.call.auth_id)
        await self._limits.take(order.call.auth_id)
        await check_trunk(self._guard, trunk)
        request = DialRequest(
            trunk=trunk,
            from_number=from_number,
            to_number=order.to,
            room_name=order.call.room_name,
            participant_identity=order.human,
            participant_name=_HUMAN,
            attributes=Leg("human", order.call.id).attributes,
            ringing_timeout_s=order.ringing_s,
            max_call_duration_s=order.left_s,
        )
        dial = Dial(self._sip, self._livekit, request)
        try:
            outcome = await self._outcome(order, dial)
        finally:
            await dial.aclose()
        if outcome is None:
            return TransferResult(outcome="failed")
        if not outcome.answered:
            return refused(outcome.reason, outcome.sip_status_code, outcome.sip_reason)
        return TransferResult(outcome="answered", identity=order.human)

    async def _outcome(self, order: Order, dial: Dial) -> DialOutcome | None:
        """Return the dial's outcome; None: the call had ended when the human answered."""
        try:
            await dial.joined()
        except DialFailed as error:
            return error.outcome
        except TimeoutError:
            await dial.cancel()
            return NEVER_DIALLED
        watch = Watch(order.call.id, self._store, self._timeline)
        return await Following(dial, watch, ringing=lambda: self._steps.ringing(order)).run()

    async def _way_out(self, order: Order) -> tuple[Trunk, str]:
        """Return the trunk and the caller ID. Raises Forbidden, ServerFault, Unavailable.

        In this order: the trunk that the call's request specified; the first number that may call
        out, of the call's own number and the agent's other ones; for an outbound call without a
        number, the trunk that POST /sip/call uses by default.
        """
        call = order.call
        own_trunk = await self._store.own_trunk(call.id)
        if own_trunk is not None and call.from_number is not None:
            return opened(own_trunk, own_trunk.tenant), call.from_number
        scope = Scope(call.auth_id)
        own = call.phone_number_id and await self._numbers.get(scope, call.phone_number_id)
        numbers = [own] if own else []
        if call.agent_id is not None:
            numbers += await self._numbers.of_agent(scope, call.agent_id)
        for number in numbers:
            # The operator's scope includes all tenants' numbers.
            if number.auth_id == scope.auth_id and may_call_out(number):
                trunk = await outbound_trunk(number, self._credentials, self._settings)
                return trunk, number.phone_number
        if call.direction != "outbound" or call.from_number is None or own:
            raise Forbidden("No number that may call out", code="FROM_NUMBER_NOT_ALLOWED")
        return make_trunk(None, self._settings), call.from_number

    # --- repeated requests

    async def _found_again(self, order: Order) -> TransferResult:
        """Wait for the outcome of a transfer that another request began. Raises Unavailable."""
        clock = asyncio.get_running_loop()
        deadline = clock.time() + order.ringing_s + _BEGUN_S
        while True:
            begun_at, result = await self._steps.known(order)
            if result is not None:
                return result
            if begun_at is None:  # the id belongs to another call
                return TransferResult(outcome="failed")
            if (now() - begun_at).total_seconds() > _BEGUN_S:
                result = await self._as_it_looks(order)
                if result is None and clock.time() > deadline:
                    result = TransferResult(outcome="no_answer")
                if result is not None:
                    await self._steps.result(order, result)
                    return result
            await asyncio.sleep(_LOOK_S)

    async def _as_it_looks(self, order: Order) -> TransferResult | None:
        """Infer from the room the outcome of a transfer whose gateway died; None: still open."""
        call = order.call
        if call.type == "stream":
            return None  # Twilio tells
        if order.cold:
            caller = await self._look(call.room_name, call.participant_identity)
            return TransferResult(outcome="transferred") if caller is None else None
        human = await self._look(call.room_name, order.human)
        if human is None:
            return TransferResult(outcome="failed")
        if human.attributes.get("sip.callStatus") == "active":
            return TransferResult(outcome="answered", identity=order.human)
        return None

    async def _look(self, room_name: str, identity: str) -> ParticipantInfo | None:
        """Return the participant; None: not in the room. Raises Unavailable."""
        try:
            return await participant(self._livekit, room_name, identity)
        except LIVEKIT_ERRORS:
            raise Unavailable("LiveKit cannot be reached", code="LIVEKIT_UNAVAILABLE") from None
