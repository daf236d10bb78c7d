"""Shared by the tests of the provider servers: a server's control document, and clients of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import numpy as np
from livekit.agents import APIConnectOptions, function_tool, llm
from livekit.plugins import openai

from core.audio import Pcm
from dev.providers import Control, Deepgram, OpenAI, Providers, Rule, Script, ToolCall
from dev.speech import CALLER_VOICE, synthesize

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


def serve() -> Providers:
    """Return a server that accepts only these keys."""
    return Providers(
        fresh(),
        api_keys={
            "deepgram": KEYS["deepgram"],
            "openai": KEYS["openai"],
            "cartesia": KEYS["cartesia"],
        },
    )


def utterances(*phrases: str, rate: int = 16000) -> Pcm:
    silence = np.zeros(rate // 2, np.int16)
    parts = [silence]
    for phrase in phrases:
        parts += [synthesize(phrase, CALLER_VOICE, rate).pcm, silence]
    return np.concatenate(parts)


class RawListen:
    """The raw WebSocket of a listen request."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        self.socket = socket

    async def next(self, *wanted: str) -> dict[str, Any]:
        """Return the next message of one of the types, or of any if none is given."""
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
