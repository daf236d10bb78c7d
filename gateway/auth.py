"""Who is asking: the principal of a request."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Principal:
    """``auth_id`` is the tenant; None is an unscoped operator, or nobody where auth is off."""

    auth_id: str | None


PRINCIPAL: web.RequestKey[Principal] = web.RequestKey("principal", Principal)
