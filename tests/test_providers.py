"""The provider servers, met by the real plugins and by raw messages."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
from livekit import rtc
from livekit.agents import (
    APIConnectionError,
    APIConnectOptions,
    APIError,
    APIStatusError,
    APITimeoutError,
    function_tool,
    llm,
    stt,
    tts,
)
from livekit.plugins import cartesia, deepgram, openai

from core.audio import Pcm, ulaw_decode, ulaw_encode
from dev.providers import (
    Cartesia,
    Control,
    Deepgram,
    Fault,
    OpenAI,
    Providers,
    Rule,
    Script,
    ToolCall,
)
from dev.speech import AGENT_VOICE, CALLER_VOICE, Recognizer, normalize, synthesize

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="module")]

KEYS = {"deepgram": "dg-secret-key", "openai": "oa-secret-key", "cartesia": "ca-secret-key"}
PHRASES = [
    "Hello, who is this?",
    "I would like to book a table for two people.",
    "My name is Alice Johnson.",
]
REPLIES = ["This is the front desk, how can I help you today?", "We open at nine in the morning."]
SCRIPT = Script(
    rules=[
        Rule(equals="Hello, who is this?", reply=REPLIES[0]),
        Rule(keywords=["book"], call=ToolCall(name="book_table", arguments={"people": 2})),
        Rule(role="tool", reply="Your table is number $table."),
    ]
)
ONCE = APIConnectOptions(max_retry=0, timeout=10)


def fresh() -> Control:
    return Control(deepgram=Deepgram(phrases=PHRASES), openai=OpenAI(scripts={"default": SCRIPT}))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server() -> AsyncIterator[Providers]:
    async with Providers(
        fresh(),
        api_keys={
            "deepgram": KEYS["deepgram"],
            "openai": KEYS["openai"],
            "cartesia": KEYS["cartesia"],
        },
    ) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def providers(server: Providers) -> Providers:
    await server.set_control(fresh())
    return server


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


# --- Deepgram


def utterances(*phrases: str, rate: int = 16000) -> Pcm:
    silence = np.zeros(rate // 2, np.int16)
    parts = [silence]
    for phrase in phrases:
        parts += [synthesize(phrase, CALLER_VOICE, rate).pcm, silence]
    return np.concatenate(parts)


async def transcribe(
    providers: Providers,
    http: aiohttp.ClientSession,
    pcm: Pcm,
    options: APIConnectOptions = ONCE,
    key: str = KEYS["deepgram"],
) -> list[stt.SpeechEvent]:
    """Everything the plugin says to the audio, usage reports aside."""
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


class RawListen:
    """The WebSocket itself."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        self.socket = socket

    async def next(self, *wanted: str) -> dict[str, Any]:
        """The next message of one of the types (of any, if none is given)."""
        async with asyncio.timeout(20):
            while True:
                message = json.loads(await self.socket.receive_str())
                assert isinstance(message, dict)
                if not wanted or message["type"] in wanted:
                    return message

    async def final(self) -> dict[str, Any]:
        while True:
            message = await self.next("Results")
            if message["is_final"]:
                return message


def listen(
    providers: Providers, http: aiohttp.ClientSession, **query: str | int
) -> aiohttp.client._WSRequestContextManager:
    given: dict[str, str | int] = {"encoding": "linear16", "sample_rate": 16000, **query}
    return http.ws_connect(
        providers.deepgram_base_url,
        params=given,
        headers={"Authorization": f"Token {KEYS['deepgram']}"},
    )


def transcript(message: dict[str, Any]) -> str:
    return str(message["channel"]["alternatives"][0]["transcript"])


async def test_the_plugin_hears_what_was_said_and_when(
    providers: Providers, http: aiohttp.ClientSession
) -> None:
    pcm = utterances(*PHRASES)
    events = await transcribe(providers, http, pcm)
    assert normalize(" ".join(finals(events))) == normalize(" ".join(PHRASES))
    kinds = [event.type for event in events]
    assert kinds[0] is stt.SpeechEventType.START_OF_SPEECH
    assert kinds[-1] is stt.SpeechEventType.END_OF_SPEECH
    # The second phrase has no pause in it: its words are where they were spoken.
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
        middle = len(audio) // 2
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


# --- OpenAI


@function_tool
async def book_table(people: int) -> str:
    """Book a table."""
    return json.dumps({"table": people})


