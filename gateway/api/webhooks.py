"""``/v1/webhooks`` and ``/v1/agents/{id}/webhook``: endpoints of events, and their deliveries.

An agent's webhook replaces the project's for the agent's calls: each event goes to one of them,
never to both.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import timedelta
from typing import Any

from aiohttp import web
from pydantic import RootModel

from core.errors import Conflict, Detail, NotFound, ServerFault
from core.models import new_id, now
from core.url_guard import UrlRefused, check_url
from gateway.api import faults
from gateway.api.webhook_models import (
    DEFAULT_CONTEXT_LIMIT,
    DEFAULT_TIMEOUT_S,
    AllTime,
    DeliveryLimit,
    DeliveryList,
    DeliveryPage,
    DeliveryQuery,
    DeliveryView,
    Done,
    Stats,
    StatsQuery,
    TestMessage,
    TestQuery,
    TestResult,
    WebhookOrNull,
    WebhookSet,
    WebhookView,
)
from gateway.http.body import invalid, parse_body, parse_query
from gateway.http.idempotency import once, replayed
from gateway.http.principal import PRINCIPAL, scope_of
from gateway.http.route import Route
from gateway.keys import (
    AGENT_STORE,
    AGENTS,
    DELIVERIES,
    OUTBOX,
    SETTINGS,
    STORE,
    VAULT,
    WEBHOOK_SENDER,
    WEBHOOKS,
)
from gateway.store.credentials import Unreadable
from gateway.store.deliveries import DeliveryStatus
from gateway.store.outbox import NoEndpoint, Pending
from gateway.store.webhooks import PROJECT, WebhookEndpoint
from gateway.webhooks.payload import render_test


async def put_project(request: web.Request) -> web.StreamResponse:
    """Set the webhook or change it. Each request creates a new secret and revokes the old one."""
    return await _put(request, _owner(request), PROJECT)


async def show_project(request: web.Request) -> web.StreamResponse:
    """Return null if none is set."""
    return await _show(request, _owner(request), PROJECT)


async def delete_project(request: web.Request) -> web.StreamResponse:
    """Remove the webhook. Its pending deliveries fail."""
    return await _delete(request, _owner(request), PROJECT)


async def put_agents(request: web.Request) -> web.StreamResponse:
    """The agent's events go here instead of the project's webhook. A new secret each time."""
    return await _put(request, *await _agent(request, request.match_info["id"]))


async def show_agents(request: web.Request) -> web.StreamResponse:
    """Return null if the agent has no webhook of its own."""
    return await _show(request, *await _agent(request, request.match_info["id"]))


async def delete_agents(request: web.Request) -> web.StreamResponse:
    """Remove the webhook. The agent's later events go to the project's webhook, if set."""
    return await _delete(request, *await _agent(request, request.match_info["id"]))


async def test_project(request: web.Request) -> web.StreamResponse:
    """Send a made-up message to the project's webhook now, in one attempt."""
    agent_id = parse_query(request, TestQuery).agent_id
    if agent_id is not None:
        await _agent(request, agent_id)
    return await _test(request, _owner(request), PROJECT, agent_id)


async def test_agents(request: web.Request) -> web.StreamResponse:
    """Send a made-up message to the agent's own webhook now, in one attempt."""
    owner, agent_id = await _agent(request, request.match_info["id"])
    return await _test(request, owner, agent_id, agent_id)


async def deliveries(request: web.Request) -> web.StreamResponse:
    """List the deliveries to all the tenant's webhooks."""
    query = parse_query(request, DeliveryQuery)
    since = None if query.hours is None else now() - timedelta(hours=query.hours)
    found, total = await request.app[DELIVERIES].page(
        _visible(request), limit=query.limit, offset=query.offset, since=since
    )
    return web.json_response(DeliveryPage.of(found, total, query).wire())


async def deliveries_of_agent(request: web.Request) -> web.StreamResponse:
    """List the deliveries to the agent's own webhook."""
    query = parse_query(request, DeliveryLimit)
    owner, agent_id = await _agent(request, request.match_info["id"])
    endpoint = await _endpoint(request, owner, agent_id)
    if endpoint is None:
        return web.json_response([])
    found, _ = await request.app[DELIVERIES].page(
        owner, limit=query.limit, offset=0, endpoint_id=endpoint.id
    )
    return web.json_response([DeliveryView.of(delivery).wire() for delivery in found])


