"""A participant in a room on a phone's behalf: the LiveKit half of a call.

It is independent of the other half, whose owner supplies audio and digits, takes the room's
digits, and learns from ``over`` that the call must end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final

from livekit import rtc
from livekit.rtc.participant import PublishTrackError

from core.legs import LEAVE_METHOD
from core.rtc_sdk import publish_dtmf
from core.sound.reports import METHOD as REPORT_SOUND
from core.tasks.first_of import first_of
from sip import dtmf, endings, membership
from sip.audio.delay_reports import tell_delay
from sip.audio.phone import SAMPLE_RATE, PhoneAudio, PhoneLeg
from sip.audio.sound_reports import tell_sound
from sip.endings import Ending
from sip.participant import LiveKit, Participant
from sip.sdk import connect, ignore_captured_frames

log = logging.getLogger(__name__)

ROOM_REQUEST_TIMEOUT_S: Final = 2.0
# The SDK (livekit 1.1.21) listens for the server's response only after sending the request, and
# sometimes misses it. The request has been made nevertheless, so the next one must not wait.
CONFIRMATION_TIMEOUT_S: Final = 0.3
# The SDK tries to reconnect for longer than a phone call can wait.
RECONNECT_GRACE_S: Final = 20.0
# The SDK (livekit 1.1.21) never frees a room that it leaves while others' tracks are in it: half a
# megabyte per call. An agent that reads the status unpublishes its tracks in some 50 ms.
AGENT_LEAVES_WITHIN_S: Final = 1.0
# Only a participant can tell the room why the call ended; a join takes some 50 ms.
TELLS_WITHIN_S: Final = 2.0
END_CALL_RPC: Final = "lk.sip.EndCall"

_METHODS: Final = {END_CALL_RPC: endings.AGENT_HUNG_UP, LEAVE_METHOD: endings.ASKED_TO_LEAVE}


class NotJoined(Exception):
    """The room could not be joined; a retry may succeed a moment later."""


class OverAlready(Exception):
    """The call was ended while its leg was joining the room."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.cause)
        self.ending = ending


