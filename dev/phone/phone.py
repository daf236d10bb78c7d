"""A SIP phone in code: it answers, rejects, rings out, speaks, listens and records.

    async with Phone() as phone:                  # phone.address == "127.0.0.1:49152"
        phone.behave(Answer(after_s=0.3))
        call = await phone.next_call(timeout=10)  # any called number is accepted
        await call.answered(timeout=5)
        greeting = await call.listen(timeout=10)
        await call.say("I would like to book a table.")
        await call.hangup()
        call.save(Path("call.wav"))               # left: this phone, right: the far end

baresip (``baresip-python``) does signalling and media. In front of it each phone has a
small relay (:mod:`dev.sip.relay`), so that one process can have several phones, a phone
can refuse with any status, and every message is visible. :mod:`dev.phone.media` describes
how exact the recording is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Self

from aiosipua.headers import parse_uri
from aiosipua.message import SipRequest, SipResponse
from baresip import BaresipError, Call, StaleHandleError

from dev.phone import runtime
from dev.phone.behaviour import AT_ONCE, Answer, Behaviour, Reject
from dev.phone.call import PhoneCall, Transfer
from dev.phone.endings import CallEnded, Ended
from dev.phone.front import Front
from dev.phone.runtime import Identity, Stack
from dev.sip import messages
from dev.sip.relay import SipRelay

logger = logging.getLogger(__name__)


class Phone:
    """One phone with an address of its own on loopback (UDP)."""

    def __init__(
        self,
        port: int = 0,
        *,
        behaviour: Behaviour | Callable[[PhoneCall], Behaviour] = AT_ONCE,
        follow_transfers: bool = True,
        transfer_route: str | None = None,
    ) -> None:
        """
        Args:
            port: The port to listen on; 0 takes a free one.
            behaviour: The reaction to incoming calls; see :meth:`behave`.
            follow_transfers: True dials the target of a REFER, False declines it.
            transfer_route: ``host:port`` where ``tel:`` targets of a REFER are dialled,
                as an operator's switch does; without it they fail.
        """
        self.address = ""
        self.calls: list[PhoneCall] = []  # every call so far, oldest first
        self._port = port
        self._behaviour = behaviour
        self._follow = follow_transfers
        self._transfer_route = transfer_route
        self._by_id: dict[str, PhoneCall] = {}
        self._arrivals: asyncio.Queue[PhoneCall] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._relay: SipRelay | None = None
        self._front: Front | None = None
        self._stack: Stack | None = None
        self._user = ""

    async def __aenter__(self) -> Self:
        self._stack = await runtime.acquire()
        try:
            self._user = f"phone{self._stack.next_number()}"
            self._relay = await SipRelay.open(self._make_front, port=self._port)
            host, port = self._relay.address
            self.address = f"{host}:{port}"
            await self._stack.agent(self._identity(self._user), self._on_incoming)
        except BaseException:
            await self._shut()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up all calls, and release sockets, tasks and threads."""
        live = [call for call in self.calls if call.ending is None and call.refusal is None]
        for call in live:
            with contextlib.suppress(BaresipError, CallEnded, TimeoutError):
                await call.hangup()
        for call in live:
            try:
                await call.ended(timeout=2)
            except TimeoutError:
                logger.warning("a call did not end in time", extra={"sip_call_id": call.call_id})
        if self._front is not None:
            await self._front.goodbyes_heard(timeout=1)
        await self._shut()

    def _make_front(self, relay: SipRelay) -> Front:
        assert self._stack is not None
        self._front = Front(
            relay,
            stack=self._stack.address,
            user=self._user,
            calls=self._by_id,
            invited=self._on_invite,
            transfer_route=self._transfer_route,
        )
        return self._front

    async def _shut(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._relay is not None:
            await self._relay.close()
        if self._stack is not None:
            stack, self._stack = self._stack, None
            await stack.release()

    # --- being called

    def behave(self, behaviour: Behaviour | Callable[[PhoneCall], Behaviour]) -> None:
        """Set the reaction to later calls: one for all, or a function of the call
        (``call.called``, ``call.caller``, ``call.headers``)."""
        self._behaviour = behaviour

    async def next_call(self, timeout: float) -> PhoneCall:
        """Wait for the INVITE of the next call to this phone; refused calls count too.

        Raises:
            TimeoutError: no call came in time.
        """
        return await asyncio.wait_for(self._arrivals.get(), timeout)

    @property
    def invites(self) -> int:
        """The number of calls that have reached this phone (INVITEs with distinct Call-IDs)."""
        return sum(call.inbound for call in self.calls)

    # --- calling

    async def dial(
        self,
        uri: str,
        *,
        caller: str | None = None,
        headers: Mapping[str, str] | None = None,
        auth_user: str | None = None,
        auth_password: str = "",
    ) -> PhoneCall:
        """Call a SIP URI; return once the INVITE has been sent.

        ``await call.answered(timeout)`` then waits for the outcome: it raises
        :class:`CallRefused` with the far end's status.

        Args:
            uri: ``sip:+15550100@127.0.0.1:5060``; the host must be an IP address.
            caller: The number in From; by default this phone's own name.
            auth_user: The digest user name, if a proxy challenges.
        """
        assert self._stack is not None and self._relay is not None, "the phone is not open"
        if messages.uri_address(parse_uri(uri)) == self._relay.address:
            raise ValueError("a phone cannot call itself")
        identity = self._identity(caller or self._user, auth_user, auth_password)
        agent = await self._stack.agent(identity)
        handset = await agent.dial(uri, headers=dict(headers or {}))
        return self._adopt_outbound(handset, uri, identity.user)

    def _identity(
        self, user: str, auth_user: str | None = None, auth_password: str = ""
    ) -> Identity:
        assert self._relay is not None
        return Identity(user, self._relay.address, auth_user, auth_password)

    def _adopt_outbound(self, handset: Call, uri: str, caller: str) -> PhoneCall:
        assert self._stack is not None
        call = PhoneCall(inbound=False, called=parse_uri(uri).user or "", caller=caller, headers={})
        self.calls.append(call)
        call.attach(handset, self._stack, self._on_transfer)
        # The Call-ID is known: watch() has delivered the events that carry it.
        self._by_id[call.call_id] = call
        return call

    # --- reports of the front and of baresip

    def _on_invite(self, request: SipRequest, relay: SipRelay) -> bool:
        """Handle an INVITE for this phone; return True to forward it to baresip."""
        call_id = request.call_id or ""
        call = self._by_id.get(call_id)
        if call is None:
            sender = request.from_addr
            call = PhoneCall(
                inbound=True,
                called=parse_uri(request.uri).user or "",
                caller=(sender.uri.user if sender else None) or "",
                headers=messages.headers_of(request),
                call_id=call_id,
            )
            self._by_id[call_id] = call
            self.calls.append(call)
            behaviour = self._behaviour
            chosen = behaviour if isinstance(behaviour, Behaviour) else behaviour(call)
            self._arrivals.put_nowait(call)
            if isinstance(chosen, Reject):
                self._refuse(call, chosen, request, relay)
                return False
            if isinstance(chosen, Answer):
                self._spawn(self._answer(call, chosen))
        elif call.refusal is not None:
            relay.answer(call.refusal)  # a retransmission
            return False
        return True

    def _refuse(self, call: PhoneCall, how: Reject, request: SipRequest, relay: SipRelay) -> None:
        """Refuse in baresip's place, which can only send 486."""
        tag = secrets.token_hex(4)
        final = messages.reply(request, how.status, reason=how.reason, tag=tag, headers=how.headers)
        if how.after_s > 0:
            call.refusal = messages.reply(request, 180, tag=tag)
            relay.answer(call.refusal)
            canceled = messages.reply(request, 487, tag=tag)
            self._spawn(self._refuse_later(call, how.after_s, final, canceled, relay))
        else:
            call.refuse(final)
            relay.answer(final)

    async def _refuse_later(
        self,
        call: PhoneCall,
        after_s: float,
        final: SipResponse,
        canceled: SipResponse,
        relay: SipRelay,
    ) -> None:
        try:
            await asyncio.wait_for(call.canceled_while_refusing.wait(), after_s)
        except TimeoutError:
            call.refuse(final)
            relay.answer(final)
        else:
            call.refusal = canceled
            call.finish(Ended("remote", "cancel", None, call.farewell))
            relay.answer(canceled)

    async def _answer(self, call: PhoneCall, how: Answer) -> None:
        await asyncio.sleep(how.after_s)
        try:
            await call.answer()
        except (StaleHandleError, CallEnded):
            logger.debug("the caller was gone before the answer")

    def _on_incoming(self, handset: Call) -> None:
        call = self._by_id.get(handset.call_id or "")
        if call is not None and self._stack is not None:
            call.attach(handset, self._stack, self._on_transfer)

    def _on_transfer(self, call: PhoneCall, transfer: Transfer) -> None:
        self._spawn(self._transfer(call, transfer))

    async def _transfer(self, call: PhoneCall, transfer: Transfer) -> None:
        try:
            if not self._follow:
                await call.handset.reject_transfer(603)
                return
            handset = await call.handset.accept_transfer()
        except BaresipError as error:
            logger.warning("transfer not followed", extra={"error": str(error)})
            return
        transfer.call.set_result(
            self._adopt_outbound(handset, transfer.target, call.called or self._user)
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("phone task failed", exc_info=task.exception())
