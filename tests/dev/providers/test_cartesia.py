"""Cartesia's protocol, tested with the real plugin and with raw messages."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import aiohttp
import numpy as np
import pytest
from livekit import rtc
from livekit.agents import (
    APIConnectOptions,
    APIError,
    APIStatusError,
    APITimeoutError,
    tts,
)
from livekit.plugins import cartesia

from core.audio import Pcm, ulaw_decode
from dev.providers import Cartesia, Fault, Pace, Providers
from dev.speech import AGENT_VOICE, Recognizer, normalize, synthesize
from tests.support.provider_rig import (
    KEYS,
    ONCE,
    REPLIES,
)

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]


def voice(
    providers: Providers, http: aiohttp.ClientSession, key: str = KEYS["cartesia"]
) -> cartesia.TTS:
    return cartesia.TTS(api_key=key, base_url=providers.cartesia_base_url, http_session=http)


def samples(frames: list[rtc.AudioFrame]) -> Pcm:
    return np.concatenate([np.frombuffer(frame.data, np.int16) for frame in frames])


async def speak(
    plugin: tts.TTS[Any], text: str, options: APIConnectOptions = ONCE
) -> tuple[Pcm, list[Any]]:
    """Return the audio, and the words with their times."""
    frames, words = [], []
    async with plugin.stream(conn_options=options) as stream:
        stream.push_text(text)
        stream.end_input()
        async for audio in stream:
            frames.append(audio.frame)
            words += audio.frame.userdata.get("lk.timed_transcripts", [])
    return samples(frames), words


def request(context_id: str, text: str, **options: Any) -> dict[str, Any]:
    return {
        "model_id": "sonic-3",
        "voice": {"mode": "id", "id": "any"},
        "output_format": {"container": "raw", "encoding": "pcm_s16le", "sample_rate": 16000},
        "language": "en",
        "context_id": context_id,
        "transcript": text,
        "continue": False,
        **options,
    }


def connect(
    providers: Providers, http: aiohttp.ClientSession
) -> aiohttp.client._WSRequestContextManager:
    url = f"{providers.cartesia_base_url}/tts/websocket?cartesia_version=2025-04-16"
    return http.ws_connect(url, headers={"X-API-Key": KEYS["cartesia"]})


async def collect(
    socket: aiohttp.ClientWebSocketResponse[bool], contexts: set[str]
) -> dict[str, list[dict[str, Any]]]:
    """Return all messages by context, once each context is done."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contexts}
    waiting = set(contexts)
    async with asyncio.timeout(20):
        while waiting:
            message = json.loads(await socket.receive_str())
            found[message["context_id"]].append(message)
            if message["done"]:
                waiting.discard(message["context_id"])
    return found


def audio_of(messages: list[dict[str, Any]]) -> bytes:
    return b"".join(base64.b64decode(m["data"]) for m in messages if m["type"] == "chunk")


async def test_the_plugin_speaks_and_its_words_are_timed(
    providers: Providers, http: aiohttp.ClientSession
) -> None:
    async with voice(providers, http) as plugin:
        pcm, words = await speak(plugin, " ".join(REPLIES))
    heard = await asyncio.to_thread(Recognizer(REPLIES).recognize, pcm, 24000)
    assert heard.text == " ".join(REPLIES)
    assert "".join(words).split() == " ".join(REPLIES).split()
    times = [word.start_time for word in words]
    assert times == sorted(times)
    # The recogniser hears each word at the time that its timestamp says.
    for word, found in zip(words, heard.words, strict=True):
        assert normalize(str(word)) == found.word
        assert word.start_time == pytest.approx(found.start_ms / 1000, abs=0.15)


async def test_bytes_are_the_same_voice(providers: Providers, http: aiohttp.ClientSession) -> None:
    async with voice(providers, http) as plugin:
        async with plugin.synthesize(REPLIES[1], conn_options=ONCE) as stream:
            pcm = samples([audio.frame async for audio in stream])
    expected = synthesize(REPLIES[1], AGENT_VOICE, 24000).pcm
    assert np.array_equal(pcm[: len(expected)], expected)


async def test_contexts_share_a_socket_and_keep_apart(
    providers: Providers, http: aiohttp.ClientSession
) -> None:
    providers.control.cartesia = Cartesia(first_byte_ms=100, speed=20, sentence_gap_ms=250)
    async with connect(providers, http) as socket:
        await socket.send_json(request("a", REPLIES[0] + " ", **{"continue": True}))
        await socket.send_json(request("b", REPLIES[1], add_timestamps=True))
        await socket.send_json(
            request("a", "Goodbye. ", flush=True, add_timestamps=True, **{"continue": True})
        )
        await socket.send_json(request("a", " "))
        found = await collect(socket, {"a", "b"})
    first, last = (synthesize(text, AGENT_VOICE, 16000) for text in (REPLIES[0], "Goodbye."))
    gap = np.zeros(4000, np.int16)
    expected = np.concatenate([first.pcm, gap, last.pcm])
    assert np.frombuffer(audio_of(found["a"]), "<i2").tolist() == expected.tolist()
    assert [m["type"] for m in found["a"]][-2:] == ["flush_done", "done"]
    assert not any(m["type"] == "timestamps" for m in found["a"])  # as its first request asked
    (stamps,) = [m["word_timestamps"] for m in found["b"] if m["type"] == "timestamps"]
    assert stamps["words"] == REPLIES[1].split()
    assert all(start < end for start, end in zip(stamps["start"], stamps["end"], strict=True))


