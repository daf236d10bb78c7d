"""Run by Alembic; the connection is handed in by core.migrations.upgrade."""

from alembic import context

from core.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
