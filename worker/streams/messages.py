"""Reads a far end's JSON messages strictly: Twilio's and our own protocol have this in common.

Unknown fields and unknown kinds of messages are tolerated, because protocols grow. Whatever is
used has its documented type and a bounded size, or the message is Malformed. Messages come from
outside, so an error names the field and never holds its value.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from worker.line import KEYS

NAME_CHARS = 64


class Malformed(ValueError):
    """The message does not have its documented shape."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message of a kind that is not used here."""

    kind: str


@dataclass(frozen=True, slots=True)
class Dtmf:
    """The far end pressed one of KEYS."""

    digit: str


@dataclass(frozen=True, slots=True)
class Echo:
    """The far end has played everything that was sent before the mark, or has dropped it."""

    name: str


def read_object(text: str, max_chars: int) -> dict[str, Any]:
    """Return the JSON object in ``text``. Raises Malformed."""
    if len(text) > max_chars:
        raise Malformed("too long")
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        raise Malformed("not JSON") from None
    if not isinstance(value, dict):
        raise Malformed("not an object")
    return value


def object_in(message: dict[str, Any], field: str) -> dict[str, Any]:
    value = message.get(field)
    if not isinstance(value, dict):
        raise Malformed(field)
    return value


def name_in(message: dict[str, Any], field: str, max_chars: int = NAME_CHARS) -> str:
    """Return a string that is not empty and can be logged: no control character, no surrogate."""
    value = line_in(message, field, max_chars)
    if not value:
        raise Malformed(field)
    return value


def line_in(message: dict[str, Any], field: str, max_chars: int) -> str:
    """Return a string as ``name_in``'s, or an empty one."""
    value = message.get(field)
    if not isinstance(value, str) or len(value) > max_chars or not value.isprintable():
        raise Malformed(field)
    return value


def text_in(message: dict[str, Any], field: str, max_chars: int) -> str:
    """Return a string that can be stored: no NUL, no surrogate; it is not blank."""
    value = message.get(field)
    if not isinstance(value, str) or len(value) > max_chars or "\0" in value or not value.strip():
        raise Malformed(field)
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise Malformed(field)
    return value


def number_in(message: dict[str, Any], field: str) -> int:
    """Return a number ≥ 0, written as a number or as a string of digits."""
    value = message.get(field)
    if isinstance(value, str) and len(value) <= 15 and value.isascii() and value.isdigit():
        return int(value)
    if type(value) is int and 0 <= value < 10**15:
        return value
    raise Malformed(field)


def digit_in(message: dict[str, Any]) -> Dtmf:
    digit = name_in(message, "digit", 1)
    if digit not in KEYS:
        raise Malformed("digit")
    return Dtmf(digit)


def _refuse(constant: str) -> NoReturn:
    raise ValueError("NaN and infinity are not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
