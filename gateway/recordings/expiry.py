"""When a recording is deleted."""

from __future__ import annotations

from datetime import datetime, timedelta


def expiry(
    made_at: datetime, *, agent: int | None, tenant: int | None, default: int | None
) -> datetime | None:
    """Return when the recording of a call made then is deleted, by the days that each allows.

    The shorter of the agent's and the tenant's decides; the default is for those who say nothing.
    None: never.
    """
    said = [days for days in (agent, tenant) if days is not None]
    days = min(said) if said else default
    return None if days is None else made_at + timedelta(days=days)
