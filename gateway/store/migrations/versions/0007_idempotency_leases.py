"""Leases of idempotency keys, the call of a key's request, and a row for the write probe."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("idempotency_keys", sa.Column("holder", sa.String(64)))
    op.add_column("idempotency_keys", sa.Column("leased_until", sa.BigInteger))
    op.add_column("idempotency_keys", sa.Column("call_id", sa.String(64)))
    op.create_table(
        "probes",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("probes")
    for column in ("call_id", "leased_until", "holder"):
        op.drop_column("idempotency_keys", column)
