"""One call of a :class:`dev.phone.Phone`, from the first INVITE to its end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiosipua.message import SipResponse
from baresip import BaresipError, Call, Event, StackEvent, StaleHandleError
from baresip.call import DigitEvent, TransferRequest
from baresip.errors import split_status

from core.tasks.first_of import first_of
from dev.phone.audio import SpokenCall
from dev.phone.endings import CallEnded, CallRefused, Ended
from dev.phone.media import CallMedia
from dev.phone.runtime import Stack

# baresip's text at the end of a call that a transfer has replaced.
_TRANSFERRED = "Call transfered"
_ATTACH_TIMEOUT_S = 5.0
_OFFER_ATTEMPTS = 40
_OFFER_PAUSE_S = 0.05


@dataclass(frozen=True)
class Digit:
    """A DTMF digit from the far end; ``at_ms`` is its end on the call's clock."""

    digit: str
    duration_ms: int
    at_ms: float


@dataclass(frozen=True)
class Transfer:
    """A REFER from the far end."""

    target: str
    call: asyncio.Future[PhoneCall] = field(compare=False)  # the new call, if the phone follows

    @property
    def succeeded(self) -> bool:
        """True if the new call was answered."""
        return self.call.done() and not self.call.cancelled() and self.call.result().was_up


