"""The limit on a tenant's concurrent event streams and long polls at this gateway.

Each holds a connection and some memory for as long as its client wants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import TooManyRequests

_RETRY_S = 5


class StreamLimit:
    def __init__(self, most: int) -> None:
        self._most = most
        self._held: Counter[str | None] = Counter()

    @contextmanager
    def one(self, auth_id: str | None) -> Iterator[None]:
        """Count a stream or long poll for the block. Raises TooManyRequests ``STREAM_LIMIT``.

        An operator without a tenant counts as one tenant.
        """
        if self._held[auth_id] >= self._most:
            raise TooManyRequests(
                f"{self._most} event streams and long polls are open, which is the limit",
                code="STREAM_LIMIT",
                retry_after_s=_RETRY_S,
            )
        self._held[auth_id] += 1
        try:
            yield
        finally:
            self._held[auth_id] -= 1
            if not self._held[auth_id]:
                del self._held[auth_id]
