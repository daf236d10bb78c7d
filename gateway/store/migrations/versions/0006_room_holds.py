"""Holds on room names for their tenants, and the identities with valid tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    # Nullable: during a rolling update, gateways of the release before still write claims.
    op.add_column("room_claims", sa.Column("held_until", sa.BigInteger))
    op.add_column("room_claims", sa.Column("label", sa.String(64)))
    op.create_index("ix_room_claims_held_until", "room_claims", ["held_until"])
    op.create_table(
        "room_tokens",
        sa.Column("room_name", sa.Text, nullable=False),
        sa.Column("identity", sa.Text, nullable=False),
        sa.Column("valid_until", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("room_name", "identity", name="pk_room_tokens"),
    )
    op.create_index("ix_room_tokens_valid_until", "room_tokens", ["valid_until"])


def downgrade() -> None:
    op.drop_table("room_tokens")
    op.drop_index("ix_room_claims_held_until", "room_claims")
    op.drop_column("room_claims", "label")
    op.drop_column("room_claims", "held_until")
