"""Calls, their events, room claims, idempotency keys, workers."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "calls",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("auth_id", sa.Text()),
        sa.Column("agent_id", sa.String(64)),
        sa.Column("agent_version", sa.Integer()),
        sa.Column("agent", sa.JSON()),
        sa.Column("phone_number_id", sa.String(64)),
        sa.Column("from_number", sa.Text()),
        sa.Column("to_number", sa.Text()),
        sa.Column("direction", sa.String(16), nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("max_duration_ms", sa.Integer(), nullable=False),
        sa.Column("room_name", sa.Text(), nullable=False),
        sa.Column("participant_identity", sa.Text(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(32)),
        sa.Column("sip_status_code", sa.Integer()),
        sa.Column("sip_reason", sa.Text()),
        sa.Column("participant_id", sa.Text()),
        sa.Column("sip_call_id", sa.Text()),
        sa.Column("ringing_at", sa.BigInteger()),
        sa.Column("answered_at", sa.BigInteger()),
        sa.Column("ended_at", sa.BigInteger()),
        sa.Column("ended_rank", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_calls"),
    )
    op.create_index("ix_calls_auth_id_created_at", "calls", ["auth_id", "created_at"])
    op.create_index("ix_calls_created_at", "calls", ["created_at"])
    op.create_index(
        "uq_calls_live_identity",
        "calls",
        ["room_name", "participant_identity"],
        unique=True,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_table(
        "call_events",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
            autoincrement=True,
        ),
        sa.Column("id", sa.String(200), nullable=False),
        sa.Column("auth_id", sa.Text()),
        sa.Column("call_id", sa.String(64), nullable=False),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_call_events"),
        sa.UniqueConstraint("id", name="uq_call_events_id"),
    )
    op.create_index("ix_call_events_call_id_seq", "call_events", ["call_id", "seq"])
    op.create_table(
        "room_claims",
        sa.Column("room_name", sa.Text(), nullable=False),
        sa.Column("auth_id", sa.Text()),
        sa.Column("claimed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("room_name", name="pk_room_claims"),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("auth_id", sa.Text(), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("request_hash", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("body", sa.Text()),
        sa.PrimaryKeyConstraint("auth_id", "key", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
    op.create_table(
        "workers",
        sa.Column("worker_id", sa.String(128), nullable=False),
        sa.Column("agent_name", sa.String(128), nullable=False),
        sa.Column("capacity", sa.Integer(), nullable=False),
        sa.Column("active", sa.Integer(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("worker_id", name="pk_workers"),
    )
