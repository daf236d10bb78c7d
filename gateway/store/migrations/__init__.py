"""Alembic's migrations. ``upgrade(connection)`` brings a database to the newest schema."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text


def upgrade(connection: Connection) -> None:
    """Run missing migrations in the caller's transaction. Safe if two gateways start at once."""
    if connection.dialect.name == "postgresql":
        # An arbitrary constant, used for nothing else: it serialises concurrent upgrades.
        connection.execute(text("SELECT pg_advisory_xact_lock(7219065451)"))
    command.upgrade(config(connection), "head")


def config(connection: Connection | None = None) -> Config:
    """Return Alembic's configuration, which needs no ini file."""
    alembic = Config()
    alembic.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    alembic.attributes["connection"] = connection
    return alembic
