"""Tells all gateways at once that a call has new events: PostgreSQL's LISTEN and NOTIFY.

A notification is sent when its transaction commits, and lost if nobody listens then: whoever
listens also looks by itself, less often (gateway.calls.timeline). On SQLite there is nothing to
listen to; the gateways of one file look by themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.database import Database

log = logging.getLogger(__name__)

_CHANNEL: Final = "switchroom_calls"
_MOST: Final = 10_000
"""Calls not read yet; with more, those who listen have stalled and must look by themselves."""


class Bell:
    """``ring`` in the transaction that stores a call's events; ``listening`` hears the others."""

    def __init__(self, database: Database, us: str) -> None:
        """``us``: this gateway's id."""
        self._database = database
        self._us = us

    async def ring(self, connection: AsyncConnection, call_id: str) -> None:
        if self._database.is_postgres:
            note = f"{self._us} {call_id}"
            await connection.execute(select(func.pg_notify(_CHANNEL, note)))

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[AsyncIterator[str]]:
        """Yield the ids of calls whose events other gateways stored, until the connection is lost.

        Raises Unavailable if there is no connection to be had; the iterator ends when it is lost.
        On SQLite the iterator waits for ever.
        """
        heard: asyncio.Queue[str | None] = asyncio.Queue(_MOST)

        def hear(_connection: object, _pid: int, _channel: str, note: object) -> None:
            sender, _, call_id = str(note).partition(" ")
            if sender != self._us and call_id and not heard.full():
                heard.put_nowait(call_id)

        def lost(_connection: object) -> None:
            if heard.full():
                heard.get_nowait()
            heard.put_nowait(None)

        if not self._database.is_postgres:
            yield _until_none(heard)
            return
        async with self._database.apart() as connection:
            driver: Any = connection
            driver.add_termination_listener(lost)
            await driver.add_listener(_CHANNEL, hear)
            try:
                yield _until_none(heard)
            finally:
                driver.remove_termination_listener(lost)


async def _until_none(heard: asyncio.Queue[str | None]) -> AsyncIterator[str]:
    while (call_id := await heard.get()) is not None:
        yield call_id
