"""The deliveries of events to webhooks (gateway.store.outbox), for the API to read."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, Literal, cast

from sqlalchemy import BigInteger, ColumnElement, func, literal_column, select, type_coerce

from core.models import Model, Timestamp
from gateway.store.database import Database, whole
from gateway.store.tables import DeliveryRow

DeliveryStatus = Literal["pending", "success", "failed"]


class Delivery(Model):
    """One event for one endpoint. ``id`` is the webhook's message id, the same on each attempt."""

    seq: int
    id: str
    owner: str
    endpoint_id: str
    agent_id: str
    event: str
    body: str
    status: DeliveryStatus
    attempts: int
    max_attempts: int
    created_at: Timestamp
    next_attempt_at: Timestamp | None
    last_attempt_at: Timestamp | None
    http_status: int | None
    error: str | None
    response_body: str | None


class Deliveries:
    """Reads deliveries; ``owner`` None: every tenant's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @whole
    async def page(
        self,
        owner: str | None,
        *,
        limit: int,
        offset: int,
        since: datetime | None = None,
        endpoint_id: str | None = None,
    ) -> tuple[list[Delivery], int]:
        """Return a page of deliveries, newest first, and the total number."""
        query = select(DeliveryRow.__table__).where(*owned(owner))
        if since is not None:
            query = query.where(DeliveryRow.created_at >= since)
        if endpoint_id is not None:
            query = query.where(DeliveryRow.endpoint_id == endpoint_id)
        rows, total = await self._database.page(
            query, newest=(DeliveryRow.seq,), limit=limit, offset=offset
        )
        return [delivery_of(row) for row in rows], total

    @whole
    async def counts(
        self, owner: str | None, since: datetime | None = None
    ) -> list[tuple[int, str, DeliveryStatus, int]]:
        """Return the number of deliveries by hour (since the epoch), event and status."""
        # A literal: with a parameter PostgreSQL would see different expressions in SELECT and
        # GROUP BY.
        hour = (type_coerce(DeliveryRow.created_at, BigInteger) // literal_column("3600000")).label(
            "hour"
        )
        query = select(hour, DeliveryRow.event, DeliveryRow.status, func.count()).where(
            *owned(owner)
        )
        if since is not None:
            query = query.where(DeliveryRow.created_at >= since)
        query = query.group_by(hour, DeliveryRow.event, DeliveryRow.status).order_by(hour)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [(int(row[0]), row[1], cast(DeliveryStatus, row[2]), row[3]) for row in rows]


def owned(owner: str | None) -> Collection[ColumnElement[bool]]:
    return () if owner is None else (DeliveryRow.owner == owner,)


def delivery_of(row: Any) -> Delivery:
    return Delivery.model_validate(dict(row), extra="ignore")
