"""Which of a call's agents the worker of a session has, and the audio formats of its sockets."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    # With a default: during a rolling update, gateways of the release before still insert rows.
    op.add_column(
        "sessions", sa.Column("agent_epoch", sa.Integer(), nullable=False, server_default="0")
    )
    op.add_column("sessions", sa.Column("audio", sa.JSON(), nullable=True))


def downgrade() -> None:
    for column in ("audio", "agent_epoch"):
        op.drop_column("sessions", column)
