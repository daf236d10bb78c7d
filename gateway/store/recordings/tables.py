"""The tables of recordings; see gateway.store.tables."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from gateway.store.tables import Base

_TO_EXPIRE = text("expires_at IS NOT NULL AND deleted_at IS NULL")


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
