"""Claims of several tenants on one number, and the number of legs of transfers' humans."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column(
        "calls", sa.Column("human_legs", sa.Integer(), nullable=False, server_default="0")
    )
    # SQLite can drop a constraint only by recreating the table.
    with op.batch_alter_table("phone_numbers") as table:
        table.drop_constraint("uq_phone_numbers_number", type_="unique")
    attached = sa.text("status <> 'pending'")
    op.create_index(
        "uq_phone_numbers_number",
        "phone_numbers",
        ["number"],
        unique=True,
        sqlite_where=attached,
        postgresql_where=attached,
    )
    op.create_index(
        "uq_phone_numbers_auth_id_number", "phone_numbers", ["auth_id", "number"], unique=True
    )


def downgrade() -> None:
    op.drop_index("uq_phone_numbers_auth_id_number", "phone_numbers")
    op.drop_index("uq_phone_numbers_number", "phone_numbers")
    op.execute("DELETE FROM phone_numbers WHERE status = 'pending'")
    with op.batch_alter_table("phone_numbers") as table:
        table.create_unique_constraint("uq_phone_numbers_number", ["number"])
    with op.batch_alter_table("calls") as table:
        table.drop_column("human_legs")
