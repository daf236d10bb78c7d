"""Chains of providers: when one fails, the next one serves the same turn.

LLM and TTS use livekit-agents' own adapters, STT uses ``worker.voice.stt_chain``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from livekit.agents import (
    APIConnectOptions,
    APIStatusError,
    llm,
    stt,
    tts,
)

log = logging.getLogger(__name__)

# Of an STT. Errors count against max_retry only if no transcript comes between them.
STT_OPTIONS = APIConnectOptions(max_retry=3, retry_interval=0.5, timeout=5.0)
ATTEMPT_S = 4.0  # how long a part of a chain may be silent before the next one is asked

Engine = TypeVar("Engine", stt.STT[Any], llm.LLM[Any], tts.TTS[Any])
Post = Callable[[str, dict[str, Any]], object]


@dataclass(frozen=True, slots=True)
class Named(Generic[Engine]):
    """An engine with its ``name`` from the agent's configuration: ``deepgram/nova-3``."""

    name: str
    engine: Engine


def describe(error: object) -> str:
    """Describe an error without the provider's text, which may quote a key or what was said."""
    if isinstance(error, APIStatusError):
        return f"HTTP {error.status_code}"
    return type(error).__name__


def switched(post: Post | None, stage: str, failed: str, to: str, why: str) -> None:
    """Post the failure, and that ``to`` serves now.

    ``to`` may be the failed one, which is asked again. The error is recoverable, because the call
    goes on.
    """
    log.warning("provider failed, the next takes over", extra={"failed": failed, "to": to})
    if post is not None:
        facts = {"stage": stage, "provider": failed, "message": why, "recoverable": True}
        post("provider.error", facts)
        if to != failed:
            post("provider.switched", {"stage": stage, "from": failed, "to": to})


def watch(stage: str, adapter: Any, parts: list[Named[Any]], post: Post) -> None:
    """Post failures and switches of the parts of livekit-agents' ``adapter``."""
    order = [part.name for part in parts]
    names = {id(part.engine): part.name for part in parts}
    reasons: dict[str, str] = {}
    down: set[str] = set()

    def serving() -> str | None:
        return next((name for name in order if name not in down), None)

    def changed(event: Any) -> None:
        name, before = names[id(getattr(event, stage))], serving()
        if not event.available:
            down.add(name)
            if before is not None and (now := serving()) is not None:
                switched(post, stage, name, now, reasons.get(name, "unknown"))
            return
        down.discard(name)
        if before is not None and (now := serving()) != before:
            post("provider.switched", {"stage": stage, "from": before, "to": now})

    def remember(name: str) -> Callable[[Any], None]:
        def failed(event: Any) -> None:
            reasons[name] = describe(event.error)

        return failed

    for part in parts:
        part.engine.on("error", remember(part.name))
    adapter.on(f"{stage}_availability_changed", changed)


def llm_chain(
    parts: list[Named[llm.LLM[Any]]], attempt_s: float = ATTEMPT_S
) -> llm.FallbackAdapter:
    return llm.FallbackAdapter(
        [part.engine for part in parts], attempt_timeout=attempt_s, max_retry_per_llm=0
    )


def tts_chain(parts: list[Named[tts.TTS[Any]]]) -> tts.FallbackAdapter:
    return tts.FallbackAdapter([part.engine for part in parts], max_retry_per_tts=0)
