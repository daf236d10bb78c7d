"""One call at the SIP stack: its life as futures, its audio as the leg wants it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

import baresip

from core.first_of import first_of

log = logging.getLogger(__name__)

# A command goes to the stack's own thread and back; what takes longer is a stall.
COMMAND_TIMEOUT_S: Final = 2.0
MEDIA_UP_TIMEOUT_S: Final = 5.0
# How long a far end may take to say that it has our INVITE; none that lives needs so long.
PROVISIONAL_WAIT_S: Final = 2.0


class PhoneCall:
    """The far end of one call.

    ``ringing`` and ``answered`` are set once; ``closed`` gets the stack's reason text:
    a status line (``486 Busy Here``) or an error (``Connection timed out [110]``).
    ``rtp_trip_ms`` is the round trip of its packets by RTCP, 0 until the far end has reported.
    """

    def __init__(self, call: baresip.Call, *, dialled: bool = False) -> None:
        """``dialled``: the INVITE is ours."""
        self._call = call
        self._dialled = dialled
        self.ringing = asyncio.Event()
        self.answered = asyncio.Event()
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._gone = False
        self.on_ringing: Callable[[], None] = lambda: None
        self.on_digit: Callable[[str], None] = lambda _digit: None
        self.rtp_trip_ms = 0.0
        call.on(self._on_event)
        call.on_rtcp(self._on_rtcp)
        call.on_dtmf(self._on_dtmf)
        if call.state is baresip.CallState.CLOSED:
            self._gone = True
            self.closed.set_result("")

    @property
    def call_id(self) -> str | None:
        """The Call-ID header."""
        call_id: str | None = self._call.call_id
        return call_id

    @property
    def peer(self) -> str:
        """The far end's address-of-record, as its SIP URI."""
        return self._call.peer or ""

    @property
    def called(self) -> str:
        """The To header of an incoming call."""
        return str(self._call.headers.get("To", ""))

    @property
    def on_hold(self) -> bool:
        """True while the far end has put us on hold."""
        return bool(self._call.remote_on_hold)

    async def answer(self) -> None:
        """Raises BaresipError when the call is gone."""
        await self._call.answer()

    async def hang_up(self) -> None:
        """BYE, CANCEL or a refusal (486), whichever is due; a call already gone is fine."""
        if self._dialled:
            await self._invited()
        if self._gone:
            return
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                await self._call.hangup()
        except baresip.StaleHandleError:
            return
        except (TimeoutError, baresip.BaresipError) as error:
            log.warning("hanging up failed", extra={"sip_call_id": self.call_id, "cause": error})

    async def _invited(self) -> None:
        """Until the far end has our INVITE.

        A CANCEL may follow a provisional response only (RFC 3261 §9.1). Asked for earlier, the
        stack forgets the call and sends none: the phone would ring on (measured, 30 of 160).
        """
        await first_of(
            self.ringing.wait(), self.answered.wait(), self.closed, timeout=PROVISIONAL_WAIT_S
        )

    async def send_digit(self, digit: str) -> None:
        """One DTMF digit as an RFC 4733 event of 100 ms."""
        await self._call.send_dtmf(digit)

    async def transfer(self, target: str, *, timeout: float) -> None:
        """REFER to ``target``. Raises baresip.TransferFailed, or BaresipError."""
        await self._call.transfer(target, timeout=timeout)

    def give_up(self, reason: str) -> None:
        """Regard the call as closed; ``hang_up`` still ends it at the stack if need be."""
        if not self.closed.done():
            self.closed.set_result(reason)

    async def media_up(self) -> PhonePcm:
        """The call's audio, once both directions run. Raises TimeoutError."""
        deadline = time.monotonic() + MEDIA_UP_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                info = self._call.audio.info()
                if info.tx_ready and info.rx_ready:
                    return PhonePcm(self._call.audio)
            except baresip.AudioNotActive:
                pass  # the stack reports no event for it
            await asyncio.sleep(0.005)
        raise TimeoutError("the call's media did not start")

    def _on_event(self, event: baresip.StackEvent) -> None:
        kind = baresip.Event
        if event.event in {kind.CALL_RINGING, kind.CALL_PROGRESS}:
            if not self.ringing.is_set():
                self.ringing.set()
                self.on_ringing()
        elif event.event is kind.CALL_ESTABLISHED:
            self.answered.set()
        elif event.event is kind.CALL_CLOSED:
            self._gone = True
            self.give_up(event.text or "")

    def _on_dtmf(self, event: baresip.DigitEvent) -> None:
        self.on_digit(event.digit)

    def _on_rtcp(self, stats: baresip.CallStats) -> None:
        self.rtp_trip_ms = float(stats.rtt_ms)


class PhonePcm:
    """A call's PCM for the leg: renegotiation and the last moments read as silence."""

    def __init__(self, audio: baresip.CallAudio) -> None:
        self._audio = audio

    def read(self, max_bytes: int) -> bytes:
        try:
            return bytes(self._audio.read(max_bytes))
        except (baresip.AudioNotActive, baresip.AudioRestarted):
            return b""

    def write(self, pcm: bytes) -> None:
        try:
            self._audio.write(pcm)
        except (baresip.AudioNotActive, baresip.AudioRestarted):
            return

    def backlog(self) -> int:
        try:
            return int(self._audio.info().tx_buffered)
        except baresip.AudioNotActive:
            return 0