def model(providers: Providers, key: str = KEYS["openai"]) -> openai.LLM:
    return openai.LLM(model="gpt-4.1-mini", base_url=providers.openai_base_url, api_key=key)


def said(*texts: str) -> llm.ChatContext:
    context = llm.ChatContext.empty()
    for text in texts:
        context.add_message(role="user", content=text)
    return context


async def chat(
    plugin: llm.LLM[Any], context: llm.ChatContext, options: APIConnectOptions = ONCE
) -> list[llm.ChatChunk]:
    tools: list[llm.Tool] = [book_table]
    async with plugin.chat(chat_ctx=context, tools=tools, conn_options=options) as stream:
        return [chunk async for chunk in stream]


def text_of(chunks: list[llm.ChatChunk]) -> str:
    return "".join(chunk.delta.content or "" for chunk in chunks if chunk.delta)


async def test_the_plugin_streams_the_scripted_reply_with_its_usage(providers: Providers) -> None:
    async with model(providers) as plugin:
        chunks = await chat(plugin, said("hello who is this"))
    assert text_of(chunks) == REPLIES[0]
    assert len([chunk for chunk in chunks if chunk.delta and chunk.delta.content]) > 5
    usage = next(chunk.usage for chunk in chunks if chunk.usage)
    assert (usage.prompt_tokens, usage.completion_tokens) == (4, 11)


async def test_a_tool_is_called_and_its_result_answered(providers: Providers) -> None:
    context = said("Please book something")
    async with model(providers) as plugin:
        chunks = await chat(plugin, context)
        (call,) = [c for chunk in chunks if chunk.delta for c in chunk.delta.tool_calls]
        assert (call.name, json.loads(call.arguments)) == ("book_table", {"people": 2})
        context.insert(
            [
                llm.FunctionCall(call_id=call.call_id, name=call.name, arguments=call.arguments),
                llm.FunctionCallOutput(
                    call_id=call.call_id, name=call.name, output='{"table": 7}', is_error=False
                ),
            ]
        )
        assert text_of(await chat(plugin, context)) == "Your table is number 7."
        assert text_of(await chat(plugin, said("what?"))) == SCRIPT.default


async def test_models_and_whole_answers(providers: Providers, http: aiohttp.ClientSession) -> None:
    headers = {"Authorization": f"Bearer {KEYS['openai']}"}
    async with http.get(f"{providers.openai_base_url}/models", headers=headers) as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["default"]
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello. Who is this?"}]}
    url = f"{providers.openai_base_url}/chat/completions"
    async with http.post(url, headers=headers, json=body) as response:
        answered = await response.json()
    assert answered["choices"][0]["message"]["content"] == REPLIES[0]
    assert answered["choices"][0]["finish_reason"] == "stop"
    async with http.post(url, headers=headers, json={"model": "m", "messages": []}) as response:
        assert response.status == 400
        assert "messages" in (await response.json())["error"]["message"]
    async with http.get(f"{providers.openai_base_url}/models") as response:
        assert response.status == 401


async def test_openai_refuses_a_wrong_key(providers: Providers) -> None:
    async with model(providers, "wrong") as plugin:
        with pytest.raises(APIStatusError) as refused:
            await chat(plugin, said("hello"))
    assert refused.value.status_code == 401
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["code"] == "invalid_api_key"


async def test_tokens_wait_for_their_time(providers: Providers) -> None:
    providers.control.openai.first_token_ms = 200
    providers.control.openai.token_ms = 20
    started = time.monotonic()
    arrivals: list[float] = []
    async with model(providers) as plugin:
        async with plugin.chat(chat_ctx=said(PHRASES[0]), conn_options=ONCE) as stream:
            async for chunk in stream:
                if chunk.delta and chunk.delta.content:
                    arrivals.append(time.monotonic() - started)
    assert arrivals[0] >= 0.2 and arrivals[-1] >= 0.2 + 10 * 0.02
    entry = next(e for e in reversed(providers.log("openai")) if e["event"] == "answer")
    assert 0 <= entry["first_token_late_ms"] <= entry["late_ms"]


