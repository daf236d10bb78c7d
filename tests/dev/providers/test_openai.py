"""OpenAI's protocol, tested with the real plugin and with raw requests."""

from __future__ import annotations

import json
import time

import aiohttp
import pytest
from livekit.agents import (
    APIConnectionError,
    APIConnectOptions,
    APIStatusError,
    APITimeoutError,
    llm,
)

from dev.providers import Fault, Providers, Rule, Script
from tests.support.provider_rig import (
    KEYS,
    ONCE,
    PHRASES,
    REPLIES,
    SCRIPT,
    chat,
    model,
    said,
    text_of,
)

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]


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
    providers.control.openai.first_token_ms = 100
    providers.control.openai.token_ms = 20
    later = Rule(equals=PHRASES[0], reply=REPLIES[0], delay_ms=100)
    providers.control.openai.scripts = {"default": Script(rules=[later])}
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
