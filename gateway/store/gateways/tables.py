"""The tables of what gateways share; see gateway.store.tables."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from gateway.store.tables import Base


class RateRow(Base):
    """A token bucket (gateway.store.gateways.rates)."""

    __tablename__ = "rates"

    # "" stands for the unscoped operator: a key cannot be NULL.
    owner: Mapped[str] = mapped_column(Text, primary_key=True)
    tokens: Mapped[float]
    at: Mapped[datetime]


class GatewayRow(Base):
    """A gateway that runs, and counts its own heartbeats (gateway.store.gateways.gateways)."""

    __tablename__ = "gateways"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    beat: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[datetime]
