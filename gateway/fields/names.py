"""The one rule for names of rooms and participants, wherever a name comes in.

Names are compared, logged, shown to people and passed to models. So they may hold no invisible
characters: no control characters, no line separators, no marks that change the text direction
(Unicode TR 36), and none without a glyph, in which text can be hidden. A variation selector only
changes the glyph before it, so it is accepted after a visible character.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, StringConstraints, WithJsonSchema

MAX_BYTES = 256
"""LiveKit counts bytes (``limit`` of livekit-server 1.13.5) and answers longer names with 500."""

# Persian, Indian languages and many emoji are spelled with joiners.
_JOINERS = "\u200c\u200d"
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Characters without a glyph in other categories: Unicode's Default_Ignorable_Code_Point (grapheme
# joiner, Hangul fillers, Khmer vowels, reserved code points) and the Braille blank.
_SHAPELESS = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u2065\u2800\u3164\uffa0"
    + "".join(map(chr, (*range(0xFFF0, 0xFFF9), *range(0xE0000, 0xE1000))))
)
# Variation selectors of emoji, Chinese characters and Mongolian letters.
_SELECTORS = frozenset("\u180b\u180c\u180d\u180f" + "".join(map(chr, range(0xFE00, 0xFE10))))


def fault(name: str) -> str | None:
    """Return what is wrong with ``name``, or None. Blank names pass: the caller judges them."""
    if not name.strip():
        return None
    if len(name.encode("utf-8", "replace")) > MAX_BYTES:
        return f"longer than {MAX_BYTES} bytes"
    if any(_unseen(character) for character in name) or _selects_nothing(name):
        return "holds control characters or characters that cannot be seen"
    if all(_blank(character) for character in name):
        return "holds nothing that can be seen"
    return None


def is_name(name: str) -> bool:
    """Return True if a room or a participant can have this name."""
    return bool(name.strip()) and fault(name) is None


def _unseen(character: str) -> bool:
    if character in _JOINERS:
        return False
    return unicodedata.category(character) in _UNSEEN or character in _SHAPELESS


def _blank(character: str) -> bool:
    return character.isspace() or character in _JOINERS


def _selects_nothing(name: str) -> bool:
    """Return True if a variation selector comes first, or after a blank or another selector."""
    return any(
        character in _SELECTORS and (_blank(before) or before in _SELECTORS)
        for before, character in zip(" " + name, name, strict=False)
    )


def _checked(name: str) -> str:
    if (problem := fault(name)) is not None:
        raise ValueError(problem)
    return name


def _not_blank(name: str) -> str:
    if not name.strip():
        raise ValueError("must not be blank")
    return name


# The rule as JSON Schema patterns, without the byte limit and the planes beyond the first.
_HIDDEN = (
    r"\u0000-\u001f\u007f-\u009f\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2"
    r"\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ufeff"
    r"\uffa0\ufff0-\ufffb"
)
_BLANK = r" \u00a0\u1680\u2000-\u200a\u200c\u200d\u202f\u205f\u3000"
_SELECTOR = r"\u180b-\u180d\u180f\ufe00-\ufe0f"
_SEEN = rf"[^{_BLANK}{_SELECTOR}{_HIDDEN}][{_SELECTOR}]?"
_ANY = rf"(?:[{_BLANK}]|{_SEEN})*"

GivenName = Annotated[
    str,
    StringConstraints(strict=True, max_length=MAX_BYTES),
    AfterValidator(_checked),
    WithJsonSchema({"type": "string", "maxLength": MAX_BYTES, "pattern": f"^{_ANY}$"}),
]
"""A name that may be blank, for callers with their own error for that (``POST /sip/call``)."""

Name = Annotated[
    GivenName,
    AfterValidator(_not_blank),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": MAX_BYTES,
            "pattern": f"^[{_BLANK}]*{_SEEN}{_ANY}$",
        }
    ),
]
"""The name of a room or a participant, or a participant's identity."""