async def test_a_cancelled_context_falls_silent(
    providers: Providers, http: aiohttp.ClientSession
) -> None:
    providers.control.cartesia = Cartesia(speed=1)
    async with connect(providers, http) as socket:
        await socket.send_json(request("a", " ".join(REPLIES)))
        assert json.loads(await socket.receive_str())["context_id"] == "a"
        await socket.send_json({"context_id": "a", "cancel": True})
        await socket.send_json(request("b", "Hello."))
        contexts: list[tuple[str, bool]] = []
        async with asyncio.timeout(20):
            while not contexts or contexts[-1] != ("b", True):
                message = json.loads(await socket.receive_str())
                contexts.append((message["context_id"], message["done"]))
    assert ("a", True) not in contexts


async def test_telephone_audio_is_spoken(providers: Providers, http: aiohttp.ClientSession) -> None:
    output = {"container": "raw", "encoding": "pcm_mulaw", "sample_rate": 8000}
    async with connect(providers, http) as socket:
        await socket.send_json(request("a", REPLIES[1], output_format=output))
        found = await collect(socket, {"a"})
    spoken = ulaw_decode(audio_of(found["a"]))
    heard = await asyncio.to_thread(Recognizer(REPLIES).recognize, spoken, 8000)
    assert heard.text == REPLIES[1]


async def test_what_cartesia_refuses(providers: Providers, http: aiohttp.ClientSession) -> None:
    async with voice(providers, http, "wrong") as plugin:
        with pytest.raises(APIStatusError) as refused:
            await speak(plugin, "Hello.")
        assert refused.value.status_code == 401
    providers.control.cartesia.voices["broken"] = providers.control.cartesia.voices[
        "default"
    ].model_copy(update={"name": "xx-none"})
    async with connect(providers, http) as socket:
        for context_id, wrong in (
            ("a", {"output_format": {"container": "mp3"}}),
            ("b", {"voice": {"mode": "id", "id": "broken"}}),
        ):
            await socket.send_json(request(context_id, "Hello.", **wrong))
            message = json.loads(await socket.receive_str())
            assert message["type"] == "error" and message["done"]
            assert message["status_code"] == 400
        await socket.send_json(request("c", "Hello."))
        assert audio_of((await collect(socket, {"c"}))["c"])


async def test_cartesia_faults(providers: Providers, http: aiohttp.ClientSession) -> None:
    settings = providers.control.cartesia
    async with voice(providers, http) as plugin:
        settings.faults = [Fault(kind="rate_limit")]
        with pytest.raises(APIStatusError) as limited:
            await speak(plugin, REPLIES[0])
        assert limited.value.status_code == 429
        pcm, _ = await speak(plugin, REPLIES[0])
        # The socket is open now, so the status comes as a message on it.
        settings.faults = [Fault(kind="status", status=503)]
        with pytest.raises(APIError):
            await speak(plugin, REPLIES[0])
        settings.faults = [Fault(kind="hang", after=2)]
        with pytest.raises(APITimeoutError):
            await speak(plugin, REPLIES[0], APIConnectOptions(max_retry=0, timeout=0.3))
        for kind in ("drop", "malformed"):
            settings.faults = [Fault.model_validate({"kind": kind, "after": 2})]
            with pytest.raises(APIError):
                await speak(plugin, REPLIES[0])
        again, _ = await speak(plugin, REPLIES[0])
        assert len(again) == len(pcm)


async def test_audio_waits_for_its_time(providers: Providers, http: aiohttp.ClientSession) -> None:
    providers.control.cartesia = Cartesia(first_byte_ms=150, speed=10)
    length_s = synthesize(REPLIES[1], AGENT_VOICE, 16000).duration_ms / 1000
    async with connect(providers, http) as socket:
        started = time.monotonic()
        await socket.send_json(request("a", REPLIES[1]))
        await socket.receive_str()
        assert time.monotonic() - started >= 0.15
        await collect(socket, {"a"})
        assert time.monotonic() - started >= 0.15 + (length_s - 0.1) / 10


async def test_a_text_may_have_a_pace_of_its_own(
    providers: Providers, http: aiohttp.ClientSession
) -> None:
    providers.control.cartesia = Cartesia(paces={REPLIES[1]: Pace(chunk_ms=500)})
    async with connect(providers, http) as socket:
        await socket.send_json(request("a", REPLIES[0]))
        await socket.send_json(request("b", REPLIES[1] + " "))
        found = await collect(socket, {"a", "b"})
    first = [len(base64.b64decode(found[each][0]["data"])) for each in "ab"]
    assert first == [50 * 16 * 2, 500 * 16 * 2]
