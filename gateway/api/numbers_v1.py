"""``/v1/numbers``, and the numbers of ``/v1/agents``: the paths of the agentphone clients."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gateway.api import faults
from gateway.api.number_models import (
    UNSERVED,
    AvailableList,
    AvailableQuery,
    Binding,
    BindRequest,
    NumberCreate,
    NumberGone,
    NumberList,
    NumberView,
)
from gateway.api.numbers import ID
from gateway.http.body import parse_body, parse_query
from gateway.http.idempotency import once
from gateway.http.paging import Page
from gateway.http.principal import PRINCIPAL, scope_of
from gateway.http.route import Route
from gateway.keys import NUMBER_SERVICE, STORE


async def create(request: web.Request) -> web.StreamResponse:
    """Buy a number in your Twilio account, and attach it for both directions.

    The account is the one of ``credentialsRef``, or the only Twilio credential you have.
    """
    body = await parse_body(request, NumberCreate, ignored=UNSERVED)

    async def effect() -> dict[str, Any]:
        service = request.app[NUMBER_SERVICE]
        number = await service.buy(
            scope_of(request),
            body.search(),
            phone_number=body.phone_number,
            credentials_ref=body.credentials_ref,
            agent_id=body.agent_id,
            record=body.record,
        )
        return NumberView.of(number, await service.credential_names(number)).wire()

    return await once(request, request.app[STORE], request[PRINCIPAL], body, effect)


async def index(request: web.Request) -> web.StreamResponse:
    query = parse_query(request, Page)
    service = request.app[NUMBER_SERVICE]
    numbers, total = await service.page(scope_of(request), limit=query.limit, offset=query.offset)
    names = await service.credential_names(*numbers)
    views = [NumberView.of(number, names) for number in numbers]
    return web.json_response(NumberList.of(views, total, query).wire())


async def available(request: web.Request) -> web.StreamResponse:
    """List local voice numbers that your Twilio account can buy."""
    query = parse_query(request, AvailableQuery)
    found = await request.app[NUMBER_SERVICE].available(
        scope_of(request), query.search(), query.credentials_ref
    )
    return web.json_response(AvailableList(data=found).wire())


async def show(request: web.Request) -> web.StreamResponse:
    service = request.app[NUMBER_SERVICE]
    number = await service.get(scope_of(request), request.match_info["id"])
    view = NumberView.of(number, await service.credential_names(number))
    return web.json_response(view.wire())


async def remove(request: web.Request) -> web.StreamResponse:
    """Release for good a number that was bought here. An attached number is only detached."""
    number, released = await request.app[NUMBER_SERVICE].remove(
        scope_of(request), request.match_info["id"], release=True
    )
    return web.json_response(NumberGone.of(number, released=released).wire())


async def bind(request: web.Request) -> web.StreamResponse:
    """Bind the number to this agent, and unbind it from any other."""
    body = await parse_body(request, BindRequest)
    agent_id = request.match_info["id"]

    async def effect() -> dict[str, Any]:
        number = await request.app[NUMBER_SERVICE].bind(scope_of(request), body.number_id, agent_id)
        return Binding.of(agent_id, number).wire()

    return await once(request, request.app[STORE], request[PRINCIPAL], body, effect)


async def unbind(request: web.Request) -> web.StreamResponse:
    """Unbind the number; it stays attached, but no agent answers it."""
    agent_id = request.match_info["id"]
    number = await request.app[NUMBER_SERVICE].unbind(
        scope_of(request), request.match_info["number_id"], agent_id
    )
    return web.json_response(Binding.of(agent_id, number).wire())


ROUTES: tuple[Route, ...] = (
    Route(
        "GET /v1/numbers",
        index,
        "List numbers, newest first",
        query=Page,
        answer=NumberList,
        errors=(faults.STORE,),
    ),
    Route(
        "POST /v1/numbers",
        create,
        "Buy a number and attach it",
        body=NumberCreate,
        answer=NumberView,
        errors=faults.NUMBER_BUY,
        idempotent=True,
    ),
    Route(
        "GET /v1/numbers/available",
        available,
        "Numbers that can be bought",
        query=AvailableQuery,
        answer=AvailableList,
        errors=faults.NUMBER_SEARCH,
    ),
    Route(
        f"GET /v1/numbers/{ID}",
        show,
        "One number",
        answer=NumberView,
        errors=(faults.NO_NUMBER, faults.STORE),
    ),
    Route(
        f"DELETE /v1/numbers/{ID}",
        remove,
        "Release or detach a number",
        answer=NumberGone,
        errors=faults.NUMBER_DETACH,
    ),
    Route(
        "POST /v1/agents/{id}/numbers",
        bind,
        "Give a number to an agent",
        body=BindRequest,
        answer=Binding,
        errors=faults.NUMBER_BIND,
        idempotent=True,
    ),
    Route(
        "DELETE /v1/agents/{id}/numbers/{number_id}",
        unbind,
        "Take a number from an agent",
        answer=Binding,
        errors=faults.NUMBER_BIND,
    ),
)
