"""What a SIP service for LiveKit must do, as one suite: run on the bridge and on livekit-sip.

Phones and trunks are real SIP on loopback (:mod:`dev.phone`, :mod:`dev.trunk`), rooms are a
real livekit-server's."""

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
import pytest
from google.protobuf.duration_pb2 import Duration
from livekit import api, rtc
from livekit.api import LiveKitAPI
from livekit.protocol import sip as pb

from core.audio import Pcm
from dev.echo import Echo, measure_rtt
from dev.phone import Answer, Ended, Phone, PhoneCall, Reject, RingOut
from dev.sip_backends import WAIT, Backend
from dev.sipdigest import Credentials
from dev.trunk import Trunk

CALLER: Final = "+15105550100"
CALLED: Final = "+15105550199"
IDENTITY: Final = "phone"


def missing_for_livekit_sip() -> str:
    """Why livekit-sip cannot be run here; empty when it can."""
    missing = []
    if livekit_sip() is None:
        missing.append("livekit-sip (LIVEKIT_SIP_BIN or PATH)")
    if shutil.which("redis-server") is None:
        missing.append("redis-server (PATH)")
    return f"not found: {', '.join(missing)}" if missing else ""


def livekit_sip() -> str | None:
    return os.environ.get("LIVEKIT_SIP_BIN") or shutil.which("livekit-sip")


# --- what is on the other side: rooms


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
        """Until ``condition()`` holds, looked at whenever something happens."""
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
        """The track's id."""
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
    """The share of a signal's energy within 20 Hz of a frequency, 0 to 1."""
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
    """A backend with clients, a phone, and a room that nobody used before."""

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
        """A call that is up."""
        info = await self.dial(wait_until_answered=True, **fields)
        call = await self.phone.next_call(WAIT)
        await call.answered(WAIT)
        return info, call

    async def participant(self) -> Any:
        return await self.lk.room.get_participant(
            api.RoomParticipantIdentity(room=self.room, identity=IDENTITY)
        )

    async def visible(self) -> Any:
        """The participant, as soon as it is in the room."""
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
async def rig(backend: Backend) -> AsyncIterator[Rig]:
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


