"""One call of a :class:`dev.phone.Phone`, from the first INVITE to its end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from aiosipua.message import SipResponse
from baresip import BaresipError, Call, Event, StackEvent, StaleHandleError
from baresip.call import DigitEvent, TransferRequest
from baresip.errors import split_status

from core.audio import Pcm
from dev import listen
from dev.listen import SpeechFinder
from dev.phone_media import CallMedia, Recording
from dev.phone_stack import Stack
from dev.phone_tracks import FRAME, SAMPLE_RATE
from dev.speech import CALLER_VOICE, Voice, synthesize

# What baresip reports at the end of a call that a transfer has replaced.
_TRANSFERRED = "Call transfered"
_ATTACH_TIMEOUT_S = 5.0
_OFFER_ATTEMPTS = 40
_OFFER_PAUSE_S = 0.05


class CallRefused(Exception):
    """The far end refused our INVITE, or it never got an answer.

    Attributes:
        status: The SIP status; None if nothing came back (or the wait was canceled).
        reason: Its phrase, or what went wrong.
    """

    def __init__(self, status: int | None, reason: str) -> None:
        super().__init__(f"{status or 'no answer'} {reason}".strip())
        self.status = status
        self.reason = reason


class CallEnded(Exception):
    """The call was over before what was waited for."""


@dataclass(frozen=True)
class Span:
    """Where an utterance lies: first voiced frame's start, last one's end, in ms since
    the answer, on the clock of the call's recording."""

    start_ms: float
    end_ms: float


@dataclass(frozen=True)
class Heard:
    """One utterance of the far end, on the same clock, 8 kHz."""

    pcm: Pcm
    start_ms: float
    end_ms: float


@dataclass(frozen=True)
class Ended:
    """How a call ended.

    Attributes:
        by: Which side ended it (of a transfer: ``local`` if this phone asked for it).
        how: ``cancel`` before the answer by the caller, ``refused`` before the answer by
            the called side, ``bye`` after it, ``transfer`` when another call took its
            place, ``error`` when the far end could not be reached or was lost.
        status: The SIP status of a refusal.
        reason: Its phrase, else the Reason header of the far end's BYE or CANCEL
            (RFC 3326), else what baresip says.
    """

    by: Literal["local", "remote"]
    how: Literal["bye", "cancel", "refused", "transfer", "error"]
    status: int | None
    reason: str


@dataclass(frozen=True)
class Digit:
    """A DTMF digit of the far end; ``at_ms`` is its end on the call's clock."""

    digit: str
    duration_ms: int
    at_ms: float


@dataclass(frozen=True)
class Transfer:
    """A REFER of the far end: call someone else instead."""

    target: str
    call: asyncio.Future[PhoneCall] = field(compare=False)  # the new call, if it is followed

    @property
    def succeeded(self) -> bool:
        """Whether the new call was answered."""
        return self.call.done() and not self.call.cancelled() and self.call.result().was_up


