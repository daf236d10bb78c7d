"""Chooses the type of a response by the request's ``Accept`` header (RFC 9110 §12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
_EXACT, _KIND, _ANY, _NONE = 3, 2, 1, 0


def preferred(header: str | None, offers: Sequence[str]) -> str:
    """Return the offer that ``header`` prefers: the first one if it has no preference, or accepts
    none of them."""
    ranges = [_range(part) for part in (header or "*/*").split(",")]
    # max() returns the first of equals.
    return max(offers, key=lambda offer: _quality(offer, ranges))


def _range(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            value = value.strip()
            return name, float(value) if _QUALITY.fullmatch(value) else 0.0
    return name, 1.0


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Return the quality of the range that names ``offer`` most exactly."""
    found = [(_exactness(offer, name), quality) for name, quality in ranges]
    exactness, quality = max(found)
    return quality if exactness else 0.0


def _exactness(offer: str, name: str) -> int:
    if name == offer:
        return _EXACT
    if name == f"{offer.partition('/')[0]}/*":
        return _KIND
    return _ANY if name == "*/*" else _NONE
