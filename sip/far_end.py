"""Names, numbers and ids that a call's far end states: kept if printable, else unknown.

They come from the network, percent-encoded or not. PostgreSQL stores no NUL in text, and a
line break would start another line in a log or a header.
"""

from __future__ import annotations

from typing import Final

LONGEST_NAME: Final = 64
LONGEST_ID: Final = 256
# Names of rooms and participants, which are keys in requests to LiveKit.
LONGEST_KEY: Final = 1024

_NOT_UTF8: Final = "\ufffd"


def is_text(value: str, longest: int) -> bool:
    """Return True for 1 to ``longest`` printable characters that were valid UTF-8.

    ``str.isprintable`` excludes control and formatting characters, line breaks and surrogates;
    U+FFFD stands for bytes that were not UTF-8.
    """
    return 0 < len(value) <= longest and value.isprintable() and _NOT_UTF8 not in value


def told(value: str | None, longest: int = LONGEST_NAME) -> str | None:
    """Return ``value`` stripped of spaces, or None unless ``is_text`` accepts the result."""
    text = (value or "").strip(" ")
    return text if is_text(text, longest) else None
