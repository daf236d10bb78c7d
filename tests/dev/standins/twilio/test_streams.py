"""A call's media stream: the order of messages, marks, clear, the queue in real time."""

from __future__ import annotations

import asyncio
import base64
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from dev.standins.twilio import CallOver
from tests.dev.standins.twilio.rig import CALLER, NUMBER, STREAM, Rig, rig

pytestmark = pytest.mark.unit

TONE = b"\x10" * 160
SILENCE = b"\xff" * 160


@pytest_asyncio.fixture
async def here() -> AsyncIterator[Rig]:
    async with rig() as made:
        made.voice(STREAM)
        yield made


class TestMessages:
    async def test_the_order_from_connected_to_stop(self, here: Rig) -> None:
        here.voice(
            '<Connect><Stream url="{ws}"><Parameter name="token" value="t0"/></Stream></Connect>'
        )
        call = await here.twilio.call(NUMBER, CALLER)
        peer = await here.app.peer()
        await peer.until("media", 3)
        await call.caller.press("5")
        await peer.until("media", len(peer.of("media")) + 2)
        call.hang_up()
        assert await call.ended() == "completed"
        await peer.ended()
        sid = call.stream.sid
        assert peer.got[0] == {"event": "connected", "protocol": "Call", "version": "1.0.0"}
        assert peer.got[1] == {
            "event": "start",
            "sequenceNumber": "1",
            "start": {
                "accountSid": call.account_sid,
                "callSid": call.sid,
                "streamSid": sid,
                "tracks": ["inbound"],
                "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
                "customParameters": {"token": "t0"},
            },
            "streamSid": sid,
        }
        assert [message["sequenceNumber"] for message in peer.got[1:]] == [
            str(number) for number in range(1, len(peer.got))
        ]
        assert {message["streamSid"] for message in peer.got[1:]} == {sid}
        media = [message["media"] for message in peer.of("media")]
        assert [each["chunk"] for each in media] == [str(n + 1) for n in range(len(media))]
        assert [each["timestamp"] for each in media] == [str(20 * n) for n in range(len(media))]
        assert {each["track"] for each in media} == {"inbound"}
        assert base64.b64decode(media[0]["payload"]) == SILENCE
        assert peer.of("dtmf")[0]["dtmf"] == {"track": "inbound_track", "digit": "5"}
        assert peer.got[-1]["event"] == "stop"
        assert peer.got[-1]["stop"] == {"accountSid": call.account_sid, "callSid": call.sid}
        assert peer.socket.close_code == 1000

    async def test_what_the_caller_says_arrives_in_frames(self, here: Rig) -> None:
        call = await here.twilio.call(NUMBER, CALLER)
        peer = await here.app.peer()
        said = await call.caller.say(np.full(400, -32124, np.int16))  # µ-law 0x00
        media = await peer.until("media", len(peer.of("media")) + 1)
        frames = [base64.b64decode(each["media"]["payload"]) for each in media]
        loud = [frame for frame in frames if frame != SILENCE]
        assert loud == [bytes(160), bytes(160), bytes(80) + b"\xff" * 80]
        # The position says which frames: the clock of what was heard is that of what was sent.
        assert frames[int(said.start_ms / 20)] == loud[0]
        assert said.end_ms - said.start_ms == 50

    async def test_a_text_and_a_recording_can_be_said(self, here: Rig, tmp_path: Path) -> None:
        call = await here.twilio.call(NUMBER, CALLER)
        peer = await here.app.peer()
        text = await call.caller.say("Hi.")
        path = tmp_path / "tone.wav"
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(np.full(1600, 8000, "<i2").tobytes())
        said = await call.caller.say(path)
        assert text.end_ms - text.start_ms > 200
        assert said.start_ms >= text.end_ms and said.end_ms - said.start_ms == 100
        media = await peer.until("media", int(said.end_ms / 20))
        frame = base64.b64decode(media[int(said.start_ms / 20) + 2]["media"]["payload"])
        assert frame == b"\xa0" * 160  # µ-law for 8000

    async def test_saying_ends_with_the_call(self, here: Rig) -> None:
        call = await here.twilio.call(NUMBER, CALLER)
        await call.streaming()
        saying = asyncio.ensure_future(call.caller.say(np.zeros(80000, np.int16)))
        await (await here.app.peer()).until("media", 5)
        call.hang_up()
        with pytest.raises(CallOver):
            await saying


class TestPlaying:
    async def test_a_mark_comes_when_all_before_it_was_played(self, here: Rig) -> None:
        call = await here.twilio.call(NUMBER, CALLER)
        peer = await here.app.peer()
        await peer.mark("at once")
        await peer.until("mark")
        await peer.media(TONE * 5)
        await peer.mark("played")
        before = len(peer.of("media"))
        await peer.until("mark", 2)
        assert len(peer.of("media")) - before >= 5
        assert [mark.name for mark in call.stream.marks] == ["at once", "played"]
        assert call.heard.ulaw.count(TONE * 5) == 1
        assert call.heard.ulaw.strip(b"\xff") == TONE * 5
        start = call.heard.ulaw.index(TONE) / 8
        # Echoed at the end of the frame, before the next one.
        assert call.stream.marks[1].at_ms == start + 100
        assert call.stream.longest_queue_ms == 100

    async def test_audio_is_played_as_the_calls_clock_runs(self, here: Rig) -> None:
        call = await here.twilio.call(NUMBER, CALLER)
        peer = await here.app.peer()
        begun_ms = call.heard.ms
        await peer.media(TONE * 15)
        await peer.mark("end")
        await peer.until("mark")
        # As many frames came from the caller meanwhile.
        frames = int(peer.of("media")[-1]["media"]["chunk"])
        assert begun_ms + 300 <= call.stream.marks[0].at_ms <= frames * 20
        assert call.stream.longest_queue_ms == 300

    async def test_clear_drops_the_queue_and_echoes_all_marks_at_once(self, here: Rig) -> None:
        call = await here.twilio.call(NUMBER, CALLER)
        peer = await here.app.peer()
        for name in ("g1.1", "g1.2", "g1.3"):
            await peer.media(TONE * 50)
            await peer.mark(name)
        await call.heard.until_sound()
        await peer.clear()
        marks = await peer.until("mark", 3)
        assert [each["mark"]["name"] for each in marks] == ["g1.1", "g1.2", "g1.3"]
        await peer.until("media", len(peer.of("media")) + 3)
        (clear,) = call.stream.clears
        assert clear.dropped_ms > 2500 and 0 <= clear.played_after_ms <= 20
        assert all(mark.cleared for mark in call.stream.marks)
        heard_ms = len(call.heard.ulaw.strip(b"\xff")) / 8
        assert heard_ms + clear.dropped_ms == 3000
        # What comes after a clear is played.
        await peer.media(b"\x20" * 160)
        await peer.mark("g2.1")
        await peer.until("mark", 4)
        assert call.heard.ulaw.count(b"\x20" * 160) == 1

    async def test_what_was_heard_can_be_waited_for(self, here: Rig) -> None:
        call = await here.twilio.call(NUMBER, CALLER)
        peer = await here.app.peer()
        waiting = asyncio.ensure_future(call.heard.until_sound())
        await peer.media(SILENCE + TONE * 2)
        start_ms = await waiting
        end_ms = await call.heard.until_quiet(for_ms=100)
        assert call.heard.ulaw[int(start_ms) * 8 :].startswith(TONE)
        assert end_ms == start_ms + 40
        assert set(call.heard.pcm(start_ms, end_ms)) == {-15996}
