"""Audio, digits and transfers of a call."""

from __future__ import annotations

import asyncio

import pytest
from livekit import api
from livekit.protocol import sip as pb

from dev.phone import Phone, Reject, RingOut
from dev.stack.sip_backends import WAIT
from dev.standins.echo import Echo, measure_rtt
from tests.sip.contract.rig import (
    IDENTITY,
    Rig,
    Voice,
    hear,
    in_room,
    level_at,
    tone,
    tracks,
)


class MediaContract:
    """Subclasses provide the fixture ``rig``."""

    # --- audio and digits

    async def test_audio_both_ways(self, rig: Rig) -> None:
        async with rig.watch() as watcher:
            voice = Voice(watcher.room)
            await voice.publish()
            _, call = await rig.connect()
            await watcher.until(lambda: tracks(watcher.room))
            heard = asyncio.create_task(hear(tracks(watcher.room)[0], 1.2))
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
        """A transfer's human is briefed first and then put through (worker.room.separation)."""
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
