"""OpenAI's speech and transcription endpoints on the provider server, and their errors."""

from __future__ import annotations

import io
import wave
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from dev.providers import Fault, Providers
from tests.support import provider_rig as rig
from tests.support.provider_rig import KEYS, PHRASES, utterances

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]

KEY = {"Authorization": f"Bearer {KEYS['openai']}"}
SPEECH = {"model": "tts-1", "input": "Hello.", "voice": "ash", "response_format": "pcm"}


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def server() -> AsyncIterator[Providers]:
    async with rig.serve() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def http(server: Providers) -> AsyncIterator[aiohttp.ClientSession]:
    await server.set_control(rig.fresh())
    async with aiohttp.ClientSession(server.openai_base_url + "/", headers=KEY) as session:
        yield session


def wav(rate: int = 16_000, width: int = 2) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(width)
        sound.setframerate(rate)
        sound.writeframes(utterances(PHRASES[0], rate=rate).tobytes())
    return file.getvalue()


def form(data: bytes, model: str = "whisper-1") -> aiohttp.FormData:
    fields = aiohttp.FormData()
    fields.add_field("model", model)
    fields.add_field("file", data, filename="file.wav", content_type="audio/wav")
    return fields


async def test_raw_audio_when_no_events_are_asked_for(http: aiohttp.ClientSession) -> None:
    async with http.post("audio/speech", json=SPEECH) as response:
        assert (response.status, response.content_type) == (200, "audio/pcm")
        assert len(await response.read()) > 24_000 * 2 * 0.2


@pytest.mark.parametrize("change", [{"response_format": "mp3"}, {"input": ""}, {"speed": 9}])
async def test_speech_that_cannot_be(http: aiohttp.ClientSession, change: dict[str, str]) -> None:
    async with http.post("audio/speech", json=SPEECH | change) as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request_error"


async def test_an_utterance_is_heard(http: aiohttp.ClientSession) -> None:
    async with http.post("audio/transcriptions", data=form(wav())) as response:
        assert await response.json() == {"text": PHRASES[0]}


@pytest.mark.parametrize("data", [b"", b"no sound", wav(width=1)])
async def test_what_is_no_sound_is_refused(http: aiohttp.ClientSession, data: bytes) -> None:
    async with http.post("audio/transcriptions", data=form(data)) as response:
        assert response.status == 400


async def test_a_fault_strikes_the_model_it_is_for(
    server: Providers, http: aiohttp.ClientSession
) -> None:
    server.control.openai.faults = [Fault(kind="rate_limit", times=None, model="whisper-1")]
    async with http.post("audio/transcriptions", data=form(wav())) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "1")
    async with http.post("audio/transcriptions", data=form(wav(), "another")) as response:
        assert response.status == 200


async def test_the_key_is_checked(http: aiohttp.ClientSession) -> None:
    for path in ("audio/speech", "audio/transcriptions"):
        async with http.post(path, headers={"Authorization": "Bearer wrong"}) as response:
            assert response.status == 401
