"""The authenticated principal of a request."""

from __future__ import annotations

from aiohttp import web

from gateway.store.database import Principal, Scope

PRINCIPAL: web.RequestKey[Principal] = web.RequestKey("principal", Principal)


def scope_of(request: web.Request) -> Scope:
    """Return the scope of rows that this request may see."""
    return Scope(request[PRINCIPAL].auth_id)
