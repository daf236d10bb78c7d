"""Alembic's home. ``upgrade(connection)`` brings a database to the newest schema."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text


def upgrade(connection: Connection) -> None:
    """Run what is missing, in the caller's transaction. Safe against a second gateway's start."""
    if connection.dialect.name == "postgresql":
        # Any constant does, as long as it is ours: it serialises concurrent upgrades.
        connection.execute(text("SELECT pg_advisory_xact_lock(7219065451)"))
    command.upgrade(config(connection), "head")


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration without an ini file."""
    alembic = Config()
    alembic.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    alembic.attributes["connection"] = connection
    return alembic