async def stats(request: web.Request) -> web.StreamResponse:
    since = now() - timedelta(hours=parse_query(request, StatsQuery).hours)
    counted = await request.app[DELIVERIES].counts(_visible(request), since)
    return web.json_response(Stats.made_of(counted).wire())


async def all_time(request: web.Request) -> web.StreamResponse:
    """Finished deliveries are kept for 30 days."""
    counted: Counter[DeliveryStatus] = Counter()
    for _, _, status, number in await request.app[DELIVERIES].counts(_visible(request)):
        counted[status] += number
    return web.json_response(AllTime.of(counted).wire())


async def replay(request: web.Request) -> web.StreamResponse:
    """Send the same body under the same id again, to the webhook that now gets such events.

    It gets as many new attempts as a new delivery, on top of those already made.
    """
    delivery_id = request.match_info["id"]

    async def effect() -> dict[str, Any]:
        try:
            delivery = await request.app[OUTBOX].replay(_visible(request), delivery_id)
        except Pending:
            raise Conflict("The delivery is still in progress", code="DELIVERY_PENDING") from None
        except NoEndpoint:
            raise Conflict("The delivery's webhook no longer exists", code="NO_WEBHOOK") from None
        if delivery is None:
            raise NotFound("Delivery not found", code="DELIVERY_NOT_FOUND")
        return DeliveryView.of(delivery).wire()

    # There is no body; the idempotency key is tied to the path.
    nothing = RootModel[None](None)
    return await once(request, request.app[STORE], request[PRINCIPAL], nothing, effect, status=202)


async def _put(request: web.Request, owner: str, agent_id: str) -> web.Response:
    body = await parse_body(request, WebhookSet)
    if not request.app[SETTINGS].webhook_allow_private:
        try:
            check_url(body.url)
        except UrlRefused as refused:
            fault = Detail("url", str(refused), "url_refused")
            raise invalid([fault], request.path) from None
    limit, timeout = body.context_limit, body.timeout
    vault = request.app[VAULT]

    async def effect() -> dict[str, Any]:
        endpoint = await request.app[WEBHOOKS].put(
            owner,
            agent_id,
            url=body.url,
            context_limit=DEFAULT_CONTEXT_LIMIT if limit is None else limit,
            timeout_s=DEFAULT_TIMEOUT_S if timeout is None else timeout,
        )
        view = WebhookView.of(endpoint).wire()
        # The response is stored for repetitions of the request, so the secret is sealed.
        return view | {"secret": vault.seal({"secret": view["secret"]})}

    sealed = await once(request, request.app[STORE], request[PRINCIPAL], body, effect)
    answer = json.loads(sealed.text or "")
    try:
        answer |= vault.open(answer["secret"])
    except Unreadable:  # a repetition after the key was removed
        raise _unreadable() from None
    return web.json_response(answer, headers=replayed(sealed))


async def _show(request: web.Request, owner: str, agent_id: str) -> web.Response:
    endpoint = await _endpoint(request, owner, agent_id)
    return web.json_response(None if endpoint is None else WebhookView.of(endpoint).wire())


async def _delete(request: web.Request, owner: str, agent_id: str) -> web.Response:
    if not await request.app[WEBHOOKS].delete(owner, agent_id):
        raise _no_webhook()
    return web.json_response(Done().wire())


async def _test(
    request: web.Request, owner: str, hook_agent: str, agent_id: str | None
) -> web.Response:
    message = TestMessage()
    if request.can_read_body:
        message = await parse_body(request, TestMessage)
    endpoint = await _endpoint(request, owner, hook_agent)
    if endpoint is None:
        raise _no_webhook()
    data = {
        "callId": new_id("call"),
        "numberId": None,
        "from": message.from_ or "+15550100001",
        "to": message.to or "+15550100002",
        "status": "in-progress",
        "transcript": message.message or "This is a test of your webhook.",
        "confidence": 1.0,
        "direction": "inbound",
    }
    sender = request.app[WEBHOOK_SENDER]
    delivery = await request.app[OUTBOX].add_leased(
        owner,
        endpoint.id,
        agent_id,
        "agent.message",
        render_test(now(), agent_id, data),
        sender.lease,
    )
    done = await sender.send_now(delivery, endpoint) or delivery
    result = TestResult(success=done.status == "success", delivery=DeliveryView.of(done))
    return web.json_response(result.wire())


async def _endpoint(request: web.Request, owner: str, agent_id: str) -> WebhookEndpoint | None:
    try:
        return await request.app[WEBHOOKS].get(owner, agent_id)
    except Unreadable:
        raise _unreadable() from None


