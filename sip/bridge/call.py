"""One bridged call: a participant in a room, a phone at the other end, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import baresip
from livekit import api, rtc
from livekit.protocol.room import RoomConfiguration
from livekit.rtc.participant import PublishTrackError

from core.legs import BRIDGE, LEAVE_METHOD, LEAVING
from sip.bridge import keys, membership
from sip.bridge.media_delay import tell_delay
from sip.bridge.phone import PhoneCall
from sip.bridge.twirp import TwirpError
from sip.leg import SAMPLE_RATE, PhoneLeg
from sip.sdk import connect, ignore_captured_frames

log = logging.getLogger(__name__)

ROOM_REQUEST_TIMEOUT_S: Final = 2.0
# The SDK (livekit 1.1.21) listens for the server's answer only after it has sent the request, and
# at times misses it. The request was made all the same, and the next one must not wait for it.
CONFIRMATION_TIMEOUT_S: Final = 0.3
# The SDK tries to reconnect for a good while; a phone call cannot wait that long.
RECONNECT_GRACE_S: Final = 20.0
# livekit-sip's: no RTP at all at first, and none any more later.
MEDIA_TIMEOUT_INITIAL_S: Final = 30.0
MEDIA_TIMEOUT_S: Final = 15.0
# The SDK (livekit 1.1.21) never frees a room that it leaves while others' tracks are in it: half a
# megabyte a call. An agent that reads the status takes its tracks out by itself, in some 50 ms.
AGENT_LEAVES_WITHIN_S: Final = 1.0
# A room can be told why a call ended only by one who is in it; a join takes some 50 ms.
TELLS_WITHIN_S: Final = 2.0
WATCH_INTERVAL_S: Final = 1.0
MAX_CALL_DURATION_S: Final = 24 * 3600.0
END_CALL_RPC: Final = "lk.sip.EndCall"
DTMF_GAP_S: Final = 0.12
DTMF_PAUSE_S: Final = 0.5

DTMF_CODES: Final = {digit: code for code, digit in enumerate("0123456789*#ABCD")}


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a call is over, and what the room is told: the last attributes, and the reason."""

    cause: str
    reason: rtc.DisconnectReason.ValueType = rtc.DisconnectReason.CLIENT_INITIATED
    last_word: Mapping[str, str] = field(default_factory=dict)


HANGUP: Final = {"sip.callStatus": "hangup"}
# Every ending of a call that was answered; Verdict has those of a dial that was not.
# What the room itself ended (removal, deletion, the same identity again) has the room's reason.
PHONE_HUNG_UP: Final = Ending("phone_hung_up", last_word=HANGUP)
AGENT_HUNG_UP: Final = Ending("end_call_rpc", last_word=HANGUP)
TRANSFERRED: Final = Ending("transferred", last_word=HANGUP)
MAX_DURATION: Final = Ending("max_duration", last_word=HANGUP)
MEDIA_TIMEOUT: Final = Ending("media_timeout", last_word=HANGUP)
MEDIA_FAILED: Final = Ending("media_failed", rtc.DisconnectReason.MEDIA_FAILURE)
ASKED_TO_LEAVE: Final = Ending("leave_rpc", last_word={LEAVING: "true"})
# The room's word for it did not reach us.
REMOVED: Final = Ending("removed_unheard", rtc.DisconnectReason.PARTICIPANT_REMOVED)
NEVER_LET_IN: Final = Ending("never_let_in", rtc.DisconnectReason.JOIN_FAILURE)
ROOM_LOST: Final = Ending("room_lost", rtc.DisconnectReason.UNKNOWN_REASON)
SHUTDOWN: Final = Ending("shutdown", rtc.DisconnectReason.UNKNOWN_REASON)
NOBODY_IN_ROOM: Final = Ending("nobody_in_room", rtc.DisconnectReason.UNKNOWN_REASON)
INTERNAL_ERROR: Final = Ending("internal_error", rtc.DisconnectReason.UNKNOWN_REASON)

_METHODS: Final = {END_CALL_RPC: AGENT_HUNG_UP, LEAVE_METHOD: ASKED_TO_LEAVE}


