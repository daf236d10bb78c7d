"""Faults on demand, for servers that stand in for others'."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

_T = TypeVar("_T")


@dataclass
class Fault:
    """What happens to requests whose ``METHOD path`` the pattern matches.

    They are refused with ``status`` and ``code``, or (``hang``) never answered; before, or
    (``late``) after they have had their effect.
    """

    pattern: str
    status: int = 500
    code: int = 20001
    hang: bool = False
    late: bool = False
    times: int = 1_000_000
    hit: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when such a request has come, and, if late, has had its effect."""


class Faulty(Exception):
    """The request is to be refused as the fault says."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.pattern)
        self.fault = fault


class Faults:
    """Of the faults asked for, the first that matches counts."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def fail(self, pattern: str, **how: Any) -> Fault:
        fault = Fault(pattern, **how)
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        self._faults.clear()

    async def apply(self, line: str, answer: Callable[[], Awaitable[_T]]) -> _T:
        """The answer to the request ``METHOD path``. Raises Faulty."""
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