class PhoneCall:
    """One call. Positions are milliseconds since its answer; see `dev.phone_media`."""

    def __init__(
        self,
        *,
        inbound: bool,
        called: str,
        caller: str,
        headers: dict[str, str],
        call_id: str = "",
    ) -> None:
        self.inbound = inbound
        self.called = called  # the number dialled: the user part of the Request-URI
        self.caller = caller  # the user part of From
        self.headers = headers  # of the INVITE that reached us, by lower-case name
        self.call_id = call_id
        self.ending: Ended | None = None
        self.transfers: list[Transfer] = []
        self.refusal: SipResponse | None = None  # what the phone's front answers by itself
        self.canceled_while_refusing = asyncio.Event()
        self.renegotiates = False  # whether a re-INVITE of ours is meant
        self.farewell = ""  # the Reason header of the far end's BYE or CANCEL
        self._handset: Call | None = None
        self._stack: Stack | None = None
        self._media: CallMedia | None = None
        self._attached = asyncio.Event()
        self._ringing = asyncio.Event()
        self._up = asyncio.Event()
        self._over = asyncio.Event()
        self._hung_up_here = False
        self._digits: asyncio.Queue[Digit] = asyncio.Queue()
        self._refers: asyncio.Queue[Transfer] = asyncio.Queue()
        self._mouth = asyncio.Lock()
        self._heard_until = 0  # index in the received track

    def __repr__(self) -> str:
        direction = "from" if self.inbound else "to"
        other = self.caller if self.inbound else self.called
        return f"<PhoneCall {direction} {other} {self.ending or ''}>"

    @property
    def was_up(self) -> bool:
        """Whether it has been answered, even if it is over by now."""
        return self._up.is_set()

    # --- the course of the call

    async def ringing(self, timeout: float) -> None:
        """Wait for a 180 or 183 (a call we dialled).

        Raises:
            CallRefused: refused instead.
            TimeoutError: nothing of either.
        """
        await self._first_of(self._ringing, timeout)

    async def answered(self, timeout: float) -> None:
        """Wait until the call is up and its audio flows.

        Raises:
            CallRefused: the far end refused our call.
            CallEnded: the caller gave up, or this phone refused.
            TimeoutError: neither in time; the call goes on ringing.
        """
        await self._first_of(self._up, timeout)

    async def _first_of(self, event: asyncio.Event, timeout: float) -> None:
        if not event.is_set() and not self._over.is_set():
            waits = [asyncio.create_task(e.wait()) for e in (event, self._over)]
            try:
                done, _ = await asyncio.wait(
                    waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                for wait in waits:
                    wait.cancel()
                await asyncio.gather(*waits, return_exceptions=True)
            if not done:
                raise TimeoutError("the call is neither up nor over")
        if event.is_set():
            return
        ending = self.ending
        assert ending is not None
        if not self.inbound and ending.by == "remote":
            raise CallRefused(ending.status, ending.reason)
        raise CallEnded(str(ending))

    async def ended(self, timeout: float) -> Ended:
        """Wait for the end, and say how it came.

        Raises:
            TimeoutError: the call is still up.
        """
        await asyncio.wait_for(self._over.wait(), timeout)
        assert self.ending is not None
        return self.ending

    async def answer(self) -> None:
        """Accept a call that rings (:class:`dev.phone.RingOut`)."""
        await (await self._ready()).answer()

    async def hangup(self) -> None:
        """End the call: BYE, CANCEL, or 486 while it rings here. Twice does no harm."""
        if self.ending is not None:
            return
        handset = await self._ready()
        self._hung_up_here = True
        with contextlib.suppress(StaleHandleError):
            await handset.hangup()

    async def _ready(self) -> Call:
        """baresip's side of the call; it is there a moment after the INVITE was seen."""
        await self._first_of(self._attached, _ATTACH_TIMEOUT_S)
        return self.handset

    async def hold(self) -> None:
        """Put the far end on hold (re-INVITE, ``a=sendonly``)."""
        await self._renegotiate(self.handset.hold)

    async def resume(self) -> None:
        """Take it off hold again."""
        await self._renegotiate(self.handset.resume)

    async def _renegotiate(self, change: Callable[[], Awaitable[None]]) -> None:
        self.renegotiates = True
        for _ in range(_OFFER_ATTEMPTS):
            try:
                return await change()
            except StaleHandleError:
                raise
            except BaresipError as error:
                # Another offer is under way; baresip has no event for its end.
                if "in flight" not in str(error):
                    raise
                await asyncio.sleep(_OFFER_PAUSE_S)
        raise TimeoutError("another re-INVITE is still unanswered")

    async def transfer(self, target: str) -> None:
        """Send the far end elsewhere (REFER) and wait for the outcome.

        Raises:
            baresip.TransferFailed: it did not go there.
        """
        await self.handset.transfer(target)

    async def next_transfer(self, timeout: float) -> Transfer:
        """The next REFER of the far end."""
        return await asyncio.wait_for(self._refers.get(), timeout)

    # --- audio

    async def play(self, pcm: Pcm) -> Span:
        """Send 8 kHz audio and wait until all of it has left; one after the other.

        Cancelling stops at once. Silent audio gives the span of its frames.

        Raises:
            CallEnded: the call is not up, or ended meanwhile.
        """
        media = self._live_media()
        async with self._mouth:
            start, end = await media.play(pcm.astype("<i2").tobytes())
        if media.over:
            raise CallEnded(str(self.ending))
        voice = listen.speech_bounds(media.sent.view(start, end), SAMPLE_RATE)
        if voice is None:
            return Span(media.sent_ms(start), media.sent_ms(end))
        origin = media.sent_ms(start)
        return Span(origin + voice.start_ms, origin + voice.end_ms)

    async def say(self, text: str, *, voice: Voice = CALLER_VOICE) -> Span:
        """Speak a text; see :meth:`play`."""
        spoken = await asyncio.to_thread(synthesize, text, voice, SAMPLE_RATE)
        return await self.play(spoken.pcm)

    async def listen(
        self,
        timeout: float,
        *,
        end_silence_ms: float = 700,
        threshold_dbfs: float = listen.VOICE_DBFS,
        since_ms: float | None = None,
    ) -> Heard:
        """Wait for speech of the far end to start and to stop.

        Speech that began before this call counts, if no earlier ``listen`` returned it.
        If the call ends during the speech, what was heard until then is returned.

        Args:
            end_silence_ms: How long it must be silent to have stopped.
            since_ms: Look from this time of the call on, rather than from the end of
                what was heard last.

        Raises:
            CallEnded: the call was over before any speech.
            TimeoutError: no speech in time, or it did not stop.
        """
        media = self._live_media()
        if since_ms is not None:
            self._heard_until = media.received_index(since_ms)
        start = self._heard_until
        fed = start
        found: listen.Segment | None = None
        finder = SpeechFinder(
            SAMPLE_RATE, threshold_dbfs=threshold_dbfs, end_silence_ms=end_silence_ms
        )

        def heard() -> bool:
            nonlocal fed, found
            track = media.received
            # Frame by frame, so that what follows the utterance is left for the next one.
            while found is None and len(track) >= fed + FRAME:
                if finder.speaking and track.hole_ms(fed, fed + FRAME) >= end_silence_ms:
                    found = finder.finish()
                    break
                segments = finder.feed(track.view(fed, fed + FRAME))
                fed += FRAME
                found = segments[0] if segments else None
            if found is None and (media.over or media.idle_ms() >= end_silence_ms):
                found = finder.finish()
            return found is not None or media.over

        async with asyncio.timeout(timeout):
            await media.wait_for(heard)
        if found is None:
            raise CallEnded(f"no speech before the end: {self.ending}")
        first = start + int(found.start_ms * SAMPLE_RATE / 1000)
        last = start + int(found.end_ms * SAMPLE_RATE / 1000)
        self._heard_until = last
        return Heard(
            media.received.view(first, last), media.received_ms(first), media.received_ms(last)
        )

    async def speech_begins(self, timeout: float, *, since_ms: float = 0.0) -> float:
        """Wait for speech of the far end to begin; returns when it did, ms of the call.

        What ``listen`` returns next stays as it is.

        Raises:
            CallEnded: the call was over before any speech.
            TimeoutError: no speech in time.
        """
        media = self._live_media()
        start = fed = media.received_index(since_ms)
        finder = SpeechFinder(SAMPLE_RATE)

        def begun() -> bool:
            nonlocal fed
            while finder.started_ms is None and len(media.received) >= fed + FRAME:
                finder.feed(media.received.view(fed, fed + FRAME))
                fed += FRAME
            return finder.started_ms is not None or media.over

        async with asyncio.timeout(timeout):
            await media.wait_for(begun)
        if finder.started_ms is None:
            raise CallEnded(f"no speech before the end: {self.ending}")
        return media.received_ms(start) + finder.started_ms

    async def silence(self, duration_ms: float, timeout: float) -> None:
        """Wait until the far end has been silent for that long, counted from now."""
        media = self._live_media()
        frames = int(duration_ms / listen.FRAME_MS)
        fed = len(media.received)
        quiet = 0

        def silent() -> bool:
            nonlocal fed, quiet
            while len(media.received) >= fed + FRAME:
                level = listen.level_dbfs(media.received.view(fed, fed + FRAME))
                quiet = quiet + 1 if level < listen.VOICE_DBFS else 0
                fed += FRAME
            return quiet >= frames or media.idle_ms() >= duration_ms or media.over

        async with asyncio.timeout(timeout):
            await media.wait_for(silent)

    def now_ms(self) -> float:
        """The time of the call, on the clock of its recording."""
        return 1000 * (time.monotonic() - self._any_media().zero)

    @property
    def recording(self) -> Recording:
        """Both directions from the answer until now (or the end)."""
        return self._any_media().recording()

    def save(self, path: Path) -> None:
        """Write the recording as stereo WAV: left this phone, right what it heard."""
        self.recording.save(path)

    @property
    def media(self) -> CallMedia:
        """The raw tracks and counters, for measurements."""
        return self._any_media()

    def _any_media(self) -> CallMedia:
        if self._media is None:
            raise CallEnded("the call was never up")
        return self._media

    def _live_media(self) -> CallMedia:
        if self._media is None or self._media.over:
            raise CallEnded(str(self.ending or "the call is not up yet"))
        return self._media

    # --- DTMF

    async def dtmf(self, digits: str) -> None:
        """Press keys (RFC 4733 telephone-events); returns when the last one is released."""
        await self.handset.send_dtmf(digits)

    async def next_digit(self, timeout: float) -> Digit:
        """The next key the far end pressed and released."""
        return await asyncio.wait_for(self._digits.get(), timeout)

    # --- called by the phone

    @property
    def handset(self) -> Call:
        """baresip's side of the call."""
        if self._handset is None:
            raise CallEnded(str(self.ending or "the call never reached the phone"))
        return self._handset

    def refuse(self, response: SipResponse) -> None:
        """The phone's front has refused it."""
        self.refusal = response
        self.finish(Ended("local", "refused", response.status_code, response.reason_phrase))

    def attach(
        self,
        handset: Call,
        stack: Stack,
        on_transfer: Callable[[PhoneCall, Transfer], None],
    ) -> None:
        """Bind baresip's call to this one."""
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
        """Note the end; the first one counts."""
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
