"""Which calls hold a worker's place or wait for one, and each worker's own name in LiveKit."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"

_WITH_PLACE = sa.text("place IS NOT NULL")


def upgrade() -> None:
    op.add_column("calls", sa.Column("place", sa.String(16), nullable=True))
    op.add_column("calls", sa.Column("place_worker", sa.String(128), nullable=True))
    op.add_column("workers", sa.Column("dispatch_name", sa.Text(), nullable=True))
    op.add_column("workers", sa.Column("unbooked", sa.Integer(), nullable=True))
    op.create_index(
        "ix_calls_place_created_at",
        "calls",
        ["place", "created_at"],
        sqlite_where=_WITH_PLACE,
        postgresql_where=_WITH_PLACE,
    )
    op.execute(
        "UPDATE calls SET place = 'held', place_worker = agent_worker"
        " WHERE ended_at IS NULL AND agent_worker IS NOT NULL"
    )


def downgrade() -> None:
    op.drop_index("ix_calls_place_created_at", "calls")
    for column in ("unbooked", "dispatch_name"):
        op.drop_column("workers", column)
    for column in ("place_worker", "place"):
        op.drop_column("calls", column)
