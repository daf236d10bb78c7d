"""How the provider sends a number's calls in: by SIP, or as a stream."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    # With a default: during a rolling update, gateways of the release before still insert numbers.
    op.add_column(
        "phone_numbers", sa.Column("via", sa.String(16), nullable=False, server_default="sip")
    )


def downgrade() -> None:
    op.drop_column("phone_numbers", "via")