@dataclass(frozen=True, slots=True)
class LiveKit:
    """Where rooms are, and the keys to them."""

    url: str
    api_key: str
    api_secret: str = field(repr=False)
    mark: str = ""
    """Tells the legs of this bridge from others' (sip.bridge.leftovers)."""

    def client(self) -> api.LiveKitAPI:
        """For requests about rooms; the caller closes it."""
        return api.LiveKitAPI(self.url, self.api_key, self.api_secret, failover=False)

    def rtc_configuration(self) -> rtc.RtcConfiguration:
        """For a server on this machine: no STUN.

        A server without servers of its own names public ones. Each join would look them up,
        a thread and a socket for every name, for minutes where there is no internet; and
        loopback needs none. The SDK takes an empty list for "the server's", hence a dummy.
        """
        host = urlsplit(self.url).hostname or ""
        if host != "localhost" and not host.startswith("127.") and host != "::1":
            return rtc.RtcConfiguration()
        return rtc.RtcConfiguration(ice_servers=[rtc.IceServer(urls=["stun:127.0.0.1:9"])])


@dataclass(frozen=True, slots=True)
class Participant:
    """Who joins which room on the phone's behalf."""

    room: str
    identity: str
    name: str
    metadata: str
    attributes: Mapping[str, str]
    room_config: RoomConfiguration | None = None

    def token(self, livekit: LiveKit) -> str:
        token = (
            api.AccessToken(livekit.api_key, livekit.api_secret)
            .with_identity(self.identity)
            .with_name(self.name)
            .with_metadata(self.metadata)
            .with_kind("sip")
            .with_attributes({**self.attributes, BRIDGE: livekit.mark})
            .with_grants(
                api.VideoGrants(room_join=True, room=self.room, can_update_own_metadata=True)
            )
        )
        if self.room_config is not None:
            token = token.with_room_config(self.room_config)
        return token.to_jwt()


