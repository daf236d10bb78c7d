"""Indexes for frequent queries, whose cost must not grow with the history of calls."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    live = sa.text("ended_at IS NULL")
    op.create_index(
        "ix_calls_live_created_at",
        "calls",
        ["created_at"],
        sqlite_where=live,
        postgresql_where=live,
    )
    op.create_index("ix_calls_participant_id", "calls", ["participant_id"])


def downgrade() -> None:
    op.drop_index("ix_calls_participant_id", "calls")
    op.drop_index("ix_calls_live_created_at", "calls")
