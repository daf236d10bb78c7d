"""An index for the calls of a room, for the query about all rooms every minute."""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_index("ix_calls_room_name_created_at", "calls", ["room_name", "created_at"])


def downgrade() -> None:
    op.drop_index("ix_calls_room_name_created_at", "calls")
