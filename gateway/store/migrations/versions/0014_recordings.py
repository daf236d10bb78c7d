"""Recordings: which calls ask for one, what callers agreed to, and where recordings are stored."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

_TO_EXPIRE = sa.text("expires_at IS NOT NULL AND deleted_at IS NULL")


def upgrade() -> None:
    # With a default: during a rolling update, gateways of the release before still insert rows.
    for table in ("calls", "phone_numbers"):
        op.add_column(
            table, sa.Column("record", sa.Boolean(), nullable=False, server_default=sa.false())
        )
    op.add_column("calls", sa.Column("consent_status", sa.String(16), nullable=True))
    op.add_column("calls", sa.Column("consent_at", sa.BigInteger(), nullable=True))
    op.create_table(
        "recordings",
        sa.Column("call_id", sa.String(64), nullable=False),
        sa.Column("auth_id", sa.Text(), nullable=True),
        sa.Column("region", sa.String(8), nullable=True),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("format", sa.String(8), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("encrypted", sa.Boolean(), nullable=False),
        sa.Column("stored_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("call_id", name="pk_recordings"),
    )
    op.create_index("ix_recordings_auth_id_stored_at", "recordings", ["auth_id", "stored_at"])
    op.create_index(
        "ix_recordings_expires_at",
        "recordings",
        ["expires_at"],
        sqlite_where=_TO_EXPIRE,
        postgresql_where=_TO_EXPIRE,
    )


def downgrade() -> None:
    op.drop_table("recordings")
    for column in ("consent_at", "consent_status", "record"):
        op.drop_column("calls", column)
    op.drop_column("phone_numbers", "record")
