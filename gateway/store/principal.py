"""Who is asking, as the stores and the calls see them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """``auth_id`` is the tenant; None is an unscoped operator, or nobody where auth is off."""

    auth_id: str | None
    expires_at: int | None = None
    """When its token does, in seconds since 1970; None: never, as API secrets."""