async def _agent(request: web.Request, agent_id: str) -> tuple[str, str]:
    """Return the owner of the agent's webhook, and the agent's id. Raises NotFound."""
    scope = scope_of(request)
    record = await request.app[AGENT_STORE].get(scope, agent_id)
    if record is not None:
        return record.auth_id or "", agent_id
    # File agents are available to every tenant; each has its own webhook for them.
    await request.app[AGENTS].require(scope, agent_id)
    return _owner(request), agent_id


def _owner(request: web.Request) -> str:
    return request[PRINCIPAL].auth_id or ""


def _visible(request: web.Request) -> str | None:
    """Return the tenant whose deliveries may be seen; None, for operators: every tenant's."""
    return request[PRINCIPAL].auth_id


def _unreadable() -> ServerFault:
    return ServerFault(
        "The webhook's secret cannot be read; set the webhook again", code="SECRET_UNREADABLE"
    )


def _no_webhook() -> NotFound:
    return NotFound("No webhook is set", code="WEBHOOK_NOT_FOUND")


_UNREADABLE = (500, "SECRET_UNREADABLE")
_AGENT = (faults.NO_AGENT, faults.STORE)
_NO_WEBHOOK = (404, "WEBHOOK_NOT_FOUND")

ROUTES: tuple[Route, ...] = (
    Route(
        "POST /v1/webhooks",
        put_project,
        "Set the project's webhook",
        body=WebhookSet,
        answer=WebhookView,
        errors=(faults.STORE, _UNREADABLE),
        idempotent=True,
    ),
    Route(
        "GET /v1/webhooks",
        show_project,
        "The project's webhook, with its secret",
        answer=WebhookOrNull,
        errors=(faults.STORE, _UNREADABLE),
    ),
    Route(
        "DELETE /v1/webhooks",
        delete_project,
        "Remove the project's webhook",
        answer=Done,
        errors=(_NO_WEBHOOK, faults.STORE),
    ),
    Route(
        "POST /v1/webhooks/test",
        test_project,
        "Send a test event to the project's webhook",
        body=TestMessage,
        body_required=False,
        query=TestQuery,
        answer=TestResult,
        errors=(*_AGENT, _NO_WEBHOOK, _UNREADABLE),
    ),
    Route(
        "GET /v1/webhooks/deliveries",
        deliveries,
        "Deliveries, newest first",
        query=DeliveryQuery,
        answer=DeliveryPage,
        errors=(faults.STORE,),
    ),
    Route(
        "GET /v1/webhooks/deliveries/stats",
        stats,
        "Delivery statistics of the last hours",
        query=StatsQuery,
        answer=Stats,
        errors=(faults.STORE,),
    ),
    Route(
        "GET /v1/webhooks/deliveries/all-time",
        all_time,
        "Delivery statistics since the beginning",
        answer=AllTime,
        errors=(faults.STORE,),
    ),
    Route(
        "POST /v1/webhooks/deliveries/{id}/replay",
        replay,
        "Deliver again",
        answer=DeliveryView,
        status=202,
        errors=(
            (404, "DELIVERY_NOT_FOUND"),
            (409, "DELIVERY_PENDING"),
            (409, "NO_WEBHOOK"),
            faults.STORE,
        ),
        idempotent=True,
    ),
    Route(
        "POST /v1/agents/{id}/webhook",
        put_agents,
        "Set an agent's own webhook",
        body=WebhookSet,
        answer=WebhookView,
        errors=(*_AGENT, _UNREADABLE),
        idempotent=True,
    ),
    Route(
        "GET /v1/agents/{id}/webhook",
        show_agents,
        "An agent's own webhook, with its secret",
        answer=WebhookOrNull,
        errors=(*_AGENT, _UNREADABLE),
    ),
    Route(
        "DELETE /v1/agents/{id}/webhook",
        delete_agents,
        "Remove an agent's own webhook",
        answer=Done,
        errors=(*_AGENT, _NO_WEBHOOK),
    ),
    Route(
        "POST /v1/agents/{id}/webhook/test",
        test_agents,
        "Send a test event to an agent's own webhook",
        body=TestMessage,
        body_required=False,
        answer=TestResult,
        errors=(*_AGENT, _NO_WEBHOOK, _UNREADABLE),
    ),
    Route(
        "GET /v1/agents/{id}/webhook/deliveries",
        deliveries_of_agent,
        "Deliveries to an agent's own webhook, newest first",
        query=DeliveryLimit,
        answer=DeliveryList,
        errors=(*_AGENT, _UNREADABLE),
    ),
)
