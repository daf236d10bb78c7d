"""Lists in pages, in the two shapes that Twilio's APIs have."""

from __future__ import annotations

from typing import Any

from aiohttp import web

Row = dict[str, Any]
ACCOUNT: web.RequestKey[str] = web.RequestKey("account", str)
"""The account that a request is authenticated for."""


def old_page(request: web.Request, key: str, rows: list[Row]) -> web.Response:
    """Return a page of api.twilio.com: it has the path of the next page."""
    part, following = _cut(request, rows)
    return web.json_response({key: part, "next_page_uri": following, "page": 0})


def page(request: web.Request, key: str, rows: list[Row]) -> web.Response:
    """Return a page of the newer APIs: ``meta`` has the list's key and the next page's URL."""
    part, following = _cut(request, rows)
    url = None if following is None else f"{request.url.origin()}{following}"
    return web.json_response({key: part, "meta": {"key": key, "next_page_url": url}})


def _cut(request: web.Request, rows: list[Row]) -> tuple[list[Row], str | None]:
    """Return the requested page, and the path of the next one."""
    number, size = int(request.query.get("Page", 0)), int(request.query.get("PageSize", 50))
    query = {**request.query, "Page": str(number + 1)}
    more = len(rows) > (number + 1) * size
    part = rows[number * size : (number + 1) * size]
    return part, str(request.rel_url.with_query(query)) if more else None
