"""Gateways that run, the calls that each follows, and the rates of calls at all of them."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.create_table(
        "gateways",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_gateways"),
    )
    op.create_table(
        "rates",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("tokens", sa.Float(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_rates"),
    )
    op.add_column("calls", sa.Column("followed_by", sa.String(64), nullable=True))


def downgrade() -> None:
    op.drop_column("calls", "followed_by")
    op.drop_table("rates")
    op.drop_table("gateways")
