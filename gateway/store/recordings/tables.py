"""The tables of recordings; see gateway.store.tables."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from gateway.store.tables import Base

_TO_EXPIRE = text("expires_at IS NOT NULL AND deleted_at IS NULL")
_DUE = text("due_at IS NOT NULL")


class RecordingRow(Base):
    """A call's stored recording. It stays when the object is deleted, with ``deleted_at``."""

    __tablename__ = "recordings"

    call_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    auth_id: Mapped[str | None] = mapped_column(Text)
    region: Mapped[str | None] = mapped_column(String(8))
    key: Mapped[str] = mapped_column(Text)
    format: Mapped[str] = mapped_column(String(8))
    bytes: Mapped[int] = mapped_column(BigInteger)
    """Of the recording; a sealed object is a little larger."""
    sha256: Mapped[str] = mapped_column(String(64))
    duration_ms: Mapped[int] = mapped_column(BigInteger)
    encrypted: Mapped[bool]
    stored_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_recordings_auth_id_stored_at", "auth_id", "stored_at"),
        Index(
            "ix_recordings_expires_at",
            "expires_at",
            sqlite_where=_TO_EXPIRE,
            postgresql_where=_TO_EXPIRE,
        ),
    )


class RecordingPartRow(Base):
    """A further object of a call's recording, of which ``recordings`` has the one stored first.

    Each of a call's agents records a part (core.recovery), all on the call's clock.
    """

    __tablename__ = "recording_parts"

    call_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    region: Mapped[str | None] = mapped_column(String(8))
    format: Mapped[str] = mapped_column(String(8))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    duration_ms: Mapped[int] = mapped_column(BigInteger)
    encrypted: Mapped[bool]
    stored_at: Mapped[datetime]


class ExportRow(Base):
    """A job that copies recordings. It is due until it has ended."""

    __tablename__ = "recording_exports"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    auth_id: Mapped[str | None] = mapped_column(Text)
    since: Mapped[datetime | None]
    until: Mapped[datetime]
    destination: Mapped[str] = mapped_column(Text)
    sealed: Mapped[str | None] = mapped_column(Text)
    """The destination's credentials, until the job has ended."""
    status: Mapped[str] = mapped_column(String(16))
    failure: Mapped[str | None] = mapped_column(Text)
    total: Mapped[int]
    done: Mapped[int]
    failed: Mapped[int]
    after_at: Mapped[datetime | None]
    """With ``after_id``, the recording up to which the job has come."""
    after_id: Mapped[str | None] = mapped_column(String(64))
    behind: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    """The same by region, of those regions whose store was away when the job came past."""
    progressed_at: Mapped[datetime | None]
    """When the job came past its last recording; before the first one, when it began."""
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    due_at: Mapped[datetime | None]
    lease: Mapped[str | None] = mapped_column(String(64))
    leased_until: Mapped[datetime | None]

    __table_args__ = (
        Index(
            "ix_recording_exports_due_at",
            "due_at",
            sqlite_where=_DUE,
            postgresql_where=_DUE,
        ),
    )
