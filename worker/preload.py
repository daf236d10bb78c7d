"""Imported once in the process that job processes are forked from, so that all share it.

Beside the worker itself: what the libraries import only when it is first used, which
would be in a call (the first answer came about 200 ms later). livekit-agents would also
load both of its local models here; the turn detector's weights (250 MB) only when they
are used, see ``__main__``.
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
# Names that are imported when they are asked for.
from anyio import connect_tcp, create_memory_object_stream  # noqa: E402, F401
from livekit.agents import llm, tokenize  # noqa: E402
from openai.pagination import AsyncPage  # noqa: E402
from openai.types import Model  # noqa: E402
from openai.types.chat import ChatCompletionChunk  # noqa: E402

from worker.voice.providers import tls_context  # noqa: E402

# Made when first used, and kept: the TLS settings of the jobs' HTTP sessions (30 ms of CPU each:
# before the greeting, and before a new process can take a call), the patterns that words are
# hyphenated by (40 ms as the greeting begins to play) and what sentences end with (3 ms), the
# types of OpenAI's answers (8 ms, most of them in the first turn) and of a chat's items.
make_tls_context()
tls_context()
tokenize.basic.hyphenate_word("greeting")
tokenize.blingfire.SentenceTokenizer().tokenize("A greeting. A question?")
AsyncPage[Model].construct(data=[{"id": "model"}])
llm.ChatMessage(role="system", content=["Greet"])
llm.AgentConfigUpdate(instructions="Greet")
ChatCompletionChunk.construct(choices=[{"index": 0, "delta": {"content": "A"}}], usage={})

livekit.local_inference.init_vad()
