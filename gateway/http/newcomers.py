"""The limit on open WebSockets whose clients have not yet shown who they are.

Such a socket costs memory and a file descriptor for as long as PACE lets it wait, and anybody may
open it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from core.errors import TooManyRequests

MOST = 1000
MOST_OF_ONE = 100
"""From one address, behind which may be a proxy. Clients take milliseconds to show who they are."""
_RETRY_S = 5


class Newcomers:
    def __init__(
        self, refused: Callable[[], None], *, most: int = MOST, most_of_one: int = MOST_OF_ONE
    ) -> None:
        """``refused`` is called for each socket over a limit."""
        self._refused = refused
        self._most = most
        self._most_of_one = most_of_one
        self._held: Counter[str | None] = Counter()

    @contextmanager
    def one(self, address: str | None) -> Iterator[None]:
        """Count a socket for the block. Raises TooManyRequests ``SOCKET_LIMIT``."""
        if self._held.total() >= self._most or self._held[address] >= self._most_of_one:
            self._refused()
            raise TooManyRequests(
                "Too many sockets wait for their first message",
                code="SOCKET_LIMIT",
                retry_after_s=_RETRY_S,
            )
        self._held[address] += 1
        try:
            yield
        finally:
            self._held[address] -= 1
            if not self._held[address]:
                del self._held[address]
