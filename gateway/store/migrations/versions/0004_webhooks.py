"""Webhook endpoints, and the outbox of deliveries to them."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_SEQ = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("agent_id", sa.String(64), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("sealed", sa.Text, nullable=False),
        sa.Column("context_limit", sa.Integer, nullable=False),
        sa.Column("timeout_s", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index(
        "uq_webhook_endpoints_owner_agent_id",
        "webhook_endpoints",
        ["owner", "agent_id"],
        unique=True,
    )
    op.create_table(
        "deliveries",
        sa.Column("seq", _SEQ, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("endpoint_id", sa.String(64), nullable=False),
        sa.Column("agent_id", sa.String(64), nullable=False),
        sa.Column("lane", sa.String(64), nullable=False),
        sa.Column("event", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt_at", sa.BigInteger),
        sa.Column("lease", sa.String(64)),
        sa.Column("leased_until", sa.BigInteger),
        sa.Column("last_attempt_at", sa.BigInteger),
        sa.Column("http_status", sa.Integer),
        sa.Column("error", sa.Text),
        sa.Column("response_body", sa.Text),
        sa.UniqueConstraint("id", name="uq_deliveries_id"),
    )
    op.create_index("ix_deliveries_owner_seq", "deliveries", ["owner", "seq"])
    op.create_index("ix_deliveries_created_at", "deliveries", ["created_at"])
    pending = sa.text("status = 'pending'")
    for columns in (["next_attempt_at"], ["lane", "seq"], ["lease"]):
        op.create_index(
            f"ix_deliveries_pending_{'_'.join(columns)}",
            "deliveries",
            columns,
            sqlite_where=pending,
            postgresql_where=pending,
        )


def downgrade() -> None:
    op.drop_table("deliveries")
    op.drop_table("webhook_endpoints")
