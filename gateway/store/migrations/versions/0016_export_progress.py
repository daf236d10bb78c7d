"""When an export made progress, and the regions whose recordings it has still to return to."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.add_column(
        "recording_exports",
        sa.Column("behind", sa.JSON(), nullable=False, server_default=sa.text("'{}'")),
    )
    op.add_column("recording_exports", sa.Column("progressed_at", sa.BigInteger()))


def downgrade() -> None:
    op.drop_column("recording_exports", "progressed_at")
    op.drop_column("recording_exports", "behind")
