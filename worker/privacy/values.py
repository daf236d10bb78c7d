"""Finds and changes the texts of a JSON value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def with_each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Return the JSON value with all of its texts changed, also those that name an object's fields.

    A number that would be changed as a text becomes that text.
    """
    match value:
        case str():
            return change(value)
        case bool() | None:
            return value
        case int() | float():
            text = str(value)
            changed = change(text)
            return value if changed == text else changed
        case list():
            return [with_each_text(item, change) for item in value]
        case dict():
            return {change(name): with_each_text(item, change) for name, item in value.items()}
        case _:
            return value


def texts_in(value: Any) -> list[str]:
    """Return the texts and numbers of a JSON value, in their order."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    with_each_text(value, note)
    return found
