"""An incremental parser of newline-delimited JSON: bytes split anywhere in, objects out.

Lines end with LF or CRLF; the last one may end with the stream. Blank lines are ignored. A line
that is not a JSON object or is too long is skipped and counted. No more than the limit of a line
is ever kept in memory.
"""

from __future__ import annotations

import json
from typing import Any

MAX_LINE_BYTES = 64 * 1024


def parse_object(text: bytes) -> dict[str, Any] | None:
    """Return the JSON object in ``text``, UTF-8 with or without byte order mark, or None."""
    try:
        value = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class NdjsonParser:
    """Call ``feed`` as bytes arrive, and ``finish`` once at their end."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max = max_line_bytes
        self._line = bytearray()
        self._too_long = False
        self.skipped = 0
        """The number of lines that were not a JSON object."""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Return the objects whose lines are complete now."""
        *ended, rest = data.split(b"\n")
        found = []
        for part in ended:
            self._extend(part)
            found += self._take()
        self._extend(rest)
        return found

    def finish(self) -> list[dict[str, Any]]:
        """Return the object of the last line if it did not end with a newline."""
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