class SipContract:
    """Subclasses give the fixture ``rig``."""

    # --- outbound: when what is known

    async def test_the_participant_is_there_with_its_ids_before_the_answer(self, rig: Rig) -> None:
        rig.phone.behave(RingOut())
        waiting = asyncio.create_task(rig.dial(wait_until_answered=True))
        early = await rig.visible()
        call = await rig.phone.next_call(WAIT)
        assert not waiting.done()
        assert early.sid.startswith("PA_")
        assert early.attributes["sip.callID"].startswith("SCL_")
        await call.answer()
        info = await asyncio.wait_for(waiting, WAIT)
        assert info.participant_id == early.sid
        assert info.sip_call_id == early.attributes["sip.callID"]
        assert (info.participant_identity, info.room_name) == (IDENTITY, rig.room)

    async def test_without_waiting_it_returns_while_the_phone_rings(self, rig: Rig) -> None:
        rig.phone.behave(RingOut())
        info = await rig.dial()
        participant = await rig.participant()
        assert participant.sid == info.participant_id
        assert participant.kind == api.ParticipantInfo.Kind.SIP
        call = await rig.phone.next_call(WAIT)
        assert call.ending is None and not call.was_up

    async def test_attributes(self, rig: Rig) -> None:
        async with rig.watch() as watcher:
            info, call = await rig.connect(
                participant_name="Ann",
                participant_metadata="meta",
                participant_attributes={"mine": "yes"},
            )
            await watcher.until(lambda: watcher.attributes.get("sip.callStatus") == "active")
            await watcher.until(lambda: "sip.callTag" in watcher.attributes)
            attributes = watcher.attributes
            participant = await rig.participant()
        assert (participant.name, participant.metadata) == ("Ann", "meta")
        assert attributes["mine"] == "yes"
        assert attributes["sip.callID"] == info.sip_call_id
        assert attributes["sip.phoneNumber"] == CALLED
        assert attributes["sip.trunkPhoneNumber"] == CALLER
        assert attributes["sip.hostname"] == rig.phone.address
        assert attributes["sip.callIDFull"] == call.call_id
        assert attributes["sip.callTag"]
        assert watcher.statuses[-1] == "active"

    async def test_numbers_can_be_hidden(self, rig: Rig) -> None:
        await rig.connect(hide_phone_number=True)
        attributes = (await rig.participant()).attributes
        assert attributes["sip.callID"]
        assert not {"sip.phoneNumber", "sip.trunkPhoneNumber", "sip.hostname"} & set(attributes)

    async def test_it_says_that_the_phone_rings(self, rig: Rig) -> None:
        rig.phone.behave(RingOut())
        async with rig.watch() as watcher:
            await rig.dial()
            await watcher.until(lambda: "ringing" in watcher.statuses)

    # --- outbound: verdicts

    @pytest.mark.parametrize(
        ("status", "code", "http", "reason"),
        [
            (486, "resource_exhausted", 429, "USER_REJECTED"),
            (603, "permission_denied", 403, "USER_REJECTED"),
            (503, "failed_precondition", 412, "CLIENT_INITIATED"),
            (480, "resource_exhausted", 429, "USER_UNAVAILABLE"),
            (404, "not_found", 404, "USER_UNAVAILABLE"),
            (488, "invalid_argument", 400, "USER_REJECTED"),
            (484, "invalid_argument", 400, "USER_REJECTED"),
            (403, "permission_denied", 403, "USER_REJECTED"),
            (600, "resource_exhausted", 429, "USER_REJECTED"),
        ],
    )
    async def test_a_refusal(
        self, rig: Rig, status: int, code: str, http: int, reason: str
    ) -> None:
        rig.phone.behave(Reject(status, after_s=0.5))
        async with rig.watch() as watcher:
            waiting = asyncio.create_task(rig.dial(wait_until_answered=True))
            sid = (await rig.visible()).sid
            with pytest.raises(api.SipCallError) as raised:
                await waiting
            assert await watcher.reason(sid) == reason
        error = raised.value
        assert (error.code, error.status) == (code, http)
        assert error.sip_status_code == status
        assert error.sip_status
        assert "error_details" in error.metadata
        assert watcher.statuses[-1] == "ringing"

    async def test_a_refusal_at_once(self, rig: Rig) -> None:
        rig.phone.behave(Reject(486))
        for _ in range(5):
            with pytest.raises(api.SipCallError) as raised:
                await rig.dial(wait_until_answered=True)
            assert raised.value.sip_status_code == 486

    async def test_nobody_answers(self, rig: Rig) -> None:
        rig.phone.behave(RingOut())
        async with rig.watch() as watcher:
            waiting = asyncio.create_task(
                rig.dial(wait_until_answered=True, ringing_timeout=seconds(1))
            )
            sid = (await rig.visible()).sid
            with pytest.raises(api.ServerError) as raised:
                await waiting
            assert await watcher.reason(sid) == "USER_UNAVAILABLE"
        assert (raised.value.code, raised.value.status) == ("canceled", 408)
        assert not isinstance(raised.value, api.SipCallError)
        call = await rig.phone.next_call(WAIT)
        assert by_us(await call.ended(WAIT)) == ("remote", "cancel")

    async def test_a_host_that_does_not_exist(self, rig: Rig) -> None:
        async with rig.watch() as watcher:
            waiting = asyncio.create_task(
                rig.dial(address="nowhere.invalid", wait_until_answered=True)
            )
            sid = (await rig.visible()).sid
            with pytest.raises(api.ServerError) as raised:
                await waiting
            assert await watcher.reason(sid) == "CLIENT_INITIATED"
        assert (raised.value.code, raised.value.status) == ("invalid_argument", 400)

    async def test_an_unknown_trunk(self, rig: Rig) -> None:
        request = dial_request(rig.room, "unused", sip_trunk_id="ST_unknown")
        request.ClearField("trunk")
        with pytest.raises(api.ServerError) as raised:
            await rig.sip.create_sip_participant(request)
        assert (raised.value.code, raised.value.status) == ("not_found", 404)

    @pytest.mark.parametrize(
        "fields",
        [
            {"sip_call_to": ""},
            {"sip_call_to": "alice@example.com"},
            {"room_name": ""},
            {"headers": {"From": "<sip:x@y>"}},
            {"headers": {"Contact": "<sip:x@y>"}},
            {"headers": {"Max-Forwards": "1"}},
            {"headers": {"X-A": "1\r\nX-B: 2"}},
            {"headers": {"X A": "1"}},
            {"address": "sip:127.0.0.1"},
            {"address": "127.0.0.1;transport=tcp"},
            {"display_name": "x" * 200},
            {"display_name": 'a" <sip:x@y>\r\nX: y'},
        ],
    )
    async def test_what_may_not_be_dialled(self, rig: Rig, fields: dict[str, Any]) -> None:
        with pytest.raises(api.ServerError) as raised:
            await rig.dial(**fields)
        assert (raised.value.code, raised.value.status) == ("invalid_argument", 400)
        assert rig.phone.invites == 0

    # --- outbound: what is on the wire

    async def test_the_caller_and_headers_on_the_wire(self, rig: Rig) -> None:
        _, call = await rig.connect(headers={"X-Order": "a 17"}, display_name="Ann Lee")
        assert (call.caller, call.called) == (CALLER, CALLED)
        assert call.headers["x-order"] == "a 17"
        assert call.headers["from"].startswith('"Ann Lee" <sip:')

    @pytest.mark.parametrize(
        ("display_name", "begin"), [(None, f'"{CALLER}" <'), ("", "<")], ids=["unset", "empty"]
    )
    async def test_the_default_display_name_is_the_number(
        self, rig: Rig, display_name: str | None, begin: str
    ) -> None:
        _, call = await rig.connect(display_name=display_name)
        assert call.headers["from"].startswith(begin)

    async def test_each_call_has_its_own_host_and_credentials(self, rig: Rig) -> None:
        anna, bert = Credentials("anna", "secret-a"), Credentials("bert", "secret-b")
        async with Phone() as other, Trunk(rig.phone.address, anna) as one:
            async with Trunk(other.address, bert, challenge_status=401) as two:
                await asyncio.gather(
                    *(
                        rig.dial(
                            trunk=pb.SIPOutboundConfig(
                                hostname=trunk.address,
                                auth_username=who.username,
                                auth_password=who.password,
                            ),
                            participant_identity=who.username,
                            wait_until_answered=True,
                        )
                        for trunk, who in ((one, anna), (two, bert))
                    )
                )
                assert (one.invites, two.invites) == (1, 1)
                assert one.seen.callers == two.seen.callers == [CALLER]
                assert one.gate is not None and one.gate.usernames == {"anna"}
                assert two.gate is not None and two.gate.usernames == {"bert"}

    @pytest.mark.parametrize("password", ["wrong", ""])
    async def test_wrong_or_missing_credentials(self, rig: Rig, password: str) -> None:
        async with Trunk(
            rig.phone.address, Credentials("anna", "secret"), wrong_answers_allowed=9
        ) as trunk:
            config = pb.SIPOutboundConfig(
                hostname=trunk.address,
                auth_username="anna" if password else "",
                auth_password=password,
            )
            async with rig.watch() as watcher:
                waiting = asyncio.create_task(rig.dial(trunk=config, wait_until_answered=True))
                sid = (await rig.visible()).sid
                with pytest.raises(api.ServerError) as raised:
                    await waiting
                assert await watcher.reason(sid) == "USER_REJECTED"
        assert (raised.value.code, raised.value.status) == ("failed_precondition", 412)
        assert rig.phone.invites == 0

    async def test_a_stored_trunk(self, rig: Rig) -> None:
        trunk = await rig.sip.create_outbound_trunk(
            pb.CreateSIPOutboundTrunkRequest(
                trunk=pb.SIPOutboundTrunkInfo(
                    name="out",
                    address=rig.phone.address,
                    numbers=["+15550001"],
                    headers={"X-Trunk": "t", "X-Both": "trunk"},
                )
            )
        )
        try:
            request = dial_request(
                rig.room, "ignored.invalid", sip_trunk_id=trunk.sip_trunk_id,
                headers={"X-Both": "request"}, wait_until_answered=True,
            )  # fmt: skip
            request.ClearField("sip_number")
            await rig.sip.create_sip_participant(request)
            call = await rig.phone.next_call(WAIT)
            assert call.caller == "+15550001"
            assert (call.headers["x-trunk"], call.headers["x-both"]) == ("t", "request")
            assert (await rig.participant()).attributes["sip.trunkID"] == trunk.sip_trunk_id
        finally:
            await rig.sip.delete_trunk(pb.DeleteSIPTrunkRequest(sip_trunk_id=trunk.sip_trunk_id))

    # --- how calls end

    async def test_the_phone_hangs_up(self, rig: Rig) -> None:
        async with rig.watch() as watcher:
            info, call = await rig.connect()
            await watcher.until(lambda: "active" in watcher.statuses)
            await call.hangup()
            assert await watcher.reason(info.participant_id) == "CLIENT_INITIATED"
        assert watcher.statuses[-1] == "hangup"

    async def test_removal_hangs_up(self, rig: Rig) -> None:
        async with rig.watch() as watcher:
            info, call = await rig.connect()
            await watcher.until(lambda: "active" in watcher.statuses)
            await rig.lk.room.remove_participant(
                api.RoomParticipantIdentity(room=rig.room, identity=IDENTITY)
            )
            assert by_us(await call.ended(WAIT)) == ("remote", "bye")
            assert await watcher.reason(info.participant_id) == "PARTICIPANT_REMOVED"
        assert watcher.statuses[-1] == "active"

    async def test_removal_while_it_rings_cancels(self, rig: Rig) -> None:
        rig.phone.behave(RingOut())
        await rig.dial()
        call = await rig.phone.next_call(WAIT)
        await rig.lk.room.remove_participant(
            api.RoomParticipantIdentity(room=rig.room, identity=IDENTITY)
        )
        assert by_us(await call.ended(WAIT)) == ("remote", "cancel")

    async def test_removal_before_it_rings_cancels_too(self, rig: Rig) -> None:
        """The INVITE is on its way, its answers are not: nobody's phone may ring on."""
        rig.phone.behave(RingOut())
        async with Trunk(rig.phone.address) as trunk:
            rooms = [new_room() for _ in range(8)]

            async def dial_and_remove(room: str) -> None:
                request = dial_request(room, trunk.address)
                await rig.sip.create_sip_participant(request)
                await rig.lk.room.remove_participant(
                    api.RoomParticipantIdentity(room=room, identity=IDENTITY)
                )

            await asyncio.gather(*(dial_and_remove(room) for room in rooms))
            for _ in rooms:  # under way, not all of them at the phone yet
                call = await rig.phone.next_call(WAIT)
                assert by_us(await call.ended(WAIT)) == ("remote", "cancel")
            assert trunk.invites == len(rooms)

    async def test_deleting_the_room_hangs_up(self, rig: Rig) -> None:
        _, call = await rig.connect()
        await rig.lk.room.delete_room(api.DeleteRoomRequest(room=rig.room))
        assert by_us(await call.ended(WAIT)) == ("remote", "bye")

    async def test_the_same_identity_again_ends_the_first_call(self, rig: Rig) -> None:
        _, first = await rig.connect()
        info, second = await rig.connect()
        assert by_us(await first.ended(WAIT)) == ("remote", "bye")
        assert second.ending is None
        assert (await rig.participant()).sid == info.participant_id

    async def test_the_longest_duration_ends_a_call(self, rig: Rig) -> None:
        async with rig.watch() as watcher:
            info, call = await rig.connect(max_call_duration=seconds(2))
            assert by_us(await call.ended(WAIT)) == ("remote", "bye")
            assert await watcher.reason(info.participant_id) == "CLIENT_INITIATED"
        assert watcher.statuses[-1] == "hangup"

    async def test_the_room_hangs_up_by_rpc(self, rig: Rig) -> None:
        async with rig.watch() as watcher:
            info, call = await rig.connect()
            # livekit-sip is gone before its answer at times.
            with contextlib.suppress(rtc.RpcError):
                await watcher.room.local_participant.perform_rpc(
                    destination_identity=IDENTITY, method="lk.sip.EndCall", payload='{"headers":{}}'
                )
            assert by_us(await call.ended(WAIT)) == ("remote", "bye")
            assert await watcher.reason(info.participant_id) == "CLIENT_INITIATED"

    async def test_a_client_that_goes_away_does_not_end_the_dial(self, rig: Rig) -> None:
        rig.phone.behave(RingOut())
        waiting = asyncio.create_task(rig.dial(wait_until_answered=True))
        call = await rig.phone.next_call(WAIT)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await call.answer()
        await call.answered(WAIT)
        assert (await rig.participant()).sid

    # --- audio and digits

    async def test_audio_both_ways(self, rig: Rig) -> None:
        async with rig.watch() as watcher:
            voice = Voice(watcher.room)
            await voice.publish()
            _, call = await rig.connect()
            await watcher.until(lambda: _tracks(watcher.room))
            heard = asyncio.create_task(_hear(_tracks(watcher.room)[0], 1.2))
            await asyncio.gather(call.play(tone(700, 1.5)), voice.say(tone(1100, 1.5)))
            at_room = await asyncio.wait_for(heard, WAIT)
            at_phone = call.recording.received[-6400:]
        assert level_at(at_room[-4000:], 700) > 0.8
        assert level_at(at_phone, 1100) > 0.5

    async def test_the_phone_hears_everybody(self, rig: Rig) -> None:
        async with rig.watch() as one, in_room(rig.backend, rig.room, "second") as two:
            voices = [Voice(one.room), Voice(two.room)]
            for voice in voices:
                await voice.publish()
            _, call = await rig.connect()
            await asyncio.gather(
                *(voice.say(tone(hz, 2)) for voice, hz in zip(voices, (600, 1500), strict=True))
            )
            heard = call.recording.received[-8000:]
        assert level_at(heard, 600) > 0.2
        assert level_at(heard, 1500) > 0.2

    async def test_it_hears_what_livekit_lets_it_hear(self, rig: Rig) -> None:
        """As a human who is told first, and then put through (worker.separation)."""
        rig.phone.behave(RingOut())
        async with rig.watch() as one, in_room(rig.backend, rig.room, "second") as two:
            voices = {600: Voice(one.room), 1500: Voice(two.room)}
            tracks = {hz: await voice.publish() for hz, voice in voices.items()}

            async def heard() -> list[int]:
                await asyncio.gather(*(voice.say(tone(hz, 1.6)) for hz, voice in voices.items()))
                pcm = call.recording.received[-6400:]
                return [hz for hz in voices if level_at(pcm, hz) > 0.2]

            dialling = asyncio.create_task(rig.dial(wait_until_answered=True))
            call = await rig.phone.next_call(WAIT)
            await rig.visible()
            await rig.may_subscribe(False)
            await call.answer()
            await dialling
            await one.until(lambda: one.statuses[-1:] == ["active"])
            assert await heard() == []
            await rig.subscribe(tracks[600], False)
            await rig.may_subscribe(True)
            assert await heard() == [1500]
            await rig.subscribe(tracks[600], True)
            assert await heard() == [600, 1500]
            await rig.subscribe(tracks[1500], False)
            assert await heard() == [600]
            await rig.subscribe(tracks[1500], True)
            assert await heard() == [600, 1500]

    async def test_it_comes_back_from_an_echo(self, rig: Rig) -> None:
        async with Echo(rig.backend, rig.room):
            _, call = await rig.connect()
            await asyncio.sleep(1)
            assert 0 < await measure_rtt(call) < 1000

    async def test_digits_both_ways(self, rig: Rig) -> None:
        async with rig.watch() as watcher:
            _, call = await rig.connect()
            await watcher.until(lambda: "active" in watcher.statuses)
            await call.dtmf("19*#")
            await watcher.until(lambda: len(watcher.digits) >= 4)
            for code, digit in ((5, "5"), (0, "0"), (11, "#")):
                await watcher.room.local_participant.publish_dtmf(code=code, digit=digit)
            received = [(await call.next_digit(WAIT)).digit for _ in range(3)]
        assert watcher.digits == ["1", "9", "*", "#"]
        assert received == ["5", "0", "#"]

    async def test_digits_after_the_answer(self, rig: Rig) -> None:
        async with rig.watch() as watcher:
            _, call = await rig.connect(dtmf="1w2")
            first = await call.next_digit(WAIT)
            second = await call.next_digit(WAIT)
            await watcher.until(lambda: "active" in watcher.statuses)
        assert (first.digit, second.digit) == ("1", "2")
        assert second.at_ms - first.at_ms > 400

    # --- transfers

    async def test_a_transfer(self, rig: Rig) -> None:
        async with Phone() as target, rig.watch() as watcher:
            info, call = await rig.connect()
            uri = f"sip:+15550123@{target.address}"
            transfer = pb.TransferSIPParticipantRequest(
                participant_identity=IDENTITY, room_name=rig.room, transfer_to=uri
            )
            await rig.sip.transfer_sip_participant(transfer)
            assert (await target.next_call(WAIT)).called == "+15550123"
            assert await watcher.reason(info.participant_id) == "CLIENT_INITIATED"
            assert watcher.statuses[-1] == "hangup"
            await call.ended(WAIT)

    @pytest.mark.parametrize(("status", "code"), [(486, "resource_exhausted")])
    async def test_a_transfer_that_is_refused(self, rig: Rig, status: int, code: str) -> None:
        async with Phone(behaviour=Reject(status)) as target:
            _, call = await rig.connect()
            transfer = pb.TransferSIPParticipantRequest(
                participant_identity=IDENTITY,
                room_name=rig.room,
                transfer_to=f"sip:+15550123@{target.address}",
            )
            with pytest.raises(api.SipCallError) as raised:
                await rig.sip.transfer_sip_participant(transfer)
            assert raised.value.code == code
            assert raised.value.sip_status_code == status
            assert call.ending is None

    async def test_a_transfer_of_nobody(self, rig: Rig) -> None:
        transfer = pb.TransferSIPParticipantRequest(
            participant_identity=IDENTITY, room_name=rig.room, transfer_to="sip:a@127.0.0.1"
        )
        with pytest.raises(api.ServerError) as raised:
            await rig.sip.transfer_sip_participant(transfer)
        assert raised.value.code == "not_found"

    # --- inbound

    async def test_an_inbound_call(self, rig: Rig) -> None:
        agents = api.RoomConfiguration(
            metadata="room meta",
            agents=[api.RoomAgentDispatch(agent_name="nobody", metadata="job meta")],
        )
        async with self.inbound(rig, room_config=agents, metadata="part meta") as (trunk, rule):
            call = await self.ring(rig)
            await call.ringing(WAIT)
            participant = await self.caller_in(rig)
            assert participant.kind == api.ParticipantInfo.Kind.SIP
            assert participant.metadata == "part meta"
            assert participant.attributes["sip.callStatus"] == "ringing"
            assert participant.attributes["sip.phoneNumber"] == CALLER
            assert participant.attributes["sip.trunkPhoneNumber"] == trunk.numbers[0]
            assert participant.attributes["sip.trunkID"] == trunk.sip_trunk_id
            assert participant.attributes["sip.ruleID"] == rule.sip_dispatch_rule_id
            assert participant.attributes["from-rule"] == "yes"
            rooms = await rig.lk.room.list_rooms(api.ListRoomsRequest(names=[rig.room]))
            assert rooms.rooms[0].metadata == "room meta"
            dispatches = await rig.lk.agent_dispatch.list_dispatch(rig.room)
            assert [(d.agent_name, d.metadata) for d in dispatches] == [("nobody", "job meta")]
            assert not call.was_up
            async with rig.watch() as watcher:
                voice = Voice(watcher.room)
                await voice.publish()
                await call.answered(WAIT)
                await watcher.until(lambda: "active" in watcher.statuses)
                await watcher.until(lambda: _tracks(watcher.room))
                heard = asyncio.create_task(_hear(_tracks(watcher.room)[0], 1.0))
                await asyncio.gather(call.play(tone(700, 1.4)), voice.say(tone(1100, 1.4)))
                assert level_at((await asyncio.wait_for(heard, WAIT))[-4000:], 700) > 0.8
                assert level_at(call.recording.received[-6400:], 1100) > 0.5
                await call.hangup()
                assert await watcher.reason(participant.sid) == "CLIENT_INITIATED"
            assert watcher.statuses[-1] == "hangup"

    async def test_an_inbound_call_that_nobody_answers(self, rig: Rig) -> None:
        async with self.inbound(rig, ringing_timeout=seconds(1)):
            async with rig.watch() as watcher:
                call = await self.ring(rig)
                ended = await call.ended(WAIT)
                assert (ended.how, ended.status) == ("refused", 486)
                await watcher.until(lambda: watcher.reasons)
            assert set(watcher.reasons.values()) == {"CLIENT_INITIATED"}
            assert watcher.statuses == ["ringing"]

    async def test_a_caller_who_gives_up(self, rig: Rig) -> None:
        async with self.inbound(rig):
            call = await self.ring(rig)
            sid = (await self.caller_in(rig)).sid
            async with rig.watch() as watcher:
                await call.hangup()
                assert await watcher.reason(sid) == "CLIENT_INITIATED"

    async def test_a_caller_who_is_sent_away(self, rig: Rig) -> None:
        """Removed as soon as it is all there, and after a while: refused, at once."""
        async with self.inbound(rig):
            for rings in (False, True):
                call = await self.ring(rig)
                async with asyncio.timeout(WAIT):
                    while (await self.caller_in(rig)).state != api.ParticipantInfo.State.ACTIVE:  # noqa: ASYNC110
                        await asyncio.sleep(0.005)
                if rings:
                    await call.ringing(WAIT)
                    await asyncio.sleep(0.3)
                await rig.lk.room.remove_participant(
                    api.RoomParticipantIdentity(room=rig.room, identity=f"sip_{CALLER}")
                )
                # Sooner than any time-out of the SIP service's.
                ended = await call.ended(8)
                assert (ended.how, ended.status) == ("refused", 486)

    async def test_individual_and_callee_rooms(self, rig: Rig) -> None:
        individual = pb.SIPDispatchRule(
            dispatch_rule_individual=pb.SIPDispatchRuleIndividual(room_prefix=rig.room)
        )
        async with self.inbound(rig, rule=individual):
            call = await self.ring(rig)
            name = await self.room_like(rig, f"{rig.room}_{CALLER}_")
            await call.hangup()
            await call.ended(WAIT)
        await rig.lk.room.delete_room(api.DeleteRoomRequest(room=name))
        callee = pb.SIPDispatchRule(
            dispatch_rule_callee=pb.SIPDispatchRuleCallee(room_prefix=rig.room)
        )
        async with self.inbound(rig, rule=callee) as (trunk, _):
            call = await self.ring(rig)
            name = await self.room_like(rig, f"{rig.room}_{trunk.numbers[0]}")
            await call.hangup()
            await call.ended(WAIT)
        await rig.lk.room.delete_room(api.DeleteRoomRequest(room=name))

    async def test_headers_of_an_inbound_call(self, rig: Rig) -> None:
        trunk = pb.SIPInboundTrunkInfo(
            include_headers=pb.SIPHeaderOptions.SIP_X_HEADERS,
            headers_to_attributes={"X-Order": "order"},
        )
        async with self.inbound(rig, trunk=trunk):
            call = await self.ring(rig, headers={"X-Order": "17", "X-Other": "z"})
            attributes = (await self.caller_in(rig)).attributes
            assert attributes["order"] == attributes["sip.h.x-order"] == "17"
            assert attributes["sip.h.x-other"] == "z"
            assert attributes["sip.callIDFull"] == call.call_id
            await call.hangup()

    # --- trunks and rules

    async def test_trunks_and_rules_are_kept(self, rig: Rig) -> None:
        async with self.inbound(rig) as (trunk, rule):
            listed = await rig.sip.list_inbound_trunk(
                pb.ListSIPInboundTrunkRequest(trunk_ids=[trunk.sip_trunk_id])
            )
            assert [item.sip_trunk_id for item in listed.items] == [trunk.sip_trunk_id]
            updated = await rig.sip.update_inbound_trunk_fields(
                trunk.sip_trunk_id, name="renamed", allowed_numbers=[CALLER]
            )
            assert (updated.name, list(updated.allowed_numbers)) == ("renamed", [CALLER])
            assert list(updated.numbers) == list(trunk.numbers)
            rules = await rig.sip.list_dispatch_rule(
                pb.ListSIPDispatchRuleRequest(trunk_ids=[trunk.sip_trunk_id])
            )
            assert rule.sip_dispatch_rule_id in {r.sip_dispatch_rule_id for r in rules.items}
            changed = await rig.sip.update_dispatch_rule_fields(
                rule.sip_dispatch_rule_id, metadata="new"
            )
            assert changed.metadata == "new"
            with pytest.raises(api.ServerError) as raised:
                await rig.sip.create_inbound_trunk(
                    pb.CreateSIPInboundTrunkRequest(
                        trunk=pb.SIPInboundTrunkInfo(
                            numbers=trunk.numbers, allowed_numbers=[CALLER]
                        )
                    )
                )
            assert raised.value.code == "invalid_argument"
        gone = pb.DeleteSIPTrunkRequest(sip_trunk_id=trunk.sip_trunk_id)
        assert (await rig.sip.delete_trunk(gone)).sip_trunk_id == trunk.sip_trunk_id
        listed = await rig.sip.list_inbound_trunk(
            pb.ListSIPInboundTrunkRequest(trunk_ids=[trunk.sip_trunk_id])
        )
        assert not listed.items

    async def test_a_trunk_that_is_open_to_everyone_is_not_taken(self, rig: Rig) -> None:
        trunk = pb.SIPInboundTrunkInfo(name="open to everyone")
        with pytest.raises(api.ServerError) as raised:
            await rig.sip.create_inbound_trunk(pb.CreateSIPInboundTrunkRequest(trunk=trunk))
        assert raised.value.code == "invalid_argument"

    @contextlib.asynccontextmanager
    async def inbound(
        self,
        rig: Rig,
        *,
        trunk: pb.SIPInboundTrunkInfo | None = None,
        rule: pb.SIPDispatchRule | None = None,
        ringing_timeout: Duration | None = None,
        **fields: Any,
    ) -> AsyncIterator[tuple[pb.SIPInboundTrunkInfo, pb.SIPDispatchRuleInfo]]:
        """A trunk for one number, and a rule that leads to the rig's room."""
        info = trunk or pb.SIPInboundTrunkInfo()
        info.numbers[:] = [CALLED]
        info.ringing_timeout.CopyFrom(ringing_timeout or seconds(30))
        stored = await rig.sip.create_inbound_trunk(pb.CreateSIPInboundTrunkRequest(trunk=info))
        try:
            direct = pb.SIPDispatchRule(
                dispatch_rule_direct=pb.SIPDispatchRuleDirect(room_name=rig.room)
            )
            made = await rig.sip.create_dispatch_rule(
                pb.CreateSIPDispatchRuleRequest(
                    dispatch_rule=pb.SIPDispatchRuleInfo(
                        rule=rule or direct,
                        trunk_ids=[stored.sip_trunk_id],
                        attributes={"from-rule": "yes"},
                        **fields,
                    )
                )
            )
            try:
                yield stored, made
            finally:
                await rig.sip.delete_dispatch_rule(
                    pb.DeleteSIPDispatchRuleRequest(sip_dispatch_rule_id=made.sip_dispatch_rule_id)
                )
        finally:
            await rig.sip.delete_trunk(pb.DeleteSIPTrunkRequest(sip_trunk_id=stored.sip_trunk_id))

    async def ring(self, rig: Rig, **fields: Any) -> PhoneCall:
        return await rig.phone.dial(
            f"sip:{CALLED}@{rig.backend.sip_address}", caller=CALLER, **fields
        )

    async def caller_in(self, rig: Rig) -> Any:
        """The caller's participant, once it is in the rig's room."""
        async with asyncio.timeout(WAIT):
            while True:
                try:
                    return await rig.lk.room.get_participant(
                        api.RoomParticipantIdentity(room=rig.room, identity=f"sip_{CALLER}")
                    )
                except api.TwirpError as error:
                    if error.code != "not_found":
                        raise
                await asyncio.sleep(0.01)

    async def room_like(self, rig: Rig, prefix: str) -> str:
        async with asyncio.timeout(WAIT):
            while True:
                rooms = await rig.lk.room.list_rooms(api.ListRoomsRequest())
                for room in rooms.rooms:
                    if room.name.startswith(prefix):
                        return str(room.name)
                await asyncio.sleep(0.01)


def _tracks(room: rtc.Room) -> list[rtc.RemoteAudioTrack]:
    """The phone's tracks that this room is subscribed to."""
    return [
        publication.track
        for participant in room.remote_participants.values()
        for publication in participant.track_publications.values()
        if participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_SIP
        and isinstance(publication.track, rtc.RemoteAudioTrack)
    ]


async def _hear(track: rtc.RemoteAudioTrack, duration_s: float) -> Pcm:
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


__all__ = ["Answer", "Rig", "SipContract", "livekit_sip", "missing_for_livekit_sip", "rig"]
