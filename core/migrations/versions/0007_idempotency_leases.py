"""Leases of idempotency keys, and the call that a key's request made."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("idempotency_keys", sa.Column("holder", sa.String(64)))
    op.add_column("idempotency_keys", sa.Column("leased_until", sa.BigInteger))
    op.add_column("idempotency_keys", sa.Column("call_id", sa.String(64)))


def downgrade() -> None:
    for column in ("call_id", "leased_until", "holder"):
        op.drop_column("idempotency_keys", column)
