"""Faults on demand, for the stand-in servers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

_T = TypeVar("_T")


@dataclass
class Fault:
    """A fault for requests whose ``METHOD path`` matches the pattern.

    They are refused with ``status`` and ``code``; with ``hang`` they are never answered. The fault
    comes before the request takes effect, or with ``late`` after it.
    """

    pattern: str
    status: int = 500
    code: int = 20001
    hang: bool = False
    late: bool = False
    times: int = 1_000_000
    hit: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when such a request has arrived and, with ``late``, has taken effect."""


class Faulty(Exception):
    """The request must be refused with the fault's status and code."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.pattern)
        self.fault = fault


class Faults:
    """A list of faults; the first that matches a request applies."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def fail(self, pattern: str, **how: Any) -> Fault:
        fault = Fault(pattern, **how)
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        self._faults.clear()

    async def apply(self, line: str, answer: Callable[[], Awaitable[_T]]) -> _T:
        """Return the answer to the request ``METHOD path``. Raise Faulty if a fault applies."""
        fault = next((f for f in self._faults if f.times and re.search(f.pattern, line)), None)
        if fault is None:
            return await answer()
        fault.times -= 1
        if fault.late:
            await answer()
        fault.hit.set()
        if fault.hang:
            await asyncio.Event().wait()
        raise Faulty(fault)