class RoomLeg:
    """A leg that is in a room from ``join`` to ``leave``, with audio from ``carry`` on.

    Everything that ends the call calls ``end``; the first ending counts and is ``over``'s result.
    ``digits`` receives the keys that others in the room press for the far end, once audio runs.
    """

    def __init__(
        self,
        call_id: str,
        participant: Participant,
        livekit: LiveKit,
        *,
        look_after_s: float = membership.LOOK_S,
        tells_within_s: float = TELLS_WITHIN_S,
    ) -> None:
        self.participant = participant
        self.over: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.digits: asyncio.Queue[str] = asyncio.Queue()
        self._call_id = call_id
        self._livekit = livekit
        self._look_after_s = look_after_s
        self._tells_within_s = tells_within_s
        self._room = rtc.Room()
        # No queue: the leg captures the phone's audio as it arrives.
        self._source = rtc.AudioSource(SAMPLE_RATE, 1, queue_size_ms=0)
        self._audio: PhoneLeg | None = None
        self._subscribing = False
        self._heard_track = asyncio.Event()
        self._tracks: dict[str, rtc.RemoteAudioTrack] = {}
        self._silent = asyncio.Event()  # no track of another participant is left
        self._silent.set()
        self._attributes: asyncio.Queue[Mapping[str, str]] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._methods: list[str] = []
        self._reconnecting: asyncio.TimerHandle | None = None

    @property
    def sid(self) -> str:
        """The participant's id, once it has joined."""
        return self._room.local_participant.sid

    def end(self, ending: Ending) -> None:
        """End the call; only the first ending counts."""
        if not self.over.done():
            self.over.set_result(ending)

    def run(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Run ``work`` until ``leave`` cancels it; its failure ends the call."""
        task = asyncio.create_task(work, name=f"call-{self._call_id}-{name}")
        self._tasks.append(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        # Otherwise a failed task would leave both sides in silence for ever.
        if not task.cancelled() and task.exception() is not None:
            self.end(endings.INTERNAL_ERROR)

    # --- the way in

    async def join(self, deadline: float) -> None:
        """Join the room and publish the phone's track before ``deadline`` (the loop's time).

        Raises NotJoined, or OverAlready if the call was ended meanwhile.
        """
        self._listen()
        arrival = self.run(self._end_if_not_let_in(), "arrival")
        try:
            async with asyncio.timeout_at(deadline):
                await self._unless_over(self._enter(deadline))
        except (rtc.ConnectError, PublishTrackError, TimeoutError) as error:
            log.warning("joining the room failed", extra=self._facts(cause=str(error)))
            raise NotJoined from error
        finally:
            arrival.cancel()
        ignore_captured_frames(self._room)
        for method, ending in _METHODS.items():
            self._take_rpc(method, self._ending_by(ending))

    async def _enter(self, deadline: float) -> None:
        await connect(
            self._room,
            self._livekit.url,
            self.participant.token(self._livekit),
            rtc.RoomOptions(auto_subscribe=False, rtc_config=self._livekit.rtc_configuration()),
            timeout_s=deadline - asyncio.get_running_loop().time(),
        )
        # Before the publication, which waits for LiveKit; the last attributes must not.
        self.run(self._send_attributes(), "attributes")
        track = rtc.LocalAudioTrack.create_audio_track(self.participant.identity, self._source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        # If the participant was removed meanwhile, the SDK waits here for ever.
        await self._room.local_participant.publish_track(track, options)

    async def _unless_over(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` until the call is ended. Raises NotJoined, OverAlready.

        LiveKit's webhook reports a participant before the SDK is in the room. If the caller gives
        up in that moment, the call must not look as if nobody had served it: an ending with last
        attributes waits until they can be sent.
        """
        task = asyncio.ensure_future(work)
        try:
            await first_of(task, self.over)
            if task.done():
                return
            ending = self.over.result()
            if ending.last_word:
                await asyncio.wait({task}, timeout=self._tells_within_s)
        finally:
            task.cancel()
            # The result no longer matters: the call is over.
            await asyncio.gather(task, return_exceptions=True)
        if ending is endings.NEVER_LET_IN:
            raise NotJoined
        raise OverAlready(ending)

    async def _end_if_not_let_in(self) -> None:
        """End the call if LiveKit does not have the participant in the room.

        While it connects, the SDK (livekit 1.1.21) does not notice a removal. It continues for
        15 s and more (measured); meanwhile other calls wait for this one's turn.
        """
        await asyncio.sleep(self._look_after_s)  # usually it has connected by then
        room, identity = self.participant.room, self.participant.identity
        async with self._livekit.client() as client:
            came = await membership.absent(client, room, identity, self._call_id)
            self.end(endings.REMOVED if came else endings.NEVER_LET_IN)

    # --- audio and digits

    def subscribe(self) -> None:
        """Subscribe to all audio tracks of the room, including those published later."""
        if self._subscribing:
            # The SDK leaves Nagle's algorithm on: it would send nothing more until LiveKit has
            # acknowledged a second request, which costs 40 ms (measured).
            return
        self._subscribing = True
        for remote in self._room.remote_participants.values():
            for publication in remote.track_publications.values():
                self._take(publication)

    @staticmethod
    def _take(publication: rtc.RemoteTrackPublication) -> None:
        if publication.kind == rtc.TrackKind.KIND_AUDIO:
            publication.set_subscribed(True)

    async def first_track(self) -> bool:
        """Wait until an audio track of the room is subscribed."""
        return await self._heard_track.wait()

    def carry(self, audio: PhoneAudio, trip_ms: Callable[[], float]) -> PhoneLeg:
        """Move audio both ways from now on. ``trip_ms`` returns the round trip to the far end."""
        leg = self._audio = PhoneLeg(audio, self._source)
        self.run(leg.run(), "audio")
        delay = tell_delay(self._room, lambda: leg.backlog_ms + trip_ms(), self.set_attributes)
        self.run(delay, "media-delay")
        self._take_rpc(REPORT_SOUND, self._sound_reports(leg, trip_ms))
        self.subscribe()
        for track in self._tracks.values():
            leg.play(track)
        return leg

    def _sound_reports(
        self, leg: PhoneLeg, trip_ms: Callable[[], float]
    ) -> Callable[[rtc.RpcInvocationData], Awaitable[str]]:
        whom: set[str] = set()

        async def begin(data: rtc.RpcInvocationData) -> str:
            asks = self._room.remote_participants.get(data.caller_identity)
            if asks is None or asks.kind != rtc.ParticipantKind.PARTICIPANT_KIND_AGENT:
                raise rtc.RpcError(rtc.RpcError.ErrorCode.UNSUPPORTED_METHOD, "agents only")
            if not whom:
                reports = tell_sound(self._room, leg.report_sound(trip_ms), whom)
                self.run(reports, "sound-reports")
            whom.add(data.caller_identity)
            return json.dumps({})

        return begin

    async def publish_digit(self, digit: str) -> None:
        """Send a key pressed at the far end to all whom it is for; ignore other characters."""
        code = dtmf.CODES.get(digit)
        if code is None:
            return
        own, others = self._room.local_participant, self._room.remote_participants
        whom = dtmf.recipients(own.attributes, others.values())
        try:
            async with asyncio.timeout(ROOM_REQUEST_TIMEOUT_S):
                if whom is None:
                    await own.publish_dtmf(code=code, digit=digit)
                else:
                    await publish_dtmf(self._room, whom, code=code, digit=digit)
        except Exception as error:  # the SDK raises bare Exception
            log.warning("a DTMF digit was not published", extra=self._facts(cause=str(error)))

    # --- what the room is told

    def set_attributes(self, attributes: Mapping[str, str]) -> None:
        """Enqueue attributes, which reach the room a moment later, in this order."""
        if attributes:
            self._attributes.put_nowait(attributes)

    def set_status(self, status: str) -> None:
        self.set_attributes({"sip.callStatus": status})

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

    # --- what the room tells

    def _listen(self) -> None:
        room = self._room

        def on_disconnected(reason: rtc.DisconnectReason.ValueType) -> None:
            self.end(endings.by_the_room(reason))

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
                if self._audio is not None:
                    self._audio.play(track)

        def on_track_unsubscribed(
            track: rtc.Track,
            _publication: rtc.RemoteTrackPublication,
            _participant: rtc.RemoteParticipant,
        ) -> None:
            self._tracks.pop(track.sid, None)
            if not self._tracks:
                self._silent.set()
            if self._audio is not None:
                self._audio.stop(track.sid)

        def on_dtmf(event: rtc.SipDTMF) -> None:
            # Before the answer nobody can hear them; livekit-sip drops them, too.
            own = room.local_participant.attributes
            if self._audio is not None and dtmf.reach(event.participant, self._tracks, own):
                self.digits.put_nowait(event.digit)

        def on_reconnecting() -> None:
            if self._reconnecting is None:
                loop = asyncio.get_running_loop()
                self._reconnecting = loop.call_later(RECONNECT_GRACE_S, self.end, endings.ROOM_LOST)
                self.run(self._end_if_removed(), "membership")

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

    async def _end_if_removed(self) -> None:
        """End the call if the leg was removed, or its room deleted.

        The SDK (livekit 1.1.21) may see its connection close before it has read why. Then it
        does not know of the removal, and joins again as after a lost connection: on a busy
        machine once in 500 removals (measured). The call would continue.
        """
        room, identity = self.participant.room, self.participant.identity
        async with self._livekit.client() as client:
            if await membership.gone(client, room, identity, self.sid):
                self.end(endings.REMOVED)

    def _take_rpc(
        self, method: str, handler: Callable[[rtc.RpcInvocationData], Awaitable[str]]
    ) -> None:
        self._room.local_participant.register_rpc_method(method, handler)
        self._methods.append(method)

    def _ending_by(self, ending: Ending) -> Callable[[rtc.RpcInvocationData], Awaitable[str]]:
        async def end(_data: rtc.RpcInvocationData) -> str:
            self.end(ending)
            return json.dumps({})

        return end

    # --- the way out

    async def leave(self, ending: Ending) -> None:
        """Tell the room why, leave it, stop all tasks. Bounded; to be called once."""
        if self._reconnecting is not None:
            self._reconnecting.cancel()
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
        for method in self._methods:
            # The handler and the native room refer to each other, which leaks half a megabyte.
            self._room.local_participant.unregister_rpc_method(method)
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.error("a task of the call failed", exc_info=outcome, extra=self._facts())
        await self._source.aclose()

    def _facts(self, **more: str) -> dict[str, str]:
        return {"call_id": self._call_id, "room": self.participant.room, **more}
