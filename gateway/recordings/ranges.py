"""Byte ranges of RFC 9110 §14: one range of a request, or the whole."""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes ``start`` to before ``end`` of ``size``. ``whole``: no range was asked for."""

    start: int
    end: int
    size: int
    whole: bool

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.end - 1}/{self.size}"


def part_of(size: int, etag: str, wanted: str | None, if_range: str | None) -> Part | None:
    """Return the bytes to send; None: the range is outside the object (416).

    Several ranges, another unit, or a range of another version (If-Range) get the whole.
    """
    whole = Part(0, size, size, True)
    match = _RANGE.fullmatch(wanted or "")
    if match is None or (if_range is not None and if_range.strip() != etag):
        return whole
    first, last = match.groups()
    if first:
        start, end = int(first), min(int(last) + 1 if last else size, size)
        if last and int(last) < int(first):
            return whole  # invalid, so it is ignored (§14.2)
    elif last:
        start, end = max(0, size - int(last)), size
    else:
        return whole
    return Part(start, end, size, False) if start < end else None
