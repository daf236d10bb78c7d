"""One call at the SIP stack: its states as futures, its audio as PCM for the leg."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

import baresip

from core.tasks.first_of import first_of
from sip.bridge.stack.to_wire import ToWire

log = logging.getLogger(__name__)

# A command goes to the stack's own thread and back; if it takes longer, the stack has stalled.
COMMAND_TIMEOUT_S: Final = 2.0
MEDIA_UP_TIMEOUT_S: Final = 5.0
# How long to wait for a provisional response to our INVITE; a reachable far end is faster.
PROVISIONAL_WAIT_S: Final = 2.0
_FRAME_BYTES: Final = 320  # of the packets' 20 ms


class PhoneCall:
    """The far end of one call.

    ``ringing`` and ``answered`` are set once. ``closed`` receives the stack's reason text: a
    status line (``486 Busy Here``) or an error (``Connection timed out [110]``).
    ``rtp_trip_ms`` is the RTP round trip by RTCP, 0 until the far end's first report.
    """

    def __init__(self, call: baresip.Call, *, dialled: bool = False) -> None:
        """``dialled``: we sent the INVITE (as UAC)."""
        self._call = call
        self._dialled = dialled
        self.ringing = asyncio.Event()
        self.answered = asyncio.Event()
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._gone = False
        self.on_ringing: Callable[[], None] = lambda: None
        self.on_digit: Callable[[str], None] = lambda _digit: None
        self.rtp_trip_ms = 0.0
        self._pcm: PhonePcm | None = None
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
        """The far end's address-of-record, a SIP URI."""
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
        """Answer the call. Raises BaresipError if it is gone."""
        await self._call.answer()

    async def hang_up(self) -> None:
        """Send BYE, CANCEL or 486, as the state requires; do nothing if the call is gone."""
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
        """Wait until the far end has responded to our INVITE.

        A CANCEL must wait for a provisional response (RFC 3261 §9.1). If told to cancel earlier,
        the stack drops the call without a CANCEL: the phone goes on ringing (measured, 30 of 160).
        """
        await first_of(
            self.ringing.wait(), self.answered.wait(), self.closed, timeout=PROVISIONAL_WAIT_S
        )

    async def send_digit(self, digit: str) -> None:
        """Send one DTMF digit as an RFC 4733 event of 100 ms."""
        await self._call.send_dtmf(digit)
        if self._pcm is not None:
            self._pcm.sent_more()

    async def transfer(self, target: str, *, timeout: float) -> None:
        """Send a REFER to ``target``. Raises baresip.TransferFailed, or BaresipError."""
        await self._call.transfer(target, timeout=timeout)

    def give_up(self, reason: str) -> None:
        """Treat the call as closed; ``hang_up`` still ends it at the stack if necessary."""
        if not self.closed.done():
            self.closed.set_result(reason)

    async def media_up(self) -> PhonePcm:
        """Return the call's audio once both directions run. Raises TimeoutError."""
        deadline = time.monotonic() + MEDIA_UP_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                info = self._call.audio.info()
                if info.tx_ready and info.rx_ready:
                    self._pcm = PhonePcm(self._call.audio)
                    return self._pcm
            except baresip.AudioNotActive:
                pass  # poll: the stack has no event for it
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
        if self._pcm is not None:
            self._pcm.sent(stats.tx_packets)


class PhonePcm:
    """A call's PCM for the leg; during a re-INVITE and at the end of the call it is silent."""

    def __init__(self, audio: baresip.CallAudio) -> None:
        self._audio = audio
        self._written = 0
        self._to_wire = ToWire()

    def read(self, max_bytes: int) -> bytes:
        try:
            return bytes(self._audio.read(max_bytes))
        except (baresip.AudioNotActive, baresip.AudioRestarted):
            return b""

    def write(self, pcm: bytes) -> None:
        try:
            self._written += self._audio.write(pcm)
        except baresip.AudioRestarted:
            self._written = 0
        except baresip.AudioNotActive:
            return

    def backlog(self) -> int:
        try:
            stats = self._audio.stats()
        except baresip.AudioNotActive:
            return 0
        self._to_wire.taken(self._taken(stats), time.monotonic())
        return int(stats.tx_buffered)

    def to_wire_s(self) -> float:
        return self._to_wire.seconds

    def sent(self, packets: int) -> None:
        """Note how many packets the stack has sent."""
        try:
            stats = self._audio.stats()
        except baresip.AudioNotActive:
            return
        self._to_wire.counted(self._taken(stats), packets, time.monotonic())

    def sent_more(self) -> None:
        """Note that packets were sent that are no audio."""
        self._to_wire.anew()

    def _taken(self, stats: baresip.AudioStats) -> int:
        """Return the number of frames that the stack has taken from the buffer, or was without."""
        frames = (self._written - stats.tx_buffered) // _FRAME_BYTES
        return int(frames + stats.tx_silence_frames)
