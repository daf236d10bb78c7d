"""What a far end says of itself: kept where it is text, else unknown.

Names, numbers and ids of a call's other side come from the network, percent-encoded or not.
A NUL is no text for PostgreSQL, a line break is another line in a log or a header.
"""

from __future__ import annotations

from typing import Final

LONGEST_NAME: Final = 64
LONGEST_ID: Final = 256
# Of rooms and participants, which LiveKit is asked for by them.
LONGEST_KEY: Final = 1024

_NOT_UTF8: Final = "\ufffd"


def is_text(value: str, longest: int) -> bool:
    """Plain text, as ``str.isprintable`` has it: no control or formatting characters, no line
    breaks, no halves of characters; and nothing that stands for bytes that were no UTF-8."""
    return 0 < len(value) <= longest and value.isprintable() and _NOT_UTF8 not in value


def told(value: str | None, longest: int = LONGEST_NAME) -> str | None:
    """``value`` without spaces around it; None when that is no text of at most ``longest``."""
    text = (value or "").strip(" ")
    return text if is_text(text, longest) else None
