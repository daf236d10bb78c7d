"""Both sides of a SIP service under test: rooms with their participants, and a phone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from google.protobuf.duration_pb2 import Duration
from livekit import api, rtc
from livekit.api import LiveKitAPI
from livekit.protocol import sip as pb

from core.audio import Pcm
from dev.phone import Ended, Phone, PhoneCall
from dev.stack.sip_backends import WAIT, Backend

CALLER: Final = "+15105550100"
CALLED: Final = "+15105550199"
IDENTITY: Final = "phone"


def missing_for_livekit_sip() -> str:
    """Return what livekit-sip needs and this machine lacks; empty if it can run."""
    missing = []
    if livekit_sip_binary() is None:
        missing.append("livekit-sip (LIVEKIT_SIP_BIN or PATH)")
    if shutil.which("redis-server") is None:
        missing.append("redis-server (PATH)")
    return f"not found: {', '.join(missing)}" if missing else ""


def livekit_sip_binary() -> str | None:
    return os.environ.get("LIVEKIT_SIP_BIN") or shutil.which("livekit-sip")


# --- rooms


class Watcher:
    """A participant that notes what the SIP participants of its room do."""

    def __init__(self) -> None:
        self.room = rtc.Room()
        self.statuses: list[str] = []
        self.attributes: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.digits: list[str] = []
        self._changed = asyncio.Event()
        room = self.room

        def attributes(changed: dict[str, str], participant: rtc.Participant) -> None:
            if participant.identity != room.local_participant.identity:
                self._note(dict(participant.attributes))

        def joined(participant: rtc.RemoteParticipant) -> None:
            self._note(dict(participant.attributes))

        def left(participant: rtc.RemoteParticipant) -> None:
            reason = participant.disconnect_reason
            name = "" if reason is None else rtc.DisconnectReason.Name(reason)
            self.reasons[participant.sid] = name
            self._note(dict(participant.attributes))

        def digit(event: rtc.SipDTMF) -> None:
            self.digits.append(event.digit)
            self._changed.set()

        room.on("participant_attributes_changed", attributes)
        room.on("participant_connected", joined)
        room.on("participant_disconnected", left)
        room.on("sip_dtmf_received", digit)
        room.on("track_subscribed", lambda *_: self._changed.set())

    def _note(self, attributes: dict[str, str]) -> None:
        self.attributes = attributes
        status = attributes.get("sip.callStatus", "")
        if status and self.statuses[-1:] != [status]:
            self.statuses.append(status)
        self._changed.set()

    async def until(self, condition: Any) -> None:
        """Wait until ``condition()`` holds; check it after every event."""
        async with asyncio.timeout(WAIT):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def reason(self, sid: str) -> str:
        await self.until(lambda: sid in self.reasons)
        return self.reasons[sid]


@contextlib.asynccontextmanager
async def in_room(backend: Backend, room: str, identity: str = "watcher") -> AsyncIterator[Watcher]:
    watcher = Watcher()
    await watcher.room.connect(backend.url, backend.token(room, identity))
    try:
        yield watcher
    finally:
        await watcher.room.disconnect()


class Voice:
    """An audio track published into a room: ``say`` sends 8 kHz samples in real time."""

    def __init__(self, room: rtc.Room) -> None:
        self._room = room
        self._source = rtc.AudioSource(8000, 1, queue_size_ms=100)

    async def publish(self) -> str:
        """Publish the track and return its id."""
        track = rtc.LocalAudioTrack.create_audio_track("voice", self._source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        return (await self._room.local_participant.publish_track(track, options)).sid

    async def say(self, pcm: Pcm) -> None:
        for start in range(0, len(pcm), 160):
            samples = pcm[start : start + 160]
            await self._source.capture_frame(
                rtc.AudioFrame(samples.tobytes(), 8000, 1, len(samples))
            )


def tone(hz: float, seconds: float) -> Pcm:
    wave = np.sin(2 * np.pi * hz * np.arange(int(seconds * 8000)) / 8000)
    return (wave * 12000).astype(np.int16)


def level_at(pcm: Pcm, hz: float) -> float:
    """Return the share of a signal's energy within 20 Hz of a frequency, 0 to 1."""
    spectrum = np.abs(np.fft.rfft(pcm.astype(np.float64))) ** 2
    near = np.abs(np.fft.rfftfreq(len(pcm), 1 / 8000) - hz) < 20
    total = float(spectrum.sum())
    return float(spectrum[near].sum()) / total if total else 0.0


