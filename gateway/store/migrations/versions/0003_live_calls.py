"""An index of a tenant's unfinished calls, for MAX_CONCURRENT_CALLS."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    live = sa.text("ended_at IS NULL")
    op.create_index(
        "ix_calls_live_auth_id", "calls", ["auth_id"], sqlite_where=live, postgresql_where=live
    )


def downgrade() -> None:
    op.drop_index("ix_calls_live_auth_id", "calls")