class Call:
    """Joined to a room by ``join``, given a phone by ``adopt``, talking in ``talk``.

    Whatever ends it calls ``end``; the first wins, and ``finish`` undoes everything.
    """

    def __init__(self, call_id: str, participant: Participant, livekit: LiveKit) -> None:
        self.id = call_id
        self.participant = participant
        self.phone: PhoneCall | None = None
        self.over: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.media_timeout_s = MEDIA_TIMEOUT_S
        self._livekit = livekit
        self._room = rtc.Room()
        # No queue: the leg captures what the phone sent as it arrives.
        self._source = rtc.AudioSource(SAMPLE_RATE, 1, queue_size_ms=0)
        self._leg: PhoneLeg | None = None
        self._subscribing = False
        self._heard_track = asyncio.Event()
        self._tracks: dict[str, rtc.RemoteAudioTrack] = {}
        self._silent = asyncio.Event()  # nobody's track is left
        self._silent.set()
        self._digits: asyncio.Queue[str] = asyncio.Queue()
        self._attributes: asyncio.Queue[Mapping[str, str]] = asyncio.Queue()
        self._published: asyncio.Queue[str] = asyncio.Queue()
        self._helpers: list[asyncio.Task[None]] = []
        self._takes_rpc = False
        self._reconnecting: asyncio.TimerHandle | None = None

    @property
    def participant_sid(self) -> str:
        return self._room.local_participant.sid

    @property
    def in_room(self) -> bool:
        return self._room.isconnected()

    def end(self, ending: Ending) -> None:
        """End the call; only the first ending counts."""
        if not self.over.done():
            self.over.set_result(ending)

    # --- the room

    async def join(self, deadline: float) -> None:
        """Enter the room, publish the phone's track, until ``deadline`` (the loop's time).

        Raises TwirpError ``unavailable``, or ``canceled`` when the call was ended meanwhile.
        """
        self._listen()
        arrival = self._help(self._end_if_not_let_in(), "arrival")
        try:
            async with asyncio.timeout_at(deadline):
                await self._unless_over(self._enter(deadline))
        except (rtc.ConnectError, PublishTrackError, TimeoutError) as error:
            log.warning("joining the room failed", extra=self._facts(cause=str(error)))
            raise _not_joined() from error
        finally:
            arrival.cancel()
        ignore_captured_frames(self._room)
        for method, ending in _METHODS.items():
            self._room.local_participant.register_rpc_method(method, self._ending_by(ending))
        self._takes_rpc = True

    async def _enter(self, deadline: float) -> None:
        await connect(
            self._room,
            self._livekit.url,
            self.participant.token(self._livekit),
            rtc.RoomOptions(auto_subscribe=False, rtc_config=self._livekit.rtc_configuration()),
            timeout_s=deadline - asyncio.get_running_loop().time(),
        )
        self._help(self._send_attributes(), "attributes")
        track = rtc.LocalAudioTrack.create_audio_track(self.participant.identity, self._source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        # The SDK waits for ever for the publication of one who was removed meanwhile.
        await self._room.local_participant.publish_track(track, options)

    async def _unless_over(self, work: Coroutine[Any, Any, object]) -> None:
        """Do ``work`` as long as the call is not ended.

        LiveKit's webhook tells of a participant before the SDK is in the room. One who gives up in
        that moment must not look like one whom nobody served: an ending with a last word waits
        until it can be told.
        Raises TwirpError ``canceled`` when it is, ``unavailable`` when the room never let it in.
        """
        task = asyncio.ensure_future(work)
        outcomes: set[asyncio.Future[Any]] = {task, self.over}
        try:
            await asyncio.wait(outcomes, return_when=asyncio.FIRST_COMPLETED)
            over = not task.done()
            if over and self.over.result().last_word:
                await asyncio.wait({task}, timeout=TELLS_WITHIN_S)
        finally:
            task.cancel()
        if over:
            if task.done() and not task.cancelled():
                task.exception()  # whatever it was: the call is over
            ending = self.over.result()
            if ending is NEVER_LET_IN:
                raise _not_joined()
            raise canceled(ending)
        task.result()

    def subscribe(self) -> None:
        """Take all audio tracks of the room, those published later included."""
        if self._subscribing:
            # Asked again, LiveKit would have to acknowledge that before the SDK, which leaves
            # Nagle's algorithm on, sends what comes next: 40 ms (measured).
            return
        self._subscribing = True
        for remote in self._room.remote_participants.values():
            for publication in remote.track_publications.values():
                self._take(publication)

    async def first_track(self) -> None:
        """Until the room has something for the phone to hear."""
        await self._heard_track.wait()

    def set_attributes(self, attributes: Mapping[str, str]) -> None:
        """In the order of the calls; they reach the room a moment later."""
        if attributes:
            self._attributes.put_nowait(attributes)

    def set_status(self, status: str) -> None:
        self.set_attributes({"sip.callStatus": status})

    def _listen(self) -> None:
        room = self._room

        def on_disconnected(reason: rtc.DisconnectReason.ValueType) -> None:
            self.end(Ending(f"room:{rtc.DisconnectReason.Name(reason).lower()}", reason))

        def on_track_published(
            publication: rtc.RemoteTrackPublication, _participant: rtc.RemoteParticipant
        ) -> None:
            if self._subscribing:
                self._take(publication)

        def on_track_subscribed(
            track: rtc.Track,
            _publication: rtc.RemoteTrackPublication,
            _participant: rtc.RemoteParticipant,
        ) -> None:
            if isinstance(track, rtc.RemoteAudioTrack):
                self._tracks[track.sid] = track
                self._silent.clear()
                self._heard_track.set()
                if self._leg is not None:
                    self._leg.play(track)

        def on_track_unsubscribed(
            track: rtc.Track,
            _publication: rtc.RemoteTrackPublication,
            _participant: rtc.RemoteParticipant,
        ) -> None:
            self._tracks.pop(track.sid, None)
            if not self._tracks:
                self._silent.set()
            if self._leg is not None:
                self._leg.stop(track.sid)

        def on_dtmf(dtmf: rtc.SipDTMF) -> None:
            # Before the answer there is nobody to hear them, as in livekit-sip.
            own = room.local_participant.attributes
            if self._leg is not None and keys.reach(dtmf.participant, self._tracks, own):
                self._digits.put_nowait(dtmf.digit)

        def on_reconnecting() -> None:
            if self._reconnecting is None:
                loop = asyncio.get_running_loop()
                self._reconnecting = loop.call_later(RECONNECT_GRACE_S, self.end, ROOM_LOST)
                self._help(self._end_if_removed(), "membership")

        def on_reconnected() -> None:
            if self._reconnecting is not None:
                self._reconnecting.cancel()
                self._reconnecting = None

        room.on("disconnected", on_disconnected)
        room.on("track_published", on_track_published)
        room.on("track_subscribed", on_track_subscribed)
        room.on("track_unsubscribed", on_track_unsubscribed)
        room.on("sip_dtmf_received", on_dtmf)
        room.on("reconnecting", on_reconnecting)
        room.on("reconnected", on_reconnected)

    @staticmethod
    def _take(publication: rtc.RemoteTrackPublication) -> None:
        if publication.kind == rtc.TrackKind.KIND_AUDIO:
            publication.set_subscribed(True)

    async def _send_attributes(self) -> None:
        while True:
            attributes = await self._attributes.get()
            try:
                async with asyncio.timeout(CONFIRMATION_TIMEOUT_S):
                    await self._room.local_participant.set_attributes(dict(attributes))
            except TimeoutError:
                log.debug("attributes set, but not confirmed", extra=self._facts())
            finally:
                self._attributes.task_done()

    async def _end_if_not_let_in(self) -> None:
        """The SDK (livekit 1.1.21) does not hear of a removal while it connects.

        It goes on for 15 s and more (measured); meanwhile other calls wait for this one's turn.
        """
        await asyncio.sleep(membership.LOOK_S)  # as a rule it is done by then
        room, identity = self.participant.room, self.participant.identity
        async with self._livekit.client() as client:
            came = await membership.absent(client, room, identity, self.id)
            self.end(REMOVED if came else NEVER_LET_IN)

    async def _end_if_removed(self) -> None:
        """The SDK (livekit 1.1.21) may see its connection close before it has read why.

        Of a removal it then knows nothing, and joins again as if the connection had been lost:
        on a busy machine once in 500 removals (measured), and the phone would go on talking.
        """
        room, identity = self.participant.room, self.participant.identity
        async with self._livekit.client() as client:
            if await membership.gone(client, room, identity, self.participant_sid):
                self.end(REMOVED)

    def _ending_by(self, ending: Ending) -> Callable[[rtc.RpcInvocationData], Awaitable[str]]:
        async def end(_data: rtc.RpcInvocationData) -> str:
            self.end(ending)
            return json.dumps({})

        return end

    # --- the phone

    def adopt(self, phone: PhoneCall) -> None:
        """The far end of this call; its hanging up ends the call."""
        self.phone = phone
        phone.on_ringing = lambda: self.set_status("ringing")
        if phone.ringing.is_set():  # a near phone was quicker
            phone.on_ringing()
        phone.on_digit = self._published.put_nowait

    async def talk(self, dtmf: str, max_duration_s: float) -> Ending:
        """From the answer to the end of the call."""
        phone = self.phone
        if phone is None:
            raise RuntimeError("talk() before adopt()")
        started = time.monotonic()
        try:
            leg = PhoneLeg(await phone.media_up(), self._source)
        except TimeoutError:
            self.end(PHONE_HUNG_UP if phone.closed.done() else MEDIA_FAILED)
            return await self.over
        self._leg = leg
        self._help(leg.run(), "leg")
        self._help(self._play_digits(phone, dtmf), "digits")
        self._help(self._publish_digits(), "publish-digits")
        self._help(self._watch_media(phone, leg), "media-watch")
        self._help(tell_delay(self._room, phone, leg, self.set_attributes), "media-delay")
        self.subscribe()
        for track in self._tracks.values():
            leg.play(track)
        self.set_status("active")
        if not 0 < max_duration_s <= MAX_CALL_DURATION_S:
            max_duration_s = MAX_CALL_DURATION_S
        left = max_duration_s - (time.monotonic() - started)
        ends: set[asyncio.Future[Any]] = {self.over, phone.closed}
        await asyncio.wait(ends, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        self.end(PHONE_HUNG_UP if phone.closed.done() else MAX_DURATION)
        return await self.over

    async def transfer(self, target: str, timeout: float) -> None:
        """Blind transfer (REFER). Raises TransferFailed or BaresipError; success ends the call."""
        if self.phone is None or not self.phone.answered.is_set():
            raise TwirpError("failed_precondition", "the call is not answered")
        await self.phone.transfer(target, timeout=timeout)
        self.end(TRANSFERRED)

    async def _play_digits(self, phone: PhoneCall, first: str) -> None:
        for digit in first:
            self._digits.put_nowait(digit)
        while True:
            digit = (await self._digits.get()).upper()
            if digit == "W":
                await asyncio.sleep(DTMF_PAUSE_S)
                continue
            try:
                await phone.send_digit(digit)
            except (baresip.BaresipError, ValueError) as error:
                log.warning("a DTMF digit was not sent", extra=self._facts(cause=str(error)))
            await asyncio.sleep(DTMF_GAP_S)

    async def _publish_digits(self) -> None:
        while True:
            digit = await self._published.get()
            code = DTMF_CODES.get(digit)
            if code is None:
                continue
            try:
                async with asyncio.timeout(ROOM_REQUEST_TIMEOUT_S):
                    await self._room.local_participant.publish_dtmf(code=code, digit=digit)
            except Exception as error:  # the SDK raises bare Exception
                log.warning("a DTMF digit was not published", extra=self._facts(cause=str(error)))

    async def _watch_media(self, phone: PhoneCall, leg: PhoneLeg) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            limit = self.media_timeout_s
            if not leg.heard_any:
                limit = max(limit, MEDIA_TIMEOUT_INITIAL_S)
            if not phone.on_hold and time.monotonic() - leg.heard_at > limit:
                self.end(MEDIA_TIMEOUT)
                return

    # --- the end

    async def finish(self, ending: Ending) -> None:
        """Hang up, leave the room, stop all that runs. Bounded, and safe to call once."""
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        # The phone first, while the room still shows the participant (livekit-sip does so, too).
        if self.phone is not None:
            await self.phone.hang_up()
        if self._room.isconnected():
            self.set_attributes(ending.last_word)
            try:
                async with asyncio.timeout(ROOM_REQUEST_TIMEOUT_S):
                    await self._attributes.join()
            except TimeoutError:
                log.warning("the last attributes were not set", extra=self._facts())
            if ending.last_word:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(AGENT_LEAVES_WITHIN_S):
                        await self._silent.wait()
            try:
                async with asyncio.timeout(ROOM_REQUEST_TIMEOUT_S):
                    await self._room.disconnect(reason=ending.reason)
            except TimeoutError:
                log.warning("leaving the room timed out", extra=self._facts())
        if self._takes_rpc:
            # The SDK's handler holds the native room, which holds the handler: half a megabyte.
            for method in _METHODS:
                self._room.local_participant.unregister_rpc_method(method)
        for helper in self._helpers:
            helper.cancel()
        for outcome in await asyncio.gather(*self._helpers, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.error("a task of the call failed", exc_info=outcome, extra=self._facts())
        await self._source.aclose()

    def _help(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"call-{self.id}-{name}")
        self._helpers.append(task)
        task.add_done_callback(self._helper_done)
        return task

    def _helper_done(self, task: asyncio.Task[None]) -> None:
        # A leg that died would leave both sides in silence for ever.
        if not task.cancelled() and task.exception() is not None:
            self.end(INTERNAL_ERROR)

    def _facts(self, **more: str) -> dict[str, str]:
        return {"call_id": self.id, "room": self.participant.room, **more}


def canceled(ending: Ending) -> TwirpError:
    return TwirpError("canceled", f"the call was ended: {ending.cause}")


def _not_joined() -> TwirpError:
    # Nobody was called: the same request may well succeed a moment later.
    return TwirpError("unavailable", "the room could not be joined")
