"""The SQLAlchemy tables; their history is in gateway/store/migrations.

Every row with an owner carries its ``auth_id``; NULL stands for the unscoped
operator. Times are whole milliseconds since the epoch, so that SQLite and
PostgreSQL store, order and compare them alike.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Dialect,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

# Named constraints, so that migrations can address them on both databases.
_NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Millis(TypeDecorator[datetime]):
    """An aware datetime stored as integer milliseconds since the epoch."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else round(value.timestamp() * 1000)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        seconds, millis = divmod(value, 1000)
        return datetime.fromtimestamp(seconds, UTC).replace(microsecond=millis * 1000)


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=_NAMING)
    type_annotation_map = {datetime: Millis, dict[str, Any]: JSON}


class CallRow(Base):
    __tablename__ = "calls"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    auth_id: Mapped[str | None] = mapped_column(Text)
    agent_id: Mapped[str | None] = mapped_column(String(64))
    agent_version: Mapped[int | None]
    agent: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    phone_number_id: Mapped[str | None] = mapped_column(String(64))
    from_number: Mapped[str | None] = mapped_column(Text)
    to_number: Mapped[str | None] = mapped_column(Text)
    direction: Mapped[str] = mapped_column(String(16))
    type: Mapped[str] = mapped_column(String(16))
    max_duration_ms: Mapped[int]
    room_name: Mapped[str] = mapped_column(Text)
    participant_identity: Mapped[str] = mapped_column(Text)
    # `metadata` is taken by DeclarativeBase.
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    created_at: Mapped[datetime]

    # Moved by events only (gateway.store.call_status.fold).
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(32))
    sip_status_code: Mapped[int | None]
    sip_reason: Mapped[str | None] = mapped_column(Text)
    participant_id: Mapped[str | None] = mapped_column(Text)
    sip_call_id: Mapped[str | None] = mapped_column(Text)
    ringing_at: Mapped[datetime | None]
    answered_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    ended_rank: Mapped[int]
    human_legs: Mapped[int] = mapped_column(server_default=text("0"))
    record: Mapped[bool] = mapped_column(server_default=false())
    consent_status: Mapped[str | None] = mapped_column(String(16))
    consent_at: Mapped[datetime | None]
    followed_by: Mapped[str | None] = mapped_column(String(64))
    agent_epoch: Mapped[int] = mapped_column(server_default=text("0"))
    agent_worker: Mapped[str | None] = mapped_column(String(128))
    place: Mapped[str | None] = mapped_column(String(16))
    place_worker: Mapped[str | None] = mapped_column(String(128))

    __table_args__ = (
        Index("ix_calls_auth_id_created_at", "auth_id", "created_at"),
        Index("ix_calls_created_at", "created_at"),
        Index("ix_calls_phone_number_id_created_at", "phone_number_id", "created_at"),
        Index("ix_calls_agent_id_created_at", "agent_id", "created_at"),
        # For limits on calls: it holds unfinished calls only, so it stays small.
        Index(
            "ix_calls_live_auth_id",
            "auth_id",
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        # For the reconciler (this index) and for LiveKit's webhooks about a participant (the next):
        # both are frequent, and their cost must not grow with the history.
        Index(
            "ix_calls_live_created_at",
            "created_at",
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        # For the look, twice a second, for calls whose worker is silent.
        Index(
            "ix_calls_live_agent_worker",
            "agent_worker",
            sqlite_where=text("ended_at IS NULL AND agent_worker IS NOT NULL"),
            postgresql_where=text("ended_at IS NULL AND agent_worker IS NOT NULL"),
        ),
        # For each admission of a call with an agent: the places taken, and who waits for one.
        Index(
            "ix_calls_place_created_at",
            "place",
            "created_at",
            sqlite_where=text("place IS NOT NULL"),
            postgresql_where=text("place IS NOT NULL"),
        ),
        Index("ix_calls_participant_id", "participant_id"),
        # For the query, every minute, which of all LiveKit rooms had calls that have ended.
        Index("ix_calls_room_name_created_at", "room_name", "created_at"),
        # One live call per identity in a room: LiveKit would silently disconnect the first.
        Index(
            "uq_calls_live_identity",
            "room_name",
            "participant_identity",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
    )


class CallTrunkRow(Base):
    """The trunk of an unfinished call whose request specified one (gateway.store.call_trunks)."""

    __tablename__ = "call_trunks"

    call_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    sealed: Mapped[str] = mapped_column(Text)
    """Fernet token of its address and credentials."""


class EventRow(Base):
    __tablename__ = "call_events"

    # SQLite autoincrements only a column of exactly type INTEGER.
    seq: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    id: Mapped[str] = mapped_column(String(200), unique=True)
    auth_id: Mapped[str | None] = mapped_column(Text)
    call_id: Mapped[str] = mapped_column(String(64))
    type: Mapped[str] = mapped_column(String(64))
    source: Mapped[str] = mapped_column(String(16))
    at: Mapped[datetime]
    data: Mapped[dict[str, Any]]

    __table_args__ = (Index("ix_call_events_call_id_seq", "call_id", "seq"),)


class AgentRow(Base):
    """The current version of an agent; all versions are in AgentVersionRow."""

    __tablename__ = "agents"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    auth_id: Mapped[str | None] = mapped_column(Text)
    version: Mapped[int]
    config: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    __table_args__ = (Index("ix_agents_auth_id_created_at", "auth_id", "created_at"),)


class AgentVersionRow(Base):
    """One version of an agent; never changed, and deleted only with its agent."""

    __tablename__ = "agent_versions"

    agent_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    config: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class CredentialRow(Base):
    __tablename__ = "credentials"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    # "" stands for the unscoped operator, so that the unique index covers the operator's names.
    owner: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(String(128))
    provider: Mapped[str] = mapped_column(String(16))
    sealed: Mapped[str] = mapped_column(Text)
    """Fernet token of the secret's JSON (gateway.store.credentials)."""
    created_at: Mapped[datetime]

    __table_args__ = (Index("uq_credentials_owner_name", "owner", "name", unique=True),)


_PENDING, _NOT_PENDING = text("status = 'pending'"), text("status <> 'pending'")


class PhoneNumberRow(Base):
    __tablename__ = "phone_numbers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    auth_id: Mapped[str | None] = mapped_column(Text)
    number: Mapped[str] = mapped_column(String(32))
    """E.164. Several tenants may claim a number, but only one can attach it."""
    country: Mapped[str] = mapped_column(String(2))
    provider: Mapped[str] = mapped_column(String(16))
    direction: Mapped[str] = mapped_column(String(16))
    via: Mapped[str] = mapped_column(String(16), server_default="sip")
    status: Mapped[str] = mapped_column(String(16))
    record: Mapped[bool] = mapped_column(server_default=false())
    credential_id: Mapped[str | None] = mapped_column(String(64))
    agent_id: Mapped[str | None] = mapped_column(String(64))
    bound_at: Mapped[datetime | None]
    trunk_id: Mapped[str | None] = mapped_column(String(64))
    rule_id: Mapped[str | None] = mapped_column(String(64))
    provider_ref: Mapped[dict[str, Any]]
    """The provider's ids, and the number's previous configuration there."""
    created_at: Mapped[datetime]

    __table_args__ = (
        Index("ix_phone_numbers_auth_id_created_at", "auth_id", "created_at"),
        Index("ix_phone_numbers_agent_id", "agent_id"),
        # One attachment per number: LiveKit matches an INVITE to one trunk.
        Index(
            "uq_phone_numbers_number",
            "number",
            unique=True,
            sqlite_where=_NOT_PENDING,
            postgresql_where=_NOT_PENDING,
        ),
        Index("uq_phone_numbers_auth_id_number", "auth_id", "number", unique=True),
    )


class RoomClaimRow(Base):
    """The tenant that owns a room name; settles races of first calls (gateway.store.room_names)."""

    __tablename__ = "room_claims"

    room_name: Mapped[str] = mapped_column(Text, primary_key=True)
    auth_id: Mapped[str | None] = mapped_column(Text)
    claimed_at: Mapped[datetime]
    # These are NULL if a gateway of a release without holds made the claim.
    held_until: Mapped[datetime | None] = mapped_column(index=True)
    label: Mapped[str | None] = mapped_column(String(64))
    """Stands for the tenant in tokens."""


class RoomTokenRow(Base):
    """An identity for which a token may still be valid in a room."""

    __tablename__ = "room_tokens"

    room_name: Mapped[str] = mapped_column(Text, primary_key=True)
    identity: Mapped[str] = mapped_column(Text, primary_key=True)
    valid_until: Mapped[datetime] = mapped_column(index=True)


class IdempotencyRow(Base):
    __tablename__ = "idempotency_keys"

    # "" stands for the unscoped operator: a key column cannot be NULL.
    auth_id: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(index=True)
    status: Mapped[int | None]
    body: Mapped[str | None] = mapped_column(Text)
    holder: Mapped[str | None] = mapped_column(String(64))
    """The run of the request that holds the key, while its lease lasts."""
    leased_until: Mapped[datetime | None]
    call_id: Mapped[str | None] = mapped_column(String(64))


class WorkerRow(Base):
    __tablename__ = "workers"

    worker_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    agent_name: Mapped[str] = mapped_column(String(128))
    capacity: Mapped[int]
    active: Mapped[int]
    draining: Mapped[bool]
    address: Mapped[str | None] = mapped_column(Text)
    dispatch_name: Mapped[str | None] = mapped_column(Text)
    unbooked: Mapped[int | None]
    """How many of ``active`` hold no place here (any more); NULL: not known."""
    seen_at: Mapped[datetime]


class ProbeRow(Base):
    """One row, written to check that the database takes writes."""

    __tablename__ = "probes"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]


class WebhookRow(Base):
    """The webhook endpoint of a tenant's project, or of one agent."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    # "" stands for the unscoped operator, and in agent_id for the project: a key cannot be NULL.
    owner: Mapped[str] = mapped_column(Text)
    agent_id: Mapped[str] = mapped_column(String(64))
    url: Mapped[str] = mapped_column(Text)
    sealed: Mapped[str] = mapped_column(Text)
    """Fernet token of the signing secret's JSON."""
    context_limit: Mapped[int]
    timeout_s: Mapped[int]
    created_at: Mapped[datetime]

    __table_args__ = (
        Index("uq_webhook_endpoints_owner_agent_id", "owner", "agent_id", unique=True),
    )


class DeliveryRow(Base):
    """The delivery of one event to one endpoint: the transactional outbox, and its history."""

    __tablename__ = "deliveries"

    # The order of creation, and within a lane the order of sending.
    seq: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    id: Mapped[str] = mapped_column(String(64), unique=True)
    owner: Mapped[str] = mapped_column(Text)
    endpoint_id: Mapped[str] = mapped_column(String(64))
    agent_id: Mapped[str] = mapped_column(String(64))
    """The call's agent; "" for none."""
    lane: Mapped[str] = mapped_column(String(64))
    """A call's id. The deliveries of a lane are sent in order, one at a time."""
    event: Mapped[str] = mapped_column(String(64))
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]

    status: Mapped[str] = mapped_column(String(16))
    """pending, success, failed."""
    attempts: Mapped[int]
    max_attempts: Mapped[int]
    next_attempt_at: Mapped[datetime | None]
    lease: Mapped[str | None] = mapped_column(String(64))
    """The process that sends it now, while its lease lasts."""
    leased_until: Mapped[datetime | None]
    last_attempt_at: Mapped[datetime | None]
    http_status: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)
    response_body: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        Index("ix_deliveries_owner_seq", "owner", "seq"),
        Index("ix_deliveries_created_at", "created_at"),
        # For sending: these hold pending deliveries only, so they stay small.
        Index(
            "ix_deliveries_pending_next_attempt_at",
            "next_attempt_at",
            sqlite_where=_PENDING,
            postgresql_where=_PENDING,
        ),
        Index(
            "ix_deliveries_pending_lane_seq",
            "lane",
            "seq",
            sqlite_where=_PENDING,
            postgresql_where=_PENDING,
        ),
        Index(
            "ix_deliveries_pending_lease",
            "lease",
            sqlite_where=_PENDING,
            postgresql_where=_PENDING,
        ),
    )
