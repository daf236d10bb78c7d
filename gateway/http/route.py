"""A route: its path and handler, and its description for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import KW_ONLY, dataclass, replace

from aiohttp import web
from pydantic import BaseModel

Fault = tuple[int, str]
"""Status and code of an error that a route may answer with."""
Faults = tuple[Fault, ...]

WEBSOCKET = "websocket"
"""``content`` of a route whose response is a WebSocket; its ``status`` is 101."""


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the API's table of contents.

    ``errors`` are those beyond what every route may answer.
    ``public`` routes need no Authorization; ``internal`` ones check a token of
    their own and are left out of the OpenAPI document.
    """

    endpoint: str
    """Method and path, in aiohttp's syntax: ``GET /v1/calls/{id}``."""
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    summary: str
    _: KW_ONLY
    tag: str = ""
    """The chapter of the OpenAPI document."""
    body: type[BaseModel] | None = None
    body_required: bool = True
    query: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    status: int = 200
    content: str = "application/json"
    also: tuple[str, ...] = ()
    """Other types of text in which a client may have the response."""
    errors: Faults = ()
    public: bool = False
    internal: bool = False
    linked: bool = False
    """Takes the token of a link (``?token=``) instead of Authorization: the handler checks it."""
    signed_forms: bool = False
    """Takes forms, too, which need no Authorization: the handler checks their signature."""
    idempotent: bool = False
    """Honours ``Idempotency-Key``."""

    @property
    def method(self) -> str:
        return self.endpoint.partition(" ")[0]

    @property
    def path(self) -> str:
        return self.endpoint.partition(" ")[2]


def chapter(tag: str, *modules: Iterable[Route]) -> tuple[Route, ...]:
    """The routes of ``modules``, all with this tag."""
    return tuple(replace(route, tag=tag) for routes in modules for route in routes)


_ROUTES: web.AppKey[dict[web.AbstractRoute, Route]] = web.AppKey("routes")


def register(app: web.Application, routes: Iterable[Route]) -> None:
    """Serve ``routes``. GET routes answer HEAD too, except for streams, which have no end."""
    endless = {"text/event-stream", WEBSOCKET}
    known = app.setdefault(_ROUTES, {})
    for route in routes:
        methods = [route.method]
        if route.method == "GET" and route.content not in endless:
            methods.append("HEAD")
        for method in methods:
            added = app.router.add_route(
                method, route.path, route.handler, expect_handler=_expected_later
            )
            known[added] = route


def route_of(request: web.Request) -> Route | None:
    """Return the route that serves this request; None for a 404 or 405."""
    return request.app[_ROUTES].get(request.match_info.route)


async def _expected_later(_request: web.Request) -> None:
    """Do nothing: gateway.http.body sends ``100 Continue`` if an authenticated body is wanted."""
