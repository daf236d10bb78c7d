"""Alembic's migrations. ``upgrade(connection)`` brings a database to the newest schema."""

from __future__ import annotations

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

log = logging.getLogger(__name__)


def upgrade(connection: Connection) -> None:
    """Run missing migrations in the caller's transaction. Safe if two gateways start at once.

    A schema of a newer release is left as it is: migrations only add, and during a rolling upgrade
    a gateway of this release may start again.
    """
    if connection.dialect.name == "postgresql":
        # An arbitrary constant, used for nothing else: it serialises concurrent upgrades.
        connection.execute(text("SELECT pg_advisory_xact_lock(7219065451)"))
    alembic = config(connection)
    found = MigrationContext.configure(connection).get_current_heads()
    known = {script.revision for script in ScriptDirectory.from_config(alembic).walk_revisions()}
    if not known.issuperset(found):
        log.warning("the database has the schema of a newer release", extra={"found": found})
        return
    command.upgrade(alembic, "head")


def config(connection: Connection | None = None) -> Config:
    """Return Alembic's configuration, which needs no ini file."""
    alembic = Config()
    alembic.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    alembic.attributes["connection"] = connection
    return alembic
