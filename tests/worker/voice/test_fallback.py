"""Chains of providers, with the real plugins: when one fails, the next one takes over."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from livekit import rtc
from livekit.agents import (
    APIConnectionError,
    APIConnectOptions,
    APIError,
    inference,
    llm,
    stt,
)
from livekit.agents.utils import http_context
from pydantic import ValidationError

from core.models import AgentConfig
from core.settings import Settings
from dev.providers import Control, Deepgram, Fault, OpenAI, Providers, Script
from dev.stack.environment import GivenSettings
from tests.support.provider_rig import utterances
from worker.line import Rates
from worker.voice.fallback import ATTEMPT_S, STT_OPTIONS, watch
from worker.voice.prepared import PreparedSpeech
from worker.voice.providers import Providers as Plugins
from worker.voice.providers import build_llm, build_llm_client, speed
from worker.voice.stt_chain import SttChain

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]

RATE = 16_000
PHRASE = "What time do you open on Sunday?"
REPLY = "On Sunday we open at five."
ONCE = APIConnectOptions(max_retry=0, timeout=4)
KINDS = ["status", "rate_limit", "drop", "hang"]
CHAINS: dict[str, Any] = {
    "stt": ["deepgram/nova-3", "deepgram/nova-2", "openai/gpt-4o-mini-transcribe"],
    "model": ["openai/first", "openai/second"],
    "tts": ["cartesia/sonic-3", "cartesia/sonic-2", "openai/gpt-4o-mini-tts"],
}


class Timeline:
    def __init__(self) -> None:
        self.posts: list[tuple[str, dict[str, Any]]] = []

    def post(self, type: str, data: dict[str, Any]) -> None:
        self.posts.append((type, data))

    def switches(self) -> list[tuple[str, str, str]]:
        return [
            (data["stage"], data["from"], data["to"])
            for type, data in self.posts
            if type == "provider.switched"
        ]


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def server() -> AsyncIterator[Providers]:
    async with Providers() as running:
        yield running


_made: list[Callable[[], Awaitable[None]]] = []


@pytest_asyncio.fixture(loop_scope="session")
async def providers(server: Providers) -> AsyncIterator[Providers]:
    await server.set_control(
        Control(
            deepgram=Deepgram(phrases=[PHRASE], interim_every_ms=0),
            openai=OpenAI(scripts={"default": Script(default=REPLY)}),
        )
    )
    async with http_context.open():
        yield server
        while _made:
            await _made.pop()()
    # The adapters' cancelled probes log their errors now, not in the middle of a later test.
    gc.collect()


def given(providers: Providers, **changes: Any) -> tuple[AgentConfig, Settings]:
    settings: Settings = GivenSettings(
        deepgram_base_url=providers.deepgram_base_url,
        openai_base_url=providers.openai_base_url,
        cartesia_base_url=providers.cartesia_base_url,
        deepgram_api_key="deepgram-key",
        openai_api_key="openai-key",
        cartesia_api_key="cartesia-key",
    )
    return AgentConfig(name="Chain", **(CHAINS | changes)), settings


def plugins(providers: Providers, **changes: Any) -> Plugins:
    made = Plugins(*given(providers, **changes), Rates(speech=16_000, voice=24_000))
    _made.append(made.aclose)
    return made


def model(
    providers: Providers, timeline: Timeline, *, attempt_s: float = ATTEMPT_S, **changes: Any
) -> llm.LLM[Any]:
    config, settings = given(providers, **changes)
    client = build_llm_client(settings)
    _made.append(client.close)
    return build_llm(config, client, timeline.post, attempt_s=attempt_s)


async def hear(chain: SttChain, *, hangs: bool = False) -> str:
    """Return the transcript of the phrase."""
    pcm = utterances(PHRASE, rate=RATE)
    pcm = np.concatenate([pcm, np.zeros(RATE, np.int16)])
    step = RATE // 50
    async with asyncio.timeout(30), chain.stream() as stream:
        for start in range(0, len(pcm) - step, step):
            frame = pcm[start : start + step].tobytes()
            stream.push_frame(rtc.AudioFrame(frame, RATE, 1, step))
            await asyncio.sleep(0)
        if hangs:
            chain.unheard(1.5)
        async for event in stream:
            if event.type is stt.SpeechEventType.FINAL_TRANSCRIPT:
                return event.alternatives[0].text
    raise AssertionError("nothing was understood")


def ears(providers: Providers, timeline: Timeline, **changes: Any) -> SttChain:
    chain, _ = plugins(providers, **changes).make_stt(inference.VAD(model="silero"))
    assert isinstance(chain, SttChain)
    chain.tell(timeline.post)
    return chain


@pytest.mark.parametrize("kind", KINDS)
async def test_what_one_ear_misses_the_next_one_hears(providers: Providers, kind: Any) -> None:
    providers.control.deepgram.faults = [Fault(kind=kind, times=None, model="nova-3")]
    timeline = Timeline()
    chain = ears(providers, timeline)
    assert await hear(chain, hangs=kind == "hang") == PHRASE
    assert timeline.switches() == [("stt", "deepgram/nova-3", "deepgram/nova-2")]
    (error,) = [data for type, data in timeline.posts if type == "provider.error"]
    assert error["provider"] == "deepgram/nova-3"
    assert error["recoverable"] is True


@pytest.mark.parametrize("kind", ["status", "hang"])
async def test_another_company_hears_it(providers: Providers, kind: Any) -> None:
    providers.control.deepgram.faults = [Fault(kind=kind, times=None)]
    timeline = Timeline()
    names = ["deepgram/nova-3", "openai/gpt-4o-mini-transcribe"]
    chain = ears(providers, timeline, stt=names)
    assert await hear(chain, hangs=kind == "hang") == PHRASE
    assert timeline.switches() == [("stt", *names)]


def failures(timeline: Timeline) -> list[str]:
    """Return who failed, in order, but for the final failure, which the session reports."""
    return [data["provider"] for type, data in timeline.posts if type == "provider.error"]


async def gives_up(ear: stt.STT[Any]) -> list[bool]:
    """Check that it fails; return whether each error that the session gets is recoverable."""
    errors: list[stt.STTError] = []
    ear.on("error", errors.append)
    with pytest.raises(APIError):
        async with asyncio.timeout(30), ear.stream(conn_options=STT_OPTIONS) as stream:
            async for _ in stream:
                pass
    return [error.recoverable for error in errors]


async def test_each_ear_of_a_chain_is_asked_as_often_as_one_alone(providers: Providers) -> None:
    """They are tried in turn; only the last error reaches the session."""
    providers.control.deepgram.faults = [Fault(kind="status", times=None)]
    single, _ = plugins(providers, stt="deepgram/nova-3").make_stt(inference.VAD(model="silero"))
    assert await gives_up(single) == [True, True, True, False]
    names, timeline = CHAINS["stt"][:2], Timeline()
    assert await gives_up(ears(providers, timeline, stt=names)) == [False]
    assert failures(timeline) == (names * 4)[:-1]
    assert [to for _, _, to in timeline.switches()] == (names * 4)[1:]


async def test_when_no_ear_serves_the_last_error_comes_out(providers: Providers) -> None:
    """One of them fails only when there is something to hear."""
    providers.control.deepgram.faults = [Fault(kind="status", times=None)]
    providers.control.openai.faults = [Fault(kind="rate_limit", times=None)]
    timeline = Timeline()
    chain = ears(providers, timeline)
    errors: list[stt.STTError] = []
    chain.on("error", errors.append)
    with pytest.raises(APIError):
        await hear(chain)
    assert [error.recoverable for error in errors] == [False]
    assert [to for _, _, to in timeline.switches()] == (CHAINS["stt"] * 4)[1:]


@pytest.mark.parametrize("kind", ["status", "drop"])
async def test_an_ear_that_comes_back_at_its_last_attempt_is_heard(
    providers: Providers, kind: Any
) -> None:
    """Both STTs of the chain fail three times, then the first one serves again."""
    names = CHAINS["stt"][:2]
    providers.control.deepgram.faults = [
        Fault(kind=kind, times=3, model="nova-3"),
        Fault(kind=kind, times=None, model="nova-2"),
    ]
    timeline = Timeline()
    chain = ears(providers, timeline, stt=names)
    assert await hear(chain) == PHRASE
    assert chain.current.name == names[0]
    assert failures(timeline) == names * 3


async def test_an_ear_that_refuses_is_not_asked_again(providers: Providers) -> None:
    """A wrong key stays wrong: the other STT is retried alone, without a switch to itself."""
    names = CHAINS["stt"][:2]
    providers.control.deepgram.faults = [
        Fault(kind="status", status=401, times=None, model="nova-3"),
        Fault(kind="status", times=3, model="nova-2"),
    ]
    timeline = Timeline()
    chain = ears(providers, timeline, stt=names)
    assert await hear(chain) == PHRASE
    assert failures(timeline) == [names[0], *[names[1]] * 3]
    assert timeline.switches() == [("stt", *names)]
    providers.control.deepgram.faults = [Fault(kind="status", status=401, times=None)]
    timeline = Timeline()
    assert await gives_up(ears(providers, timeline, stt=names)) == [False]
    assert failures(timeline) == names[:1]


async def test_failures_long_past_do_not_count(providers: Providers) -> None:
    """A failure does not count if the connection served for a while, or speech was understood."""
    names = CHAINS["stt"][:2]
    chain = ears(providers, Timeline(), stt=names)
    down, cut = APIConnectionError("down"), STT_OPTIONS.timeout + 1
    for _ in range(20):
        assert chain.failed(down, cut) is not None
    for _ in range(20):
        chain.understood()
        assert chain.failed(down, 0) is not None
        chain.understood()
        assert chain.failed(down, 0) is not None
    waits: list[float | None] = []
    while not waits or waits[-1] is not None:
        waits.append(chain.failed(down, 0))
    assert len(waits) <= 8
    assert all(wait is None or 0 <= wait <= STT_OPTIONS.retry_interval for wait in waits)
    await chain.aclose()


async def test_a_noise_does_not_use_the_chain_up(providers: Providers) -> None:
    timeline = Timeline()
    chain = ears(providers, timeline)
    chain.unheard(0.4)
    assert not chain.stalled.is_set(), "a cough"
    chain.unheard(2.0)
    assert chain.stalled.is_set()
    asked: list[str] = []
    for more in (True, True, False):
        asked.append(chain.current.name)
        assert chain.pass_over() is more
    assert asked == CHAINS["stt"], "nobody heard words in it"
    assert await hear(chain) == PHRASE
    await chain.aclose()


async def chat(chain: llm.LLM[Any]) -> str:
    context = llm.ChatContext.empty()
    context.add_message(role="user", content=PHRASE)
    async with chain.chat(chat_ctx=context, conn_options=ONCE) as stream:
        chunks = [chunk async for chunk in stream]
    return "".join(chunk.delta.content or "" for chunk in chunks if chunk.delta)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_one_model_fails_at_the_next_one_answers(
    providers: Providers, kind: Any
) -> None:
    providers.control.openai.faults = [Fault(kind=kind, times=None, model="first")]
    timeline = Timeline()
    attempt_s = 2.0 if kind == "hang" else ATTEMPT_S  # the others fail at once
    chain = model(providers, timeline, attempt_s=attempt_s)
    assert await chat(chain) == REPLY
    assert timeline.switches() == [("llm", "openai/first", "openai/second")]
    providers.control.openai.faults = []
    async with asyncio.timeout(20):
        while len(timeline.switches()) < 2:  # each turn probes the first one in the background
            assert await chat(chain) == REPLY
    assert timeline.switches()[1] == ("llm", "openai/second", "openai/first")


@pytest.mark.parametrize("kind", KINDS)
async def test_what_one_voice_fails_at_the_next_one_says(providers: Providers, kind: Any) -> None:
    providers.control.cartesia.faults = [Fault(kind=kind, times=None, model="sonic-3")]
    timeline = Timeline()
    chain, parts = plugins(providers, voice="a-voice").make_tts()
    watch("tts", chain, parts, timeline.post)
    speech = PreparedSpeech(REPLY)
    assert await speech.synthesise(chain, ONCE) is None
    assert timeline.switches() == [("tts", "cartesia/sonic-3", "cartesia/sonic-2")]
    assert "".join([word async for word in speech.words()]).strip() == REPLY
    asked = [entry for entry in providers.log("cartesia") if entry["event"] == "context"]
    assert {entry["model"]: entry["voice"] == "a-voice" for entry in asked[-2:]}["sonic-2"] is False
    await chain.aclose()


async def test_another_company_says_it(providers: Providers) -> None:
    providers.control.cartesia.faults = [Fault(kind="status", times=None)]
    timeline = Timeline()
    names = ["cartesia/sonic-3", "openai/gpt-4o-mini-tts"]
    chain, parts = plugins(providers, tts=names, voice_speed=1.2).make_tts()
    watch("tts", chain, parts, timeline.post)
    speech = PreparedSpeech(REPLY)
    assert await speech.synthesise(chain, ONCE) is None
    assert timeline.switches() == [("tts", *names)]
    assert sum([frame.duration async for frame in speech.audio()]) > 0.8
    said = [entry for entry in providers.log("openai") if entry["event"] == "speech"]
    assert (said[-1]["text"].strip(), said[-1]["speed"]) == (REPLY, 1.2)
    await chain.aclose()


async def test_the_first_frame_is_played_before_the_next_is_looked_at(
    providers: Providers,
) -> None:
    voice, _ = plugins(providers, tts="cartesia/sonic-3").make_tts()
    speech = PreparedSpeech(REPLY)
    assert await speech.synthesise(voice, ONCE) is None
    given = 0
    seen: list[int] = []

    async def player() -> None:
        while True:
            seen.append(given)
            await asyncio.sleep(0)

    playing = asyncio.create_task(player())
    async for _ in speech.audio():
        given += 1
    playing.cancel()
    await asyncio.gather(playing, return_exceptions=True)
    assert given > 5 and set(range(1, given)) <= set(seen)
    await voice.aclose()


async def test_one_name_is_the_plugin_itself(providers: Providers) -> None:
    made = plugins(providers, stt="deepgram/nova-3", tts="cartesia/sonic-3")
    engines = (
        made.make_stt(inference.VAD(model="silero"))[0],
        model(providers, Timeline(), model="openai/first"),
        made.make_tts()[0],
    )
    kinds = [type(engine).__module__ for engine in engines]
    assert kinds == [
        "worker.voice.ears",  # Deepgram's
        "livekit.plugins.openai.llm",
        "livekit.plugins.cartesia.tts",
    ]


async def test_a_language_that_nobody_knows_is_passed_on(providers: Providers) -> None:
    made = plugins(providers, language="tlh-Latn", stt="deepgram/nova-3", tts="cartesia/sonic-3")
    voice, _ = made.make_tts()
    speech = PreparedSpeech(REPLY)
    assert await speech.synthesise(voice, ONCE) is None
    asked = [entry for entry in providers.log("cartesia") if entry["event"] == "context"]
    assert asked[-1]["language"] == "tlh"
    ear, _ = made.make_stt(inference.VAD(model="silero"))
    async with asyncio.timeout(20), ear.stream(conn_options=ONCE):
        await providers.record.wait_for(lambda entry: entry.get("language") == "tlh-Latn", 20)
    await voice.aclose()


@pytest.mark.parametrize(("wanted", "spoken"), [(0.5, 0.6), (1.3, 1.3), (2.0, 1.5), (1.0, 1.0)])
async def test_a_voice_speaks_as_fast_as_it_can(
    providers: Providers, wanted: float, spoken: float
) -> None:
    assert speed("cartesia", wanted) == spoken
    lengths = {}
    for value in (1.0, wanted):
        voice, _ = plugins(providers, tts="cartesia/sonic-3", voice_speed=value).make_tts()
        speech = PreparedSpeech(REPLY)
        assert await speech.synthesise(voice, ONCE) is None
        lengths[value] = sum([frame.duration async for frame in speech.audio()])
        await voice.aclose()
    asked = [entry for entry in providers.log("cartesia") if entry["event"] == "context"]
    assert asked[-1]["speed"] == spoken
    assert (lengths[wanted] < lengths[1.0]) is (spoken > 1)
    assert (lengths[wanted] > lengths[1.0]) is (spoken < 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"stt": []},
        {"stt": ["deepgram/a", "deepgram/a"]},
        {"stt": ["deepgram/a", "deepgram/b", "deepgram/c", "deepgram/d"]},
        {"stt": "cartesia/ink"},
        {"stt": ["deepgram/a", "elsewhere/b"]},
        {"tts": ["deepgram/aura"]},
        {"model": ["openai/a b"]},
        {"model": [7]},
    ],
)
async def test_a_chain_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AgentConfig(name="Chain", **changes)
