"""The tools that ran in unfinished calls, for an agent that takes over."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.create_table(
        "call_memory",
        sa.Column("call_id", sa.String(64), primary_key=True),
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("called", sa.Text, nullable=False),
        sa.Column("answered", sa.Text, nullable=True),
    )


def downgrade() -> None:
    op.drop_table("call_memory")
