"""One bridged call: a leg in a room and a phone, from the answer to the end."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

import baresip

from core.tasks.first_of import first_of
from sip.audio.phone import PhoneLeg
from sip.bridge.stack.phone import PhoneCall
from sip.bridge.twirp import TwirpError
from sip.endings import (
    MAX_DURATION,
    MEDIA_FAILED,
    MEDIA_TIMEOUT,
    PHONE_HUNG_UP,
    TRANSFERRED,
    Ending,
)
from sip.participant import LiveKit, Participant
from sip.room_leg import RoomLeg

log = logging.getLogger(__name__)

# livekit-sip's limits on waiting for the first RTP packet, and for each later one.
MEDIA_TIMEOUT_INITIAL_S: Final = 30.0
MEDIA_TIMEOUT_S: Final = 15.0
WATCH_INTERVAL_S: Final = 1.0
MAX_CALL_DURATION_S: Final = 24 * 3600.0
DTMF_GAP_S: Final = 0.12
DTMF_PAUSE_S: Final = 0.5


class Call:
    """A call: ``room_leg`` joins the room, ``adopt`` adds the phone, ``talk`` connects them.

    Everything that ends the call calls ``end``; the first ending counts. ``finish`` cleans up.
    """

    def __init__(self, call_id: str, participant: Participant, livekit: LiveKit) -> None:
        self.id = call_id
        self.participant = participant
        self.room_leg = RoomLeg(call_id, participant, livekit)
        self.over = self.room_leg.over
        self.end = self.room_leg.end
        self.phone: PhoneCall | None = None
        self.media_timeout_s = MEDIA_TIMEOUT_S
        self._pressed: asyncio.Queue[str] = asyncio.Queue()  # at the phone

    def adopt(self, phone: PhoneCall) -> None:
        """Set the far end's phone, and follow its ringing and keys."""
        self.phone = phone
        phone.on_ringing = lambda: self.room_leg.set_status("ringing")
        if phone.ringing.is_set():  # a phone nearby may ring before this
            phone.on_ringing()
        phone.on_digit = self._pressed.put_nowait

    async def talk(self, dtmf: str, max_duration_s: float) -> Ending:
        """Connect phone and room until the call ends; return the ending."""
        phone = self.phone
        if phone is None:
            raise RuntimeError("talk() before adopt()")
        started = time.monotonic()
        try:
            audio = await phone.media_up()
        except TimeoutError:
            self.end(PHONE_HUNG_UP if phone.closed.done() else MEDIA_FAILED)
            return await self.over
        leg = self.room_leg.carry(audio, lambda: phone.rtp_trip_ms)
        for digit in dtmf:
            self.room_leg.digits.put_nowait(digit)
        self.room_leg.run(self._play_digits(phone), "digits")
        self.room_leg.run(self._publish_digits(), "publish-digits")
        self.room_leg.run(self._watch_media(phone, leg), "media-watch")
        self.room_leg.set_status("active")
        if not 0 < max_duration_s <= MAX_CALL_DURATION_S:
            max_duration_s = MAX_CALL_DURATION_S
        left = max_duration_s - (time.monotonic() - started)
        await first_of(self.over, phone.closed, timeout=left)
        self.end(PHONE_HUNG_UP if phone.closed.done() else MAX_DURATION)
        return await self.over

    async def transfer(self, target: str, timeout: float) -> None:
        """Transfer blindly (REFER); success ends the call. Raises TransferFailed, BaresipError."""
        if self.phone is None or not self.phone.answered.is_set():
            raise TwirpError("failed_precondition", "the call is not answered")
        await self.phone.transfer(target, timeout=timeout)
        self.end(TRANSFERRED)

    async def _play_digits(self, phone: PhoneCall) -> None:
        while True:
            digit = (await self.room_leg.digits.get()).upper()
            if digit == "W":
                await asyncio.sleep(DTMF_PAUSE_S)
                continue
            try:
                await phone.send_digit(digit)
            except (baresip.BaresipError, ValueError) as error:
                facts = {"call_id": self.id, "room": self.participant.room, "cause": str(error)}
                log.warning("a DTMF digit was not sent", extra=facts)
            await asyncio.sleep(DTMF_GAP_S)

    async def _publish_digits(self) -> None:
        while True:
            await self.room_leg.publish_digit(await self._pressed.get())

    async def _watch_media(self, phone: PhoneCall, leg: PhoneLeg) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            limit = self.media_timeout_s
            if not leg.heard_any:
                limit = max(limit, MEDIA_TIMEOUT_INITIAL_S)
            if not phone.on_hold and time.monotonic() - leg.heard_at > limit:
                self.end(MEDIA_TIMEOUT)
                return

    async def finish(self, ending: Ending) -> None:
        """Hang up, leave the room, stop all tasks. Bounded; to be called once."""
        # Like livekit-sip, hang up first, while the participant is still in the room.
        if self.phone is not None:
            await self.phone.hang_up()
        await self.room_leg.leave(ending)
