"""Sessions on WebSockets, and the addresses of the workers that serve them."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("workers", sa.Column("address", sa.Text(), nullable=True))
    op.create_table(
        "sessions",
        sa.Column("call_id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("token_id", sa.String(64), nullable=True),
        sa.Column("token_until", sa.BigInteger(), nullable=True),
        sa.Column("worker_id", sa.String(128), nullable=True),
        sa.Column("worker_address", sa.Text(), nullable=True),
        sa.Column("account_sid", sa.String(64), nullable=True),
        sa.Column("call_sid", sa.String(64), nullable=True),
        sa.PrimaryKeyConstraint("call_id", name="pk_sessions"),
    )


def downgrade() -> None:
    op.drop_table("sessions")
    with op.batch_alter_table("workers") as workers:
        workers.drop_column("address")
