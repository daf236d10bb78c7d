"""The provider servers as a whole: control document, log and command."""

from __future__ import annotations

import asyncio
import signal
import sys

import aiohttp
import pytest
from livekit.agents import (
    APIStatusError,
)

from dev.providers import Providers
from tests.support.provider_rig import (
    KEYS,
    PHRASES,
    REPLIES,
    RawListen,
    chat,
    listen,
    model,
    said,
    transcript,
    utterances,
)

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]


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
