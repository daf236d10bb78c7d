"""The digits that a caller typed in secret: the model gets a placeholder in place of them."""

from __future__ import annotations

import re
from typing import Any

from core.tools.memory import SECRET_DIGITS
from worker.privacy.values import with_each_text

_PLACEHOLDER = re.compile(r"\{\{\s*(digits_\d+)\s*\}\}")
# Shorter digits are part of too many other numbers.
_TELLING = 4


class Secrets:
    """One call's secret digits, in memory only.

    They leave the process in the HTTP request of a custom tool, and nowhere else.
    """

    def __init__(self) -> None:
        self._digits: dict[str, str] = {}

    def keep(self, digits: str) -> str:
        """Keep the digits; return their placeholder."""
        name = f"digits_{len(self._digits) + 1}"
        self._digits[name] = digits
        return "{{" + name + "}}"

    def mentioned(self, value: Any) -> bool:
        """Return True if a placeholder of kept digits is in ``value``, at any depth."""
        return bool(self._revealed(value) != value)

    def reveal(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments with the digits in place of their placeholders, at any depth."""
        return {name: self._revealed(value) for name, value in arguments.items()}

    def scrub(self, text: str) -> str:
        """Return the text with placeholders in place of digits, also of grouped ones."""
        longest_first = sorted(self._digits.items(), key=lambda item: -len(item[1]))
        known = [f"(?P<{name}>{_grouped(digits)})" for name, digits in longest_first]
        # A placeholder stays as it is, though it has digits of its own.
        either = "|".join([_PLACEHOLDER.pattern.replace("(", "(?:"), *known])
        return re.sub(either, lambda m: f"{{{{{m.lastgroup}}}}}" if m.lastgroup else m[0], text)

    def hide(self, value: Any) -> Any:
        """Return the value without digits and placeholders, at any depth: what outlives us."""
        return with_each_text(value, lambda text: self._hidden(text))

    def _hidden(self, text: str) -> str:
        return _PLACEHOLDER.sub(SECRET_DIGITS, self.scrub(text))

    def _revealed(self, value: Any) -> Any:
        match value:
            case str():
                return _PLACEHOLDER.sub(lambda m: self._digits.get(m[1], m[0]), value)
            case list():
                return [self._revealed(item) for item in value]
            case dict():
                return {name: self._revealed(item) for name, item in value.items()}
            case _:
                return value


def _grouped(digits: str) -> str:
    pattern = r"[ .-]?".join(map(re.escape, digits))
    return pattern if len(digits) >= _TELLING else rf"(?<!\d){pattern}(?!\d)"
