"""The trunks that calls' requests specified, stored until the calls end."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "call_trunks",
        sa.Column("call_id", sa.String(64), primary_key=True),
        sa.Column("sealed", sa.Text, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("call_trunks")
