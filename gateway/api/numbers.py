"""``/api/v1/phone-numbers``: attach numbers, bind them to agents, search and buy new ones."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from core.errors import Forbidden
from core.models import PhoneNumber
from gateway.api import faults
from gateway.api.number_models import (
    AttachRequest,
    AvailableQuery,
    BuyRequest,
    ChangeRequest,
    NumberGone,
    NumberPage,
    NumberView,
)
from gateway.http.body import parse_body, parse_query
from gateway.http.envelope import Envelope, envelope, page
from gateway.http.idempotency import once
from gateway.http.principal import PRINCIPAL, scope_of
from gateway.http.route import Route
from gateway.keys import NUMBER_SERVICE, STORE
from gateway.numbers.twilio import AvailableNumber


async def attach(request: web.Request) -> web.StreamResponse:
    """Attach a number that you already have, from Twilio or any SIP trunk.

    Creates the inbound trunk and the dispatch rule in LiveKit. A Twilio number is pointed at
    SIP_PUBLIC_ADDRESS; any other number's carrier has to send its calls there. With ``via: stream``
    a Twilio number is pointed at PUBLIC_URL instead, without a trunk and a rule. Nothing proves
    that a tenant owns a number of provider sip, so it stays ``pending`` until an operator approves
    it, unless SIP_NUMBERS_NEED_APPROVAL is false.
    """
    body = await parse_body(request, AttachRequest)

    async def effect() -> dict[str, Any]:
        number = await request.app[NUMBER_SERVICE].attach(scope_of(request), **body.model_dump())
        waits = number.status == "pending"
        told = "The number waits for an operator's approval" if waits else "Number attached"
        return await _shown(request, number, told)

    return await once(request, request.app[STORE], request[PRINCIPAL], body, effect, status=201)


async def index(request: web.Request) -> web.StreamResponse:
    query = parse_query(request, NumberPage)
    service = request.app[NUMBER_SERVICE]
    numbers, total = await service.page(
        scope_of(request), limit=query.limit, offset=query.offset, status=query.status
    )
    names = await service.credential_names(*numbers)
    views = [NumberView.of(number, names) for number in numbers]
    return page(views, total, limit=query.limit, offset=query.offset).response()


async def show(request: web.Request) -> web.StreamResponse:
    number = await request.app[NUMBER_SERVICE].get(scope_of(request), request.match_info["id"])
    return web.json_response(await _shown(request, number))


async def approve(request: web.Request) -> web.StreamResponse:
    """For operators (a token that names no tenant): attach a number that a tenant has claimed.

    Several tenants may claim the same number; it goes to the one whose claim is approved.
    """
    if request[PRINCIPAL].auth_id is not None:
        # Before any lookup, so that the answer is the same for every id.
        raise Forbidden("Only an operator approves numbers", code="OPERATOR_REQUIRED")
    number = await request.app[NUMBER_SERVICE].approve(request.match_info["id"])
    return web.json_response(await _shown(request, number, "Number approved and attached"))


async def change(request: web.Request) -> web.StreamResponse:
    """Bind the number to another agent, or to none; set the direction of its calls, and whether
    they are recorded; switch a Twilio number between SIP and streams.

    Applies from the next call on. If one change fails, none is made.
    """
    body = await parse_body(request, ChangeRequest)
    number = await request.app[NUMBER_SERVICE].change(
        scope_of(request), request.match_info["id"], body.model_dump(exclude_unset=True)
    )
    return web.json_response(await _shown(request, number, "Number changed"))


async def remove(request: web.Request) -> web.StreamResponse:
    """Detach the number. At Twilio, its previous call routing is restored."""
    number, released = await request.app[NUMBER_SERVICE].remove(
        scope_of(request), request.match_info["id"], release=False
    )
    return envelope(NumberGone.of(number, released=released), "Number detached").response()


async def available(request: web.Request) -> web.StreamResponse:
    """List local voice numbers that your Twilio account can buy."""
    query = parse_query(request, AvailableQuery)
    found = await request.app[NUMBER_SERVICE].available(
        scope_of(request), query.search(), query.credentials_ref
    )
    return envelope(found).response()


async def buy(request: web.Request) -> web.StreamResponse:
    """Buy a number in your Twilio account, and attach it.

    If attaching fails, the number is released again.
    """
    body = await parse_body(request, BuyRequest)

    async def effect() -> dict[str, Any]:
        number = await request.app[NUMBER_SERVICE].buy(
            scope_of(request),
            body.search(),
            phone_number=body.phone_number,
            credentials_ref=body.credentials_ref,
            agent_id=body.agent_id,
            via=body.via,
            record=body.record,
        )
        return await _shown(request, number, "Number bought and attached")

    return await once(request, request.app[STORE], request[PRINCIPAL], body, effect, status=201)


async def _shown(request: web.Request, number: PhoneNumber, message: str = "OK") -> dict[str, Any]:
    names = await request.app[NUMBER_SERVICE].credential_names(number)
    return envelope(NumberView.of(number, names), message).wire()


ID = "{id:(?!(?:attach|available|buy)$)[^/]+}"
"""An id; it excludes the names of other paths, so that their wrong methods match no id."""

ROUTES: tuple[Route, ...] = (
    Route(
        "POST /api/v1/phone-numbers/attach",
        attach,
        "Attach a number",
        body=AttachRequest,
        answer=Envelope[NumberView],
        status=201,
        errors=(faults.NOT_IN_ACCOUNT, (429, "PENDING_LIMIT"), *faults.NUMBER_ATTACH),
        idempotent=True,
    ),
    Route(
        "GET /api/v1/phone-numbers",
        index,
        "List numbers, newest first",
        query=NumberPage,
        answer=Envelope[list[NumberView]],
        errors=(faults.STORE,),
    ),
    Route(
        "GET /api/v1/phone-numbers/available",
        available,
        "Numbers that can be bought",
        query=AvailableQuery,
        answer=Envelope[list[AvailableNumber]],
        errors=faults.NUMBER_SEARCH,
    ),
    Route(
        "POST /api/v1/phone-numbers/buy",
        buy,
        "Buy a number and attach it",
        body=BuyRequest,
        answer=Envelope[NumberView],
        status=201,
        errors=faults.NUMBER_BUY,
        idempotent=True,
    ),
    Route(
        f"GET /api/v1/phone-numbers/{ID}",
        show,
        "One number",
        answer=Envelope[NumberView],
        errors=(faults.NO_NUMBER, faults.STORE),
    ),
    Route(
        f"POST /api/v1/phone-numbers/{ID}/approve",
        approve,
        "Approve a tenant's number (operators)",
        answer=Envelope[NumberView],
        errors=(
            (403, "OPERATOR_REQUIRED"),
            faults.NO_AGENT,
            faults.NUMBER_ATTACHED,
            faults.NUMBER_BUSY,
            faults.TRUNK_CONFLICT,
            faults.CREDENTIAL_UNREADABLE,
            faults.PROVIDER_UNAVAILABLE,
            faults.NO_NUMBER,
            *faults.SIP_OBJECTS,
        ),
    ),
    Route(
        f"PATCH /api/v1/phone-numbers/{ID}",
        change,
        "Give a number to another agent; change its direction or record; switch it",
        body=ChangeRequest,
        answer=Envelope[NumberView],
        errors=faults.NUMBER_CHANGE,
    ),
    Route(
        f"DELETE /api/v1/phone-numbers/{ID}",
        remove,
        "Detach a number",
        answer=Envelope[NumberGone],
        errors=faults.NUMBER_DETACH,
    ),
)
