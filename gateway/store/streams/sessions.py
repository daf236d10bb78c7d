"""Sessions: what a call on a WebSocket needs beside its record (gateway.calls.streams).

A row is kept for an hour after its call has ended, so that a late request of Twilio's is answered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import and_, delete, func, or_, select, update

from core.models import Agent, now
from gateway.store.agent_secrets import AgentSecrets
from gateway.store.credentials import Vault
from gateway.store.database import Database, whole
from gateway.store.streams.tables import SessionRow
from gateway.store.tables import CallRow

Kind = Literal["twilio", "socket"]

_TABLE: Any = SessionRow.__table__
_KEPT = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    call_id: str
    kind: Kind
    token_id: str | None = None
    """The one unused token; None: it was redeemed."""
    token_until: datetime | None = None
    worker_id: str | None = None
    worker_address: str | None = None
    """The stream worker that has the session; None until a socket was attached."""
    agent_epoch: int = 0
    """Which of the call's agents that worker has (core.recovery)."""
    audio: dict[str, Any] | None = None
    """The audio formats of a client's sockets, as the first one chose them."""
    account_sid: str | None = None
    call_sid: str | None = None
    """Twilio's ids, as far as they are known."""

    @property
    def attached(self) -> bool:
        """True once a worker has the session: another socket resumes it."""
        return self.worker_id is not None


class SessionStore:
    """Every method is one transaction."""

    def __init__(
        self,
        database: Database,
        vault: Vault | None = None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        """``vault`` seals the secrets of a tailored agent (gateway.store.agent_secrets)."""
        self._database = database
        self._secrets = AgentSecrets(vault)
        self._clock = clock

    @whole
    async def add(self, session: Session) -> None:
        """Store the session of a call; if there is one already, only replace its token."""
        values = {name: getattr(session, name) for name in Session.__slots__}
        token = {name: values[name] for name in ("token_id", "token_until")}
        added = self._database.insert(SessionRow).values(**values)
        async with self._database.write() as connection:
            await connection.execute(
                added.on_conflict_do_update(index_elements=["call_id"], set_=token)
            )

    @whole
    async def find(self, call_id: str) -> Session | None:
        query = select(_TABLE).where(_TABLE.c.call_id == call_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else Session(**row)

    @whole
    async def redeem(
        self,
        call_id: str,
        token_id: str,
        kind: Kind,
        *,
        account_sid: str | None = None,
        call_sid: str | None = None,
    ) -> Session | None:
        """Use the token up, and return the session; None: the token is not valid (any more).

        One UPDATE decides, so that a token opens one session on one gateway. Twilio's ids are
        stored if they are not known yet; a session of another Twilio call is not found.
        """
        named = {"account_sid": account_sid, "call_sid": call_sid}
        given = {name: value for name, value in named.items() if value is not None}
        redeemed = (
            update(_TABLE)
            .where(
                _TABLE.c.call_id == call_id,
                _TABLE.c.token_id == token_id,
                _TABLE.c.kind == kind,
                _TABLE.c.token_until > self._clock(),
                *(
                    or_(_TABLE.c[name].is_(None), _TABLE.c[name] == value)
                    for name, value in given.items()
                ),
            )
            .values(
                token_id=None,
                **{name: func.coalesce(_TABLE.c[name], value) for name, value in given.items()},
            )
            .returning(*_TABLE.c)
        )
        async with self._database.write() as connection:
            row = (await connection.execute(redeemed)).mappings().one_or_none()
        return None if row is None else Session(**row)

    @whole
    async def claim(
        self,
        call_id: str,
        epoch: int,
        worker_id: str,
        address: str,
        *,
        instead_of: str | None = None,
        audio: dict[str, Any] | None = None,
    ) -> bool:
        """Store which worker is to have the call's agent of this epoch.

        False: another gateway has claimed it for a worker, or a later agent is there. So a session
        is never given to two workers. ``instead_of``: the worker of the caller's own claim, which
        did not take it. ``audio``: stored, if given.
        """
        worker = _TABLE.c.worker_id
        own = worker.is_(None) if instead_of is None else worker == instead_of
        values: dict[str, Any] = {
            "worker_id": worker_id,
            "worker_address": address,
            "agent_epoch": epoch,
        }
        if audio is not None:
            values["audio"] = audio
        claimed = (
            update(_TABLE)
            .where(
                _TABLE.c.call_id == call_id,
                or_(_TABLE.c.agent_epoch < epoch, and_(_TABLE.c.agent_epoch == epoch, own)),
            )
            .values(**values)
        )
        async with self._database.write() as connection:
            return bool((await connection.execute(claimed)).rowcount)

    @whole
    async def tailor(self, call_id: str, agent: Agent, *, record: bool) -> bool:
        """Replace the configuration of the agent that the call pinned, and its opt-in.

        False: the call is answered or over.
        """
        table: Any = CallRow.__table__
        tailored = (
            update(table)
            .where(
                table.c.id == call_id,
                table.c.answered_at.is_(None),
                table.c.ended_at.is_(None),
            )
            .values(agent=self._secrets.pin(agent), record=record)
        )
        async with self._database.write() as connection:
            return bool((await connection.execute(tailored)).rowcount)

    @whole
    async def sweep(self) -> None:
        """Delete the sessions whose calls ended an hour ago."""
        over = (
            select(SessionRow.call_id)
            .join(CallRow, CallRow.id == SessionRow.call_id)
            .where(CallRow.ended_at < self._clock() - _KEPT)
        )
        async with self._database.write() as connection:
            await connection.execute(delete(_TABLE).where(_TABLE.c.call_id.in_(over)))
