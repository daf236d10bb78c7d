"""Which agent of a call is the present one, and which worker has it."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"

_LIVE = sa.text("ended_at IS NULL AND agent_worker IS NOT NULL")


def upgrade() -> None:
    # With a default: during a rolling update, gateways of the release before still insert rows.
    op.add_column(
        "calls", sa.Column("agent_epoch", sa.Integer(), nullable=False, server_default="0")
    )
    op.add_column("calls", sa.Column("agent_worker", sa.String(128), nullable=True))
    op.create_index(
        "ix_calls_live_agent_worker",
        "calls",
        ["agent_worker"],
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    )


def downgrade() -> None:
    op.drop_index("ix_calls_live_agent_worker", "calls")
    for column in ("agent_worker", "agent_epoch"):
        op.drop_column("calls", column)
