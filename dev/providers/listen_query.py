"""The query of ``/v1/listen``: the format of the audio, and the wanted messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from core.audio import Pcm, ulaw_decode
from dev.providers.g711 import alaw_decode


def _linear16(data: bytes) -> Pcm:
    return np.frombuffer(data, "<i2", count=len(data) // 2).astype(np.int16)


_DECODERS: dict[str, Callable[[bytes], Pcm]] = {
    "linear16": _linear16,
    "mulaw": ulaw_decode,
    "alaw": alaw_decode,
}


@dataclass(frozen=True)
class Query:
    """The options of a connection that have an effect here; all others are ignored."""

    encoding: str = "linear16"
    sample_rate: int = 16000
    channels: int = 1
    interim_results: bool = False
    punctuate: bool = False
    vad_events: bool = False
    endpointing_ms: int | None = 10  # None: off
    utterance_end_ms: int | None = None
    model: str = "nova-3"

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> Self:
        """Parse a query. Raise ValueError, with a message for the client, as Deepgram would."""
        encoding = query.get("encoding", "")
        if encoding not in _DECODERS:
            raise ValueError("encoding must be one of " + ", ".join(_DECODERS))
        endpointing = query.get("endpointing", "10")
        if endpointing == "true":
            endpointing = "10"
        utterance_end = query.get("utterance_end_ms")
        options = cls(
            encoding=encoding,
            sample_rate=_integer("sample_rate", query.get("sample_rate", ""), 4000, 96000),
            channels=_integer("channels", query.get("channels", "1"), 1, 8),
            interim_results=_flag("interim_results", query.get("interim_results", "false")),
            punctuate=_flag("punctuate", query.get("punctuate", "false"))
            or _flag("smart_format", query.get("smart_format", "false")),
            vad_events=_flag("vad_events", query.get("vad_events", "false")),
            endpointing_ms=None
            if endpointing == "false"
            else _integer("endpointing", endpointing, 0, 10_000),
            utterance_end_ms=None
            if utterance_end is None
            else _integer("utterance_end_ms", utterance_end, 1000, 5000),
            model=query.get("model", "nova-3"),
        )
        if options.utterance_end_ms is not None and not options.interim_results:
            raise ValueError("utterance_end_ms needs interim_results=true")
        return options

    def decode(self, data: bytes) -> Pcm:
        """Return the samples of the first channel."""
        return _DECODERS[self.encoding](data)[:: self.channels]


def _integer(name: str, text: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}")
    return int(text)


def _flag(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{name} must be true or false")
    return text.lower() == "true"
