"""Deepgram's protocol, tested with the real plugin and with raw messages."""

from __future__ import annotations

import json
import time

import aiohttp
import numpy as np
import pytest
from livekit import rtc
from livekit.agents import (
    APIConnectOptions,
    APIStatusError,
    stt,
)
from livekit.plugins import deepgram

from core.audio import Pcm, ulaw_encode
from dev.providers import Fault, Providers
from dev.speech import CALLER_VOICE, normalize, synthesize
from tests.support.provider_rig import (
    KEYS,
    ONCE,
    PHRASES,
    RawListen,
    listen,
    transcript,
    utterances,
)

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]


async def transcribe(
    providers: Providers,
    http: aiohttp.ClientSession,
    pcm: Pcm,
    options: APIConnectOptions = ONCE,
    key: str = KEYS["deepgram"],
) -> list[stt.SpeechEvent]:
    """Return the plugin's events for the audio, without usage reports."""
    plugin = deepgram.STT(
        api_key=key, base_url=providers.deepgram_base_url, http_session=http, endpointing_ms=200
    )
    async with plugin.stream(conn_options=options) as stream:
        for start in range(0, len(pcm), 160):
            piece = pcm[start : start + 160]
            stream.push_frame(rtc.AudioFrame(piece.tobytes(), 16000, 1, len(piece)))
        stream.end_input()
        return [
            event
            async for event in stream
            if event.type is not stt.SpeechEventType.RECOGNITION_USAGE
        ]


def finals(events: list[stt.SpeechEvent]) -> list[str]:
    return [
        event.alternatives[0].text
        for event in events
        if event.type is stt.SpeechEventType.FINAL_TRANSCRIPT
    ]


async def test_the_plugin_hears_what_was_said_and_when(
    providers: Providers, http: aiohttp.ClientSession
) -> None:
    pcm = utterances(*PHRASES)
    events = await transcribe(providers, http, pcm)
    assert normalize(" ".join(finals(events))) == normalize(" ".join(PHRASES))
    kinds = [event.type for event in events]
    assert kinds[0] is stt.SpeechEventType.START_OF_SPEECH
    assert kinds[-1] is stt.SpeechEventType.END_OF_SPEECH
    # The second phrase has no pause, so its words have the times at which they were spoken.
    alternative = next(
        event.alternatives[0]
        for event in events
        if event.alternatives and event.alternatives[0].text == PHRASES[1]
    )
    first = synthesize(PHRASES[0], CALLER_VOICE, 16000)
    speech = synthesize(PHRASES[1], CALLER_VOICE, 16000)
    origin_s = 1.0 + len(first.pcm) / 16000
    assert alternative.words is not None and alternative.confidence > 0.5
    assert [str(word) for word in alternative.words] == [word.word for word in speech.words]
    for heard, true in zip(alternative.words, speech.words, strict=True):
        assert heard.start_time == pytest.approx(origin_s + true.start_ms / 1000, abs=0.12)
        assert heard.end_time == pytest.approx(origin_s + true.end_ms / 1000, abs=0.12)


async def test_what_is_none_of_the_phrases_is_an_empty_transcript(
    providers: Providers, http: aiohttp.ClientSession
) -> None:
    pcm = utterances("Elephants never forget their way home")
    async with listen(providers, http) as socket:
        await socket.send_bytes(pcm.tobytes())
        final = await RawListen(socket).final()
    assert transcript(final) == "" and final["channel"]["alternatives"][0]["words"] == []
    assert final["speech_final"]


async def test_telephone_audio_is_heard_and_partial_results_come_while_it_lasts(
    providers: Providers, http: aiohttp.ClientSession
) -> None:
    audio = ulaw_encode(utterances(PHRASES[1], rate=8000))
    query: dict[str, str | int] = {"encoding": "mulaw", "sample_rate": 8000, "punctuate": "true"}
    async with listen(
        providers, http, interim_results="true", vad_events="true", **query
    ) as socket:
        raw = RawListen(socket)
        # Late enough for more than one partial result: an early one may have no words yet.
        middle = len(audio) * 3 // 4
        await socket.send_bytes(audio[:middle])
        started = await raw.next()
        assert started["type"] == "SpeechStarted"
        assert started["timestamp"] == pytest.approx(0.5, abs=0.05)
        interim = await raw.next()
        assert interim["type"] == "Results"
        assert not interim["is_final"] and not interim["speech_final"]
        assert transcript(interim)
        assert normalize(PHRASES[1]).startswith(normalize(transcript(interim)))
        await socket.send_bytes(audio[middle:])
        assert transcript(await raw.final()) == PHRASES[1]


