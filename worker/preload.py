"""Modules loaded once in the process that job processes are forked from, so that all share them.

Besides the worker itself, these are modules that libraries import on first use. That would be
during a call, and delayed the first answer by about 200 ms. livekit-agents would also load both
of its local models here; ``__main__`` lets it load the turn detector's weights (250 MB) only
where they are used.
"""

from __future__ import annotations

import importlib

import livekit.local_inference

import worker.entrypoint  # noqa: F401
from worker._private import LOADED_WHEN_USED, make_tls_context

_USED_LATER = (
    *LOADED_WHEN_USED,
    "anyio.streams.memory",
    "anyio.streams.stapled",
    "livekit.agents.llm.async_toolset",
    "livekit.agents.voice.report",
    "numpy.fft",
    "openai.resources.chat.chat",
    "openai.resources.chat.completions.completions",
    "openai.resources.chat.completions.messages",
    "openai.resources.models",
    "worker.tools.mcp",
)

for name in _USED_LATER:
    importlib.import_module(name)
# These packages import a name only when it is accessed.
from anyio import connect_tcp, create_memory_object_stream  # noqa: E402, F401
from livekit.agents import llm, tokenize  # noqa: E402
from openai.pagination import AsyncPage  # noqa: E402
from openai.types import Model  # noqa: E402
from openai.types.chat import ChatCompletionChunk  # noqa: E402

from worker.voice.providers import tls_context  # noqa: E402

# Objects that libraries build on first use and cache: the TLS contexts of the jobs' HTTP sessions
# (30 ms of CPU each, before the greeting and before a new process can take a call), the hyphenation
# patterns (40 ms when the greeting begins to play), the sentence tokenizer (3 ms), and the types of
# OpenAI's responses (8 ms, most of it in the first turn) and of a chat's items.
make_tls_context()
tls_context()
tokenize.basic.hyphenate_word("greeting")
tokenize.blingfire.SentenceTokenizer().tokenize("A greeting. A question?")
AsyncPage[Model].construct(data=[{"id": "model"}])
llm.ChatMessage(role="system", content=["Greet"])
llm.AgentConfigUpdate(instructions="Greet")
ChatCompletionChunk.construct(choices=[{"index": 0, "delta": {"content": "A"}}], usage={})

livekit.local_inference.init_vad()