class PhoneCall(SpokenCall):
    """The signalling of one call; see `dev.phone.audio` for its audio."""

    def __init__(
        self,
        *,
        inbound: bool,
        called: str,
        caller: str,
        headers: dict[str, str],
        call_id: str = "",
    ) -> None:
        super().__init__()
        self.inbound = inbound
        self.called = called  # the number dialled: the user part of the Request-URI
        self.caller = caller  # the user part of From
        self.headers = headers  # of the received INVITE, by lower-case name
        self.call_id = call_id
        self.audio_port = 0  # of its RTP here, once a call that came in was answered
        self.transfers: list[Transfer] = []
        self.refusal: SipResponse | None = None  # the response of the phone's front
        self.canceled_while_refusing = asyncio.Event()
        self.renegotiates = False  # True if we send a re-INVITE on purpose
        self.farewell = ""  # the Reason header of the far end's BYE or CANCEL
        self._handset: Call | None = None
        self._stack: Stack | None = None
        self._attached = asyncio.Event()
        self._ringing = asyncio.Event()
        self._up = asyncio.Event()
        self._over = asyncio.Event()
        self._hung_up_here = False
        self._digits: asyncio.Queue[Digit] = asyncio.Queue()
        self._refers: asyncio.Queue[Transfer] = asyncio.Queue()

    def __repr__(self) -> str:
        direction = "from" if self.inbound else "to"
        other = self.caller if self.inbound else self.called
        return f"<PhoneCall {direction} {other} {self.ending or ''}>"

    @property
    def was_up(self) -> bool:
        """True if the call has been answered, even if it has ended since."""
        return self._up.is_set()

    # --- the course of the call

    async def ringing(self, timeout: float) -> None:
        """Wait for a 180 or 183 (of a call we dialled).

        Raises:
            CallRefused: the far end refused the call.
            TimeoutError: neither came in time.
        """
        await self._first_of(self._ringing, timeout)

    async def answered(self, timeout: float) -> None:
        """Wait until the call is established and its audio flows.

        Raises:
            CallRefused: the far end refused our call.
            CallEnded: the caller hung up, or this phone refused.
            TimeoutError: none of these in time; the call continues to ring.
        """
        await self._first_of(self._up, timeout)

    async def _first_of(self, event: asyncio.Event, timeout: float) -> None:
        if not event.is_set() and not self._over.is_set():
            up, over = await first_of(event.wait(), self._over.wait(), timeout=timeout)
            if not up and not over:
                raise TimeoutError("the call is neither up nor over")
        if event.is_set():
            return
        ending = self.ending
        assert ending is not None
        if not self.inbound and ending.by == "remote":
            raise CallRefused(ending.status, ending.reason)
        raise CallEnded(str(ending))

    async def ended(self, timeout: float) -> Ended:
        """Wait until the call has ended; return how it ended.

        Raises:
            TimeoutError: the call has not ended in time.
        """
        await asyncio.wait_for(self._over.wait(), timeout)
        assert self.ending is not None
        return self.ending

    async def answer(self) -> None:
        """Answer a ringing call (:class:`dev.phone.RingOut`)."""
        await (await self._ready()).answer()

    async def hangup(self) -> None:
        """End the call: BYE, CANCEL, or 486 while it rings here. Idempotent."""
        if self.ending is not None:
            return
        handset = await self._ready()
        self._hung_up_here = True
        with contextlib.suppress(StaleHandleError):
            await handset.hangup()

    async def _ready(self) -> Call:
        """Wait for baresip's call object, which follows shortly after the INVITE."""
        await self._first_of(self._attached, _ATTACH_TIMEOUT_S)
        return self.handset

    async def hold(self) -> None:
        """Put the far end on hold (re-INVITE, ``a=sendonly``)."""
        await self._renegotiate(self.handset.hold)

    async def resume(self) -> None:
        """Take the far end off hold."""
        await self._renegotiate(self.handset.resume)

    async def _renegotiate(self, change: Callable[[], Awaitable[None]]) -> None:
        self.renegotiates = True
        for _ in range(_OFFER_ATTEMPTS):
            try:
                return await change()
            except StaleHandleError:
                raise
            except BaresipError as error:
                # Another offer is in flight; baresip has no event for its end.
                if "in flight" not in str(error):
                    raise
                await asyncio.sleep(_OFFER_PAUSE_S)
        raise TimeoutError("another re-INVITE is still unanswered")

    async def transfer(self, target: str) -> None:
        """Transfer the far end to ``target`` (REFER) and wait for the outcome.

        Raises:
            baresip.TransferFailed: the transfer failed.
        """
        await self.handset.transfer(target)

    async def next_transfer(self, timeout: float) -> Transfer:
        """Wait for the next REFER from the far end."""
        return await asyncio.wait_for(self._refers.get(), timeout)

    # --- DTMF

    async def dtmf(self, digits: str) -> None:
        """Send keys (RFC 4733 telephone-events); return when the last one is released."""
        await self.handset.send_dtmf(digits)

    async def next_digit(self, timeout: float) -> Digit:
        """Wait for the next key that the far end presses and releases."""
        return await asyncio.wait_for(self._digits.get(), timeout)

    # --- called by the phone

    @property
    def handset(self) -> Call:
        """baresip's call object."""
        if self._handset is None:
            raise CallEnded(str(self.ending or "the call never reached the phone"))
        return self._handset

    def refuse(self, response: SipResponse) -> None:
        """Record that the phone's front has refused the call."""
        self.refusal = response
        self.finish(Ended("local", "refused", response.status_code, response.reason_phrase))

    def attach(
        self,
        handset: Call,
        stack: Stack,
        on_transfer: Callable[[PhoneCall, Transfer], None],
    ) -> None:
        """Bind baresip's call object to this call."""
        self._handset = handset
        self._stack = stack
        handset.on_dtmf(self._on_digit)

        def refer(request: TransferRequest) -> None:
            future: asyncio.Future[PhoneCall] = asyncio.get_running_loop().create_future()
            transfer = Transfer(request.target, future)
            self.transfers.append(transfer)
            self._refers.put_nowait(transfer)
            on_transfer(self, transfer)

        handset.on_transfer_request(refer)
        self._attached.set()
        stack.watch(handset, self._on_event)

    def finish(self, ending: Ended) -> None:
        """Record the end; only the first one counts."""
        if self.ending is None:
            self.ending = ending
        if self._media is not None and self._stack is not None:
            self._stack.pump.remove(self._media)
            self._media.finish()
        self._over.set()

    def _on_digit(self, event: DigitEvent) -> None:
        self._digits.put_nowait(Digit(event.digit, event.duration_ms, self.now_ms()))

    def _on_event(self, event: StackEvent) -> None:
        if event.call_id and not self.call_id:
            self.call_id = event.call_id
        if event.event in {Event.CALL_RINGING, Event.CALL_PROGRESS}:
            self._ringing.set()
        elif event.event is Event.CALL_ESTABLISHED:
            self._establish()
        elif event.event is Event.CALL_CLOSED:
            self.finish(self._how_it_ended(event.text or ""))

    def _establish(self) -> None:
        assert self._handset is not None and self._stack is not None
        self._media = CallMedia(self._handset.audio, time.monotonic())
        self._stack.pump.add(self._media)
        self._up.set()

    def _how_it_ended(self, text: str) -> Ended:
        if text == _TRANSFERRED:
            return Ended("local", "transfer", None, text)
        if any(transfer.succeeded for transfer in self.transfers):
            return Ended("remote", "transfer", None, self.farewell)
        status, phrase = split_status(text)
        if status is not None and not self._up.is_set():
            if self._hung_up_here:
                return Ended("local", "cancel", status, phrase)
            return Ended("remote", "refused", status, phrase)
        if self._hung_up_here:
            if self._up.is_set():
                return Ended("local", "bye", None, "")
            if self.inbound:
                return Ended("local", "refused", 486, "Busy Here")
            return Ended("local", "cancel", None, "")
        if "reset by peer" not in text and not self.farewell:
            return Ended("remote", "error", None, text)
        return Ended("remote", "bye" if self._up.is_set() else "cancel", None, self.farewell)
