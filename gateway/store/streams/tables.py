"""The tables of calls on WebSockets; see gateway.store.tables."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from gateway.store.tables import Base

_TO_DO = text("due_at IS NOT NULL")


class SessionRow(Base):
    """A call on a WebSocket, without a room (gateway.store.streams.sessions)."""

    __tablename__ = "sessions"

    call_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    """twilio, socket."""
    token_id: Mapped[str | None] = mapped_column(String(64))
    """The one unused token for this session, valid until ``token_until``."""
    token_until: Mapped[datetime | None]
    worker_id: Mapped[str | None] = mapped_column(String(128))
    """The stream worker that has the session; None until a socket has come."""
    worker_address: Mapped[str | None] = mapped_column(Text)
    agent_epoch: Mapped[int] = mapped_column(Integer, server_default="0")
    """Which of the call's agents that worker has (core.recovery)."""
    audio: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """The audio formats of a client's socket; None: the defaults, or Twilio's."""
    account_sid: Mapped[str | None] = mapped_column(String(64))
    call_sid: Mapped[str | None] = mapped_column(String(64))
    """Twilio's ids, as far as they are known."""


class TaskRow(Base):
    """A call that is placed, and repeated, for an agent (gateway.store.streams.tasks)."""

    __tablename__ = "tasks"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    auth_id: Mapped[str | None] = mapped_column(Text)
    agent_id: Mapped[str] = mapped_column(String(64))
    phone_number_id: Mapped[str] = mapped_column(String(64))
    credential_id: Mapped[str] = mapped_column(String(64))
    """The Twilio account of ``from_number``."""
    from_number: Mapped[str] = mapped_column(Text)
    to_number: Mapped[str] = mapped_column(Text)
    wanted: Mapped[dict[str, Any]]
    """The rest of the request: goal, instance, metadata, variables, retries."""
    created_at: Mapped[datetime]
    until: Mapped[datetime]
    """No attempt begins later."""

    status: Mapped[str] = mapped_column(String(16))
    failure: Mapped[str | None] = mapped_column(String(64))
    attempts: Mapped[int]
    calls: Mapped[list[str]] = mapped_column(JSON)
    """The attempts' calls, the oldest first."""

    # The attempt under way.
    call_id: Mapped[str | None] = mapped_column(String(64))
    asked_at: Mapped[datetime | None]
    """When Twilio was asked to place the call."""
    call_sid: Mapped[str | None] = mapped_column(String(64))
    """Twilio's id of the call, as soon as it is known."""
    sequence: Mapped[int]
    """The SequenceNumber of the newest status callback; -1 before the first."""
    call_status: Mapped[str | None] = mapped_column(String(16))
    """Twilio's newest status of the call."""

    due_at: Mapped[datetime | None]
    """When a gateway must look at the task again; NULL: nothing is left to do."""
    lease: Mapped[str | None] = mapped_column(String(64))
    """The step that a gateway takes now, while its lease lasts."""
    leased_until: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_tasks_agent_id_created_at", "agent_id", "created_at"),
        # For the runners: it holds unfinished tasks only, so it stays small.
        Index("ix_tasks_due_at", "due_at", sqlite_where=_TO_DO, postgresql_where=_TO_DO),
    )