async def test_formatting_and_events_come_only_when_asked_for(
    providers: Providers, http: aiohttp.ClientSession
) -> None:
    async with listen(providers, http, endpointing="false") as socket:
        raw = RawListen(socket)
        await socket.send_bytes(utterances(PHRASES[2]).tobytes())
        message = await raw.next()
        assert message["type"] == "Results" and message["is_final"]
        assert not message["speech_final"]
        assert transcript(message) == "my name is alice johnson"
        assert "punctuated_word" not in message["channel"]["alternatives"][0]["words"][0]


async def test_finalize_keepalive_and_close(
    providers: Providers, http: aiohttp.ClientSession
) -> None:
    async with listen(providers, http) as socket:
        raw = RawListen(socket)
        await socket.send_json({"type": "KeepAlive"})
        await socket.send_json({"type": "Finalize"})
        empty = await raw.next()
        assert transcript(empty) == "" and empty["from_finalize"] and empty["is_final"]
        # The caller is still "speaking": no silence after the last word.
        pcm = np.concatenate(
            [np.zeros(8000, np.int16), synthesize(PHRASES[2], CALLER_VOICE, 16000).pcm]
        )
        await socket.send_bytes(pcm.tobytes())
        await socket.send_json({"type": "Finalize"})
        final = await raw.final()
        assert transcript(final) == "my name is alice johnson" and final["from_finalize"]
        await socket.send_json({"type": "CloseStream"})
        metadata = await raw.next()
        assert metadata["type"] == "Metadata"
        assert metadata["request_id"] == final["metadata"]["request_id"]
        assert metadata["duration"] == pytest.approx(len(pcm) / 16000, abs=0.02)
        assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 1000


async def test_an_utterance_end_follows_its_final(
    providers: Providers, http: aiohttp.ClientSession
) -> None:
    query: dict[str, str | int] = {"interim_results": "true", "utterance_end_ms": 1000}
    async with listen(providers, http, **query) as socket:
        raw = RawListen(socket)
        pcm = utterances(PHRASES[2])
        await socket.send_bytes(np.concatenate([pcm, np.zeros(16000, np.int16)]).tobytes())
        await raw.final()
        end = await raw.next()
        assert end["type"] == "UtteranceEnd"
        assert end["last_word_end"] == pytest.approx(len(pcm) / 16000 - 0.5, abs=0.06)


async def test_a_message_of_another_protocol_closes_the_stream(
    providers: Providers, http: aiohttp.ClientSession
) -> None:
    async with listen(providers, http) as socket:
        await socket.send_str("not json")
        assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 1008


async def test_bad_queries_and_keys_are_refused(
    providers: Providers, http: aiohttp.ClientSession
) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await listen(providers, http, encoding="opus")
    assert refused.value.status == 400
    with pytest.raises(APIStatusError) as unauthorized:
        await transcribe(providers, http, utterances(PHRASES[0]), key="wrong")
    assert unauthorized.value.status_code == 401


async def test_a_final_waits_for_its_delay(
    providers: Providers, http: aiohttp.ClientSession
) -> None:
    providers.control.deepgram.final_delay_ms = 400
    async with listen(providers, http) as socket:
        raw = RawListen(socket)
        started = time.monotonic()
        await socket.send_bytes(utterances(PHRASES[2]).tobytes())
        final = await raw.final()
        assert time.monotonic() - started >= 0.4
    entry = next(e for e in reversed(providers.log("deepgram")) if e["event"] == "final")
    assert entry["request_id"] == final["metadata"]["request_id"]
    assert entry["text"] == PHRASES[2] and entry["late_ms"] >= 0


async def test_deepgram_faults(providers: Providers, http: aiohttp.ClientSession) -> None:
    pcm = utterances(PHRASES[2])
    providers.control.deepgram.faults = [Fault(kind="status", status=503)]
    with pytest.raises(APIStatusError) as failed:
        await transcribe(providers, http, pcm)
    assert failed.value.status_code == 503

    providers.control.deepgram.faults = [Fault(kind="malformed")]
    async with listen(providers, http) as socket:
        await socket.send_bytes(pcm.tobytes())
        with pytest.raises(ValueError):
            json.loads(await socket.receive_str())
        await socket.send_bytes(pcm.tobytes())
        assert transcript(await RawListen(socket).final()) == "my name is alice johnson"

    providers.control.deepgram.faults = [Fault(kind="drop")]
    async with listen(providers, http) as socket:
        await socket.send_bytes(pcm.tobytes())
        message = await socket.receive(timeout=20)
        assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)

    providers.control.deepgram.faults = [Fault(kind="hang")]
    async with listen(providers, http) as socket:
        seen = len(providers.log("deepgram"))
        await socket.send_bytes(pcm.tobytes())
        await providers.record.wait_for(
            lambda e: e["event"] == "fault" and e in providers.log("deepgram")[seen:], 20
        )
        await socket.send_json({"type": "Finalize"})
        with pytest.raises(TimeoutError):
            await socket.receive(timeout=0.3)
    assert providers.control.deepgram.faults == []
