"""``/api/v1/phone-numbers``: attach numbers, give them to agents, find and buy new ones."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from core.errors import Forbidden
from core.models import PhoneNumber
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
    """Take up a number that you have: with Twilio, or from any SIP trunk.

    Makes the inbound trunk and the dispatch rule in LiveKit; a Twilio number is pointed at
    SIP_PUBLIC_ADDRESS, any other has to be sent there by its carrier. Nothing proves that a tenant
    has a number of provider sip: it is ``pending`` until an operator approves it, unless
    SIP_NUMBERS_NEED_APPROVAL is false.
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

    Several tenants may claim one number; it becomes the one's that is approved.
    """
    if request[PRINCIPAL].auth_id is not None:
        # Before anything is looked up: the answer is the same for every id.
        raise Forbidden("Only an operator approves numbers", code="OPERATOR_REQUIRED")
    number = await request.app[NUMBER_SERVICE].approve(request.match_info["id"])
    return web.json_response(await _shown(request, number, "Number approved and attached"))


async def change(request: web.Request) -> web.StreamResponse:
    """Give the number to another agent, or to none; say which way it takes calls.

    Counts for the next call.
    """
    body = await parse_body(request, ChangeRequest)
    number = await request.app[NUMBER_SERVICE].change(
        scope_of(request), request.match_info["id"], body.model_dump(exclude_unset=True)
    )
    return web.json_response(await _shown(request, number, "Number changed"))


async def remove(request: web.Request) -> web.StreamResponse:
    """Detach it. At Twilio it is answered as it was before it was attached."""
    number, released = await request.app[NUMBER_SERVICE].remove(
        scope_of(request), request.match_info["id"], release=False
    )
    return envelope(NumberGone.of(number, released=released), "Number detached").response()


async def available(request: web.Request) -> web.StreamResponse:
    """Local numbers for voice that your Twilio account can buy."""
    query = parse_query(request, AvailableQuery)
    found = await request.app[NUMBER_SERVICE].available(
        scope_of(request), query.search(), query.credentials_ref
    )
    return envelope(found).response()


async def buy(request: web.Request) -> web.StreamResponse:
    """Buy a number in your Twilio account, and attach it.

    What fails half-way is undone: the number is released again.
    """
    body = await parse_body(request, BuyRequest)

    async def effect() -> dict[str, Any]:
        number = await request.app[NUMBER_SERVICE].buy(
            scope_of(request),
            body.search(),
            phone_number=body.phone_number,
            credentials_ref=body.credentials_ref,
            agent_id=body.agent_id,
        )
        return await _shown(request, number, "Number bought and attached")

    return await once(request, request.app[STORE], request[PRINCIPAL], body, effect, status=201)


async def _shown(request: web.Request, number: PhoneNumber, message: str = "OK") -> dict[str, Any]:
    names = await request.app[NUMBER_SERVICE].credential_names(number)
    return envelope(NumberView.of(number, names), message).wire()


_TAG = "Phone numbers"
ID = "{id:(?!(?:attach|available|buy)$)[^/]+}"
"""Paths of their own are not ids, for methods that they do not serve."""
_STORE = (503, "STORE_UNAVAILABLE")
NOT_FOUND = (404, "NUMBER_NOT_FOUND")
NO_AGENT = (404, "AGENT_NOT_FOUND")
BUSY = (409, "NUMBER_BUSY")
READING = (NOT_FOUND, _STORE)
LIVEKIT_FAULTS = (
    (500, "LIVEKIT_NOT_CONFIGURED"),
    (500, "LIVEKIT_ERROR"),
    (503, "LIVEKIT_UNAVAILABLE"),
    (503, "UNAVAILABLE"),
    _STORE,
)
PROVIDER_FAULTS = (
    (404, "CREDENTIAL_NOT_FOUND"),
    (422, "CREDENTIAL_REFUSED"),
    (422, "PROVIDER_REFUSED"),
    (500, "CREDENTIAL_UNREADABLE"),
    (503, "PROVIDER_UNAVAILABLE"),
)
SEARCHING = ((409, "CREDENTIAL_REQUIRED"), *PROVIDER_FAULTS, _STORE)
ATTACHING = (
    NO_AGENT,
    (409, "NUMBER_ATTACHED"),
    BUSY,
    (409, "NUMBER_UNAVAILABLE"),
    (409, "TRUNK_CONFLICT"),
    (409, "SIP_ADDRESS_NOT_CONFIGURED"),
    *PROVIDER_FAULTS,
    *LIVEKIT_FAULTS,
)
BUYING = ((409, "CREDENTIAL_REQUIRED"), *ATTACHING)
DETACHING = (NOT_FOUND, BUSY, (503, "PROVIDER_UNAVAILABLE"), *LIVEKIT_FAULTS)

ROUTES: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/api/v1/phone-numbers/attach",
        handler=attach,
        summary="Attach a number",
        tag=_TAG,
        body=AttachRequest,
        answer=Envelope[NumberView],
        status=201,
        errors=((422, "NUMBER_NOT_IN_ACCOUNT"), (429, "PENDING_LIMIT"), *ATTACHING),
        idempotent=True,
    ),
    Route(
        method="GET",
        path="/api/v1/phone-numbers",
        handler=index,
        summary="List numbers, newest first",
        tag=_TAG,
        query=NumberPage,
        answer=Envelope[list[NumberView]],
        errors=(_STORE,),
    ),
    Route(
        method="GET",
        path="/api/v1/phone-numbers/available",
        handler=available,
        summary="Numbers that can be bought",
        tag=_TAG,
        query=AvailableQuery,
        answer=Envelope[list[AvailableNumber]],
        errors=SEARCHING,
    ),
    Route(
        method="POST",
        path="/api/v1/phone-numbers/buy",
        handler=buy,
        summary="Buy a number and attach it",
        tag=_TAG,
        body=BuyRequest,
        answer=Envelope[NumberView],
        status=201,
        errors=BUYING,
        idempotent=True,
    ),
    Route(
        method="GET",
        path=f"/api/v1/phone-numbers/{ID}",
        handler=show,
        summary="One number",
        tag=_TAG,
        answer=Envelope[NumberView],
        errors=READING,
    ),
    Route(
        method="POST",
        path=f"/api/v1/phone-numbers/{ID}/approve",
        handler=approve,
        summary="Approve a tenant's number (operators)",
        tag=_TAG,
        answer=Envelope[NumberView],
        errors=(
            (403, "OPERATOR_REQUIRED"),
            NO_AGENT,
            (409, "NUMBER_ATTACHED"),
            BUSY,
            (409, "TRUNK_CONFLICT"),
            (500, "CREDENTIAL_UNREADABLE"),
            (503, "PROVIDER_UNAVAILABLE"),
            NOT_FOUND,
            *LIVEKIT_FAULTS,
        ),
    ),
    Route(
        method="PATCH",
        path=f"/api/v1/phone-numbers/{ID}",
        handler=change,
        summary="Give a number to another agent; change its direction",
        tag=_TAG,
        body=ChangeRequest,
        answer=Envelope[NumberView],
        errors=(NO_AGENT, BUSY, *READING),
    ),
    Route(
        method="DELETE",
        path=f"/api/v1/phone-numbers/{ID}",
        handler=remove,
        summary="Detach a number",
        tag=_TAG,
        answer=Envelope[NumberGone],
        errors=DETACHING,
    ),
)