async def test_openai_faults(providers: Providers, http: aiohttp.ClientSession) -> None:
    faults = providers.control.openai
    headers = {"Authorization": f"Bearer {KEYS['openai']}"}
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
    faults.faults = [Fault(kind="rate_limit", retry_after_s=7)]
    url = f"{providers.openai_base_url}/chat/completions"
    async with http.post(url, headers=headers, json=body) as response:
        assert response.status == 429 and response.headers["Retry-After"] == "7"
        assert (await response.json())["error"]["code"] == "rate_limit_exceeded"

    async with model(providers) as plugin:
        faults.faults = [Fault(kind="status", status=500, times=2)]
        for _ in range(2):
            with pytest.raises(APIStatusError):
                await chat(plugin, said(PHRASES[0]))
        assert text_of(await chat(plugin, said(PHRASES[0]))) == REPLIES[0]

        for kind, error in (("drop", APIConnectionError), ("malformed", APIConnectionError)):
            faults.faults = [Fault.model_validate({"kind": kind, "after": 3})]
            with pytest.raises(error):
                await chat(plugin, said(PHRASES[0]))

        for after in (0, 3):
            faults.faults = [Fault(kind="hang", after=after)]
            with pytest.raises(APITimeoutError):
                await chat(plugin, said(PHRASES[0]), APIConnectOptions(max_retry=0, timeout=0.3))


# --- Cartesia


def voice(
    providers: Providers, http: aiohttp.ClientSession, key: str = KEYS["cartesia"]
) -> cartesia.TTS:
    return cartesia.TTS(api_key=key, base_url=providers.cartesia_base_url, http_session=http)


def samples(frames: list[rtc.AudioFrame]) -> Pcm:
    return np.concatenate([np.frombuffer(frame.data, np.int16) for frame in frames])


async def speak(
    plugin: tts.TTS[Any], text: str, options: APIConnectOptions = ONCE
) -> tuple[Pcm, list[Any]]:
    """The audio, and the words with their times."""
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
    """All messages by context, until each context is done."""
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
    # Where the timestamps say there is a word there is one, to the ear too.
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
    assert not any(m["type"] == "timestamps" for m in found["a"])  # as its first request said
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
        # The socket is open now: the status comes as a message on it.
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


# --- control


async def test_the_control_document_is_read_replaced_and_patched(
    providers: Providers, http: aiohttp.ClientSession
) -> None:
    url = f"{providers.url}/control"
    async with http.get(url) as response:
        document = await response.json()
    assert document["deepgram"]["phrases"] == PHRASES
    async with http.patch(url, json={"openai": {"first_token_ms": 30}}) as response:
        assert (await response.json())["openai"] == {**document["openai"], "first_token_ms": 30}
    async with http.put(url, json={"deepgram": {"phrases": ["Good evening."]}}) as response:
        assert (await response.json())["openai"]["first_token_ms"] == 0
    async with listen(providers, http, punctuate="true") as socket:
        await socket.send_bytes(utterances("Good evening.").tobytes())
        assert transcript(await RawListen(socket).final()) == "Good evening."
    for body, status in ((b"{", 400), (b"[]", 422), (b'{"openai": {"token_ms": -5}}', 422)):
        async with http.put(url, data=body) as response:
            assert response.status == status
    assert providers.control.deepgram.phrases == ["Good evening."]


async def test_the_log_tells_what_was_seen_and_no_key(
    providers: Providers, http: aiohttp.ClientSession
) -> None:
    before = providers.log()[-1]["seq"] if providers.log() else 0
    async with model(providers) as plugin:
        await chat(plugin, said(PHRASES[0]))
    async with model(providers, "another-wrong-key") as plugin:
        with pytest.raises(APIStatusError):
            await chat(plugin, said(PHRASES[0]))
    url = f"{providers.url}/control/log"
    async with http.get(url, params={"since": before, "provider": "openai"}) as response:
        entries = (await response.json())["entries"]
    assert [entry["event"] for entry in entries] == ["request", "answer", "refused"]
    assert entries[0]["heard"] == PHRASES[0] and entries[0]["reply"] == REPLIES[0]
    async with http.get(url) as response:
        text = await response.text()
    assert not any(key in text for key in (*KEYS.values(), "another-wrong-key"))
    async with http.get(url, params={"since": "x"}) as response:
        assert response.status == 400


async def test_the_command_serves_until_it_is_told_to_stop(http: aiohttp.ClientSession) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dev.providers", "--recognizers", "1", "--llm-first-token-ms", "5",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            line = (await process.stdout.readline()).decode()
            async with http.get(f"{line.split()[-1]}/control") as response:
                assert (await response.json())["openai"]["first_token_ms"] == 5
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
