"""Audio between two phones: each hears exactly what the other sent, and learns of a hold."""

from __future__ import annotations

import asyncio
import time
import wave
from pathlib import Path

import numpy as np
import pytest

from core.audio import Pcm
from dev.phone import Phone
from dev.phone.tracks import FRAME, SAMPLE_RATE
from dev.speech import CALLER_VOICE, Recognizer, listen
from tests.support.phones import (
    WAIT,
    alice,
    all_arrived,
    bob,
    connect,
    first_sound,
    is_same_audio,
    noise,
    settled,
)

pytestmark = pytest.mark.sip

__all__ = ["alice", "bob"]


class TestAudio:
    async def test_an_utterance_is_heard_whole_and_its_span_is_where_it_was_sent(
        self, alice: Phone, bob: Phone
    ) -> None:
        outbound, inbound = await connect(alice, bob)
        pause = np.zeros(SAMPLE_RATE // 5, np.int16)
        signal = noise(0.8, 1)
        span, heard = await asyncio.gather(
            outbound.play(np.concatenate([pause, signal, pause])),
            inbound.listen(WAIT, end_silence_ms=300),
        )
        assert span.end_ms - span.start_ms == 800
        assert heard.end_ms - heard.start_ms == pytest.approx(800, abs=20)
        match = listen.find(signal, outbound.recording.sent)
        assert match.score == pytest.approx(1.0)
        # The first sightings set the track's time; later, better ones may move it a little.
        assert match.offset / 8 == pytest.approx(span.start_ms, abs=10)

    async def test_what_arrives_is_what_was_sent_sample_by_sample(
        self, alice: Phone, bob: Phone
    ) -> None:
        """No frame is lost, doubled or moved, although the event loop of both ends is blocked
        for half a second."""
        outbound, inbound = await connect(alice, bob)
        await settled(outbound, inbound)
        signal = noise(3, 1)
        playing = asyncio.create_task(outbound.play(signal))
        await first_sound(inbound)
        time.sleep(0.5)  # noqa: ASYNC251 - the stand-still is the point
        await asyncio.wait_for(playing, WAIT)
        await all_arrived(outbound, inbound)
        sent, received = outbound.media.sent.view(), inbound.media.received.view()
        there, here = listen.find(signal, sent), listen.find(signal, received)
        assert np.array_equal(sent[there.offset :][: len(signal)], signal)
        assert is_same_audio(received[here.offset :][: len(signal)], signal)
        assert outbound.media.starved_frames == 0

    async def test_both_ears_lie_on_one_clock(self, alice: Phone, bob: Phone) -> None:
        """Clicks are sent both ways. Each arrives when it was sent, plus the few milliseconds
        that a packet needs. Each side's clock starts at its own answer, so the two starts are
        compared on the machine's clock.

        Measured on an idle machine with two cores: 3 to 6 ms each way. Other work on the
        machine only ever delays, so the quickest click counts, and 60 ms are allowed.
        """
        outbound, inbound = await connect(alice, bob)
        clicks = [noise(0.025, seed) for seed in range(6)]
        gap = np.zeros(SAMPLE_RATE // 4, np.int16)
        ours = np.concatenate([np.concatenate([gap, click]) for click in clicks])
        await asyncio.gather(outbound.play(ours), inbound.play(ours))
        await asyncio.gather(all_arrived(outbound, inbound), all_arrived(inbound, outbound))
        later_ms = 1000 * (inbound.media.zero - outbound.media.zero)
        at_alice, at_bob = outbound.recording, inbound.recording

        def at_ms(click: Pcm, track: Pcm) -> float:
            match = listen.find(click, track)
            assert match.score > 0.98
            return match.offset * 1000 / SAMPLE_RATE

        there = [at_ms(c, at_bob.received) + later_ms - at_ms(c, at_alice.sent) for c in clicks]
        back = [at_ms(c, at_alice.received) - at_ms(c, at_bob.sent) - later_ms for c in clicks]
        assert -3 <= min(there) <= 60
        assert -3 <= min(back) <= 60

    async def test_a_phone_that_says_nothing_still_sends(self, alice: Phone, bob: Phone) -> None:
        outbound, inbound = await connect(alice, bob)
        await inbound.media.wait_for(lambda: len(inbound.media.received) >= 25 * FRAME)
        assert inbound.media.received.hole_samples == 0
        assert listen.level_dbfs(inbound.media.received.view()) < -70

    async def test_stopping_to_speak_stops_at_once(self, alice: Phone, bob: Phone) -> None:
        outbound, inbound = await connect(alice, bob)
        signal = noise(20, 1)
        playing = asyncio.create_task(outbound.play(signal))
        await first_sound(inbound)
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing
        heard = await inbound.listen(WAIT, end_silence_ms=300)
        assert heard.end_ms - heard.start_ms < 2000
        # The recording has only the audio that left, not the part that was cut off.
        voiced = listen.voiced_segments(outbound.media.sent.view(), SAMPLE_RATE)
        assert [s.duration_ms for s in voiced] == [pytest.approx(heard.end_ms - heard.start_ms)]
        again = noise(0.5, 2)
        await outbound.play(again)
        assert listen.find(again, outbound.recording.sent).score == pytest.approx(1.0)

    async def test_utterances_are_heard_one_by_one_even_if_nobody_waited(
        self, alice: Phone, bob: Phone
    ) -> None:
        outbound, inbound = await connect(alice, bob)
        first, second = noise(0.4, 1), noise(0.6, 2)
        # The stream's place on the clock settles in its first second (dev/phone/media.py).
        lead, gap = np.zeros(SAMPLE_RATE, np.int16), np.zeros(SAMPLE_RATE // 2, np.int16)
        await outbound.play(np.concatenate([lead, first, gap, second]))
        heard = [await inbound.listen(WAIT, end_silence_ms=300) for _ in range(2)]
        assert [round(h.end_ms - h.start_ms, -2) for h in heard] == [400, 600]
        assert listen.find(second[800:4000], heard[1].pcm).score > 0.9
        again = await inbound.listen(WAIT, end_silence_ms=300, since_ms=0)
        # The stream may still have moved on the clock by a few frames.
        assert again.start_ms == pytest.approx(heard[0].start_ms, abs=100), "the first one again"
        # Its middle: what was taken for its beginning may lie a little before it.
        assert listen.find(first[800:2400], again.pcm).score > 0.9
        with pytest.raises(TimeoutError):
            await inbound.listen(timeout=0.1, since_ms=heard[1].end_ms)

    async def test_speech_is_understood_at_the_other_end(self, alice: Phone, bob: Phone) -> None:
        outbound, inbound = await connect(alice, bob)
        phrases = ["I would like to book a table", "please cancel my order", "what time is it"]
        _, heard = await asyncio.gather(
            outbound.say("please cancel my order", voice=CALLER_VOICE), inbound.listen(WAIT)
        )
        recognizer = Recognizer(phrases)
        recognition = await asyncio.to_thread(recognizer.recognize, heard.pcm, SAMPLE_RATE)
        assert recognition.text == "please cancel my order"

    async def test_the_wav_has_this_phone_left_and_the_far_end_right(
        self, alice: Phone, bob: Phone, tmp_path: Path
    ) -> None:
        outbound, inbound = await connect(alice, bob)
        ours, theirs = noise(0.5, 1), noise(0.5, 2)
        await outbound.play(ours)
        await inbound.play(theirs)
        await outbound.listen(WAIT, end_silence_ms=200)
        await outbound.hangup()
        await outbound.ended(WAIT)
        path = tmp_path / "call.wav"
        outbound.save(path)
        with wave.open(str(path)) as file:
            assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (2, 8000, 2)
            data = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
        left, right = data[:, 0], data[:, 1]
        said, heard = listen.find(ours, left), listen.find(theirs, right)
        assert min(said.score, heard.score) > 0.99
        assert heard.offset >= said.offset + len(ours)
        assert listen.find(ours, right).score < 0.2


class TestHold:
    @pytest.mark.parametrize("called_side_holds", [True, False])
    async def test_the_far_end_is_told_and_talks_on_afterwards(
        self, alice: Phone, bob: Phone, called_side_holds: bool
    ) -> None:
        outbound, inbound = await connect(alice, bob)
        await settled(outbound, inbound)
        holder, held = (inbound, outbound) if called_side_holds else (outbound, inbound)
        await holder.hold()
        await asyncio.wait_for(held.media.wait_for(lambda: held.handset.remote_on_hold), WAIT)
        await holder.resume()
        await asyncio.wait_for(held.media.wait_for(lambda: not held.handset.remote_on_hold), WAIT)
        await asyncio.wait_for(holder.play(noise(0.5, 1)), WAIT)
        heard = await held.listen(WAIT, end_silence_ms=300)
        assert heard.end_ms - heard.start_ms == pytest.approx(500, abs=60)
