"""Run by Alembic; the connection is handed in by gateway.store.migrations.upgrade."""

from alembic import context

from gateway.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
