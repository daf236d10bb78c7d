"""Decodes a webhook's response to a caller's turn as it arrives. Sans-I/O.

A response is one JSON object, or several as NDJSON. The body decides which, because frameworks
label streams inconsistently. Only ``application/x-ndjson`` and the like are trusted, so that a
broken first line costs only that line.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from worker.brains.ndjson import NdjsonParser, parse_object

MAX_BODY_BYTES = 256 * 1024

_NDJSON_TYPES = frozenset(
    {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"}
)


def _speakable(value: Any) -> Any:
    """Replace characters that databases and TTS reject: control characters, lone surrogates."""
    if not isinstance(value, str):
        return value
    return "".join(
        " " if unicodedata.category(character) in {"Cc", "Cs"} else character for character in value
    )


def _keys(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Reply(BaseModel):
    """One object of a response. ``interim``: more objects follow."""

    model_config = ConfigDict(frozen=True)

    text: Annotated[str | None, BeforeValidator(_speakable)] = None
    interim: bool | None = None
    hangup: bool | None = None
    action: Annotated[str | None, BeforeValidator(_speakable)] = Field(None, max_length=64)
    digits: Annotated[str | None, BeforeValidator(_keys)] = Field(
        None, max_length=64, validation_alias=AliasChoices("digits", "press_digit", "dtmf")
    )


class ReplyDecoder:
    """Call ``feed`` as bytes arrive, and ``finish`` once at their end."""

    def __init__(self, content_type: str) -> None:
        """``content_type`` is the response's, without parameters."""
        self._lines = NdjsonParser()
        self._is: Literal["unknown", "lines", "whole"] = (
            "lines" if content_type.lower() in _NDJSON_TYPES else "unknown"
        )
        self._kept = bytearray()
        self._unusable = 0

    @property
    def skipped(self) -> int:
        """The number of lines that were not a reply."""
        return self._lines.skipped + self._unusable

    def feed(self, data: bytes) -> list[Reply]:
        """Return the replies that are complete now."""
        if self._is == "lines":
            return self._replies(self._lines.feed(data))
        self._kept += data
        if self._is == "whole" or b"\n" not in data:
            return []
        first, newline, _ = self._kept.lstrip().partition(b"\n")
        if not newline:
            return []
        self._is = "whole" if parse_object(bytes(first)) is None else "lines"
        return self._as_lines() if self._is == "lines" else []

    def finish(self) -> list[Reply]:
        """Return the replies that the end of the body completes."""
        if self._is != "lines":
            whole = parse_object(bytes(self._kept))
            if whole is not None:
                return self._replies([whole])
        return self._as_lines() + self._replies(self._lines.finish())

    def _as_lines(self) -> list[Reply]:
        data = bytes(self._kept)
        self._kept.clear()
        return self._replies(self._lines.feed(data))

    def _replies(self, found: list[dict[str, Any]]) -> list[Reply]:
        replies = []
        for value in found:
            try:
                reply = Reply.model_validate(value)
            except ValidationError:
                self._unusable += 1
                continue
            if reply.model_fields_set:
                replies.append(reply)
            else:
                self._unusable += 1
        return replies