# --- the suite


def new_room() -> str:
    return f"room-{uuid.uuid4().hex[:8]}"


def dial_request(room: str, address: str, **fields: Any) -> pb.CreateSIPParticipantRequest:
    trunk = fields.pop("trunk", None) or pb.SIPOutboundConfig(hostname=address)
    fields = {
        "trunk": trunk,
        "sip_number": CALLER,
        "sip_call_to": CALLED,
        "room_name": room,
        "participant_identity": IDENTITY,
        **fields,
    }
    return pb.CreateSIPParticipantRequest(**fields)


def seconds(value: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(value * 1e9))
    return duration


@dataclass
class Rig:
    """A backend with clients, a phone, and an unused room."""

    backend: Backend
    lk: LiveKitAPI
    sip: Any
    phone: Phone
    room: str

    async def dial(self, **fields: Any) -> pb.SIPParticipantInfo:
        address = fields.pop("address", self.phone.address)
        room = fields.pop("room_name", self.room)
        request = dial_request(room, address, **fields)
        info: pb.SIPParticipantInfo = await self.sip.create_sip_participant(request)
        return info

    async def connect(self, **fields: Any) -> tuple[pb.SIPParticipantInfo, PhoneCall]:
        """Dial the phone and return an answered call."""
        info = await self.dial(wait_until_answered=True, **fields)
        call = await self.phone.next_call(WAIT)
        await call.answered(WAIT)
        return info, call

    async def participant(self) -> Any:
        return await self.lk.room.get_participant(
            api.RoomParticipantIdentity(room=self.room, identity=IDENTITY)
        )

    async def visible(self) -> Any:
        """Return the participant, as soon as it is in the room."""
        async with asyncio.timeout(WAIT):
            while True:
                try:
                    return await self.participant()
                except api.TwirpError as error:
                    if error.code != "not_found":
                        raise
                await asyncio.sleep(0.005)

    async def may_subscribe(self, allowed: bool) -> None:
        permission = (await self.participant()).permission
        permission.can_subscribe = allowed
        await self.lk.room.update_participant(
            api.UpdateParticipantRequest(room=self.room, identity=IDENTITY, permission=permission)
        )

    async def subscribe(self, track: str, wanted: bool) -> None:
        await self.lk.room.update_subscriptions(
            api.UpdateSubscriptionsRequest(
                room=self.room, identity=IDENTITY, track_sids=[track], subscribe=wanted
            )
        )

    def watch(self) -> contextlib.AbstractAsyncContextManager[Watcher]:
        return in_room(self.backend, self.room)


@contextlib.asynccontextmanager
async def open_rig(backend: Backend) -> AsyncIterator[Rig]:
    lk, sip = backend.api(), backend.sip_api()
    room = new_room()
    try:
        async with Phone() as phone:
            yield Rig(backend, lk, sip.sip, phone, room)
    finally:
        with contextlib.suppress(api.TwirpError):
            await lk.room.delete_room(api.DeleteRoomRequest(room=room))
        await lk.aclose()
        await sip.aclose()


def by_us(ended: Ended) -> tuple[str, str]:
    return ended.by, ended.how


def tracks(room: rtc.Room) -> list[rtc.RemoteAudioTrack]:
    """Return the phones' tracks that this room is subscribed to."""
    return [
        publication.track
        for participant in room.remote_participants.values()
        for publication in participant.track_publications.values()
        if participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_SIP
        and isinstance(publication.track, rtc.RemoteAudioTrack)
    ]


async def hear(track: rtc.RemoteAudioTrack, duration_s: float) -> Pcm:
    stream = rtc.AudioStream.from_track(track=track, sample_rate=8000, num_channels=1)
    frames: list[Pcm] = []
    try:
        async for event in stream:
            frames.append(np.frombuffer(event.frame.data, np.int16).copy())
            if sum(map(len, frames)) >= duration_s * 8000:
                break
    finally:
        await stream.aclose()
    return np.concatenate(frames)
