"""Newline-delimited JSON, as it comes: bytes in, objects out, whatever way the bytes are split.

Lines end with LF or CRLF, the last one may end with the stream. Blank lines mean nothing. A line
that is no JSON object, or longer than allowed, is skipped and counted; of an over-long one no
more than the limit is ever kept.
"""

from __future__ import annotations

import json
from typing import Any

MAX_LINE_BYTES = 64 * 1024


def parse_object(text: bytes) -> dict[str, Any] | None:
    """The JSON object that ``text`` is in UTF-8, a byte order mark before it allowed; else None."""
    try:
        value = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class NdjsonParser:
    """``feed`` as bytes arrive, ``finish`` once at their end."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max = max_line_bytes
        self._line = bytearray()
        self._too_long = False
        self.skipped = 0
        """Lines that were no JSON object."""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The objects whose lines are complete now."""
        *ended, rest = data.split(b"\n")
        found = []
        for part in ended:
            self._extend(part)
            found += self._take()
        self._extend(rest)
        return found

    def finish(self) -> list[dict[str, Any]]:
        """The object of the last line, if it did not end with a newline."""
        return self._take()

    def _extend(self, part: bytes) -> None:
        if len(self._line) + len(part) > self._max:
            self._too_long = True
            self._line.clear()
        if not self._too_long:
            self._line += part

    def _take(self) -> list[dict[str, Any]]:
        line, too_long = bytes(self._line).strip(), self._too_long
        self._line.clear()
        self._too_long = False
        if not line and not too_long:
            return []
        value = None if too_long else parse_object(line)
        if value is None:
            self.skipped += 1
            return []
        return [value]
