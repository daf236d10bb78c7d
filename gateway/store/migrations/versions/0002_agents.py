"""Agents and their versions, credentials, phone numbers."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "agents",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("auth_id", sa.Text()),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_agents"),
    )
    op.create_index("ix_agents_auth_id_created_at", "agents", ["auth_id", "created_at"])
    op.create_table(
        "agent_versions",
        sa.Column("agent_id", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("agent_id", "version", name="pk_agent_versions"),
    )
    op.create_table(
        "credentials",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("provider", sa.String(16), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_credentials"),
    )
    op.create_index("uq_credentials_owner_name", "credentials", ["owner", "name"], unique=True)
    op.create_table(
        "phone_numbers",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("auth_id", sa.Text()),
        sa.Column("number", sa.String(32), nullable=False),
        sa.Column("country", sa.String(2), nullable=False),
        sa.Column("provider", sa.String(16), nullable=False),
        sa.Column("direction", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("credential_id", sa.String(64)),
        sa.Column("agent_id", sa.String(64)),
        sa.Column("bound_at", sa.BigInteger()),
        sa.Column("trunk_id", sa.String(64)),
        sa.Column("rule_id", sa.String(64)),
        sa.Column("provider_ref", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_phone_numbers"),
        sa.UniqueConstraint("number", name="uq_phone_numbers_number"),
    )
    op.create_index(
        "ix_phone_numbers_auth_id_created_at", "phone_numbers", ["auth_id", "created_at"]
    )
    op.create_index("ix_phone_numbers_agent_id", "phone_numbers", ["agent_id"])
    op.create_index(
        "ix_calls_phone_number_id_created_at", "calls", ["phone_number_id", "created_at"]
    )
    op.create_index("ix_calls_agent_id_created_at", "calls", ["agent_id", "created_at"])
