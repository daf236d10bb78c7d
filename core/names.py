"""What rooms and participants may be called: one rule, wherever a name comes in.

Names are compared, logged, shown to people and handed to models. So they hold nothing that cannot
be seen: no control characters, no line separators, no marks that turn the direction of what
follows (Unicode TR 36), no characters without a shape, in which a text can be hidden.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, StringConstraints, WithJsonSchema

MAX_BYTES = 256
"""LiveKit counts bytes (``limit`` of livekit-server 1.13.5), and answers longer names with 500s."""

# Joiners belong to the spelling of Persian, of Indian languages and of many emoji.
_JOINERS = "\u200c\u200d"
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def fault(name: str) -> str | None:
    """What is wrong with it, in a few words; None: nothing. Blank is for the caller to judge."""
    if not name.strip():
        return None
    if len(name.encode("utf-8", "replace")) > MAX_BYTES:
        return f"longer than {MAX_BYTES} bytes"
    if any(_unseen(character) for character in name):
        return "holds control characters or characters that cannot be seen"
    if all(character.isspace() or character in _JOINERS for character in name):
        return "holds nothing that can be seen"
    return None


def is_name(name: str) -> bool:
    """Whether a room or a participant can be called so."""
    return bool(name.strip()) and fault(name) is None


def _unseen(character: str) -> bool:
    return unicodedata.category(character) in _UNSEEN and character not in _JOINERS


def _checked(name: str) -> str:
    if (problem := fault(name)) is not None:
        raise ValueError(problem)
    return name


def _not_blank(name: str) -> str:
    if not name.strip():
        raise ValueError("must not be blank")
    return name


# The rule in JSON Schema's words, but for bytes and the planes beyond the first.
_HIDDEN = (
    r"\u0000-\u001f\u007f-\u009f\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e"
    r"\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
)
_SEEN = rf"[^{_HIDDEN}]*"

GivenName = Annotated[
    str,
    StringConstraints(strict=True, max_length=MAX_BYTES),
    AfterValidator(_checked),
    WithJsonSchema({"type": "string", "maxLength": MAX_BYTES, "pattern": f"^{_SEEN}$"}),
]
"""May be blank: for whoever has words of its own for that (``POST /sip/call``)."""

Name = Annotated[
    GivenName,
    AfterValidator(_not_blank),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": MAX_BYTES,
            "pattern": rf"^{_SEEN}[^\s{_HIDDEN}]{_SEEN}$",
        }
    ),
]
"""The name of a room or a participant, or a participant's identity."""
