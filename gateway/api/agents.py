"""``/v1/agents``: agents and their versions. A change applies from the next call on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from core.errors import NotFound
from core.models import AgentConfig
from gateway.api import faults
from gateway.api.agent_models import (
    DEFAULT_VOICE,
    UNSERVED,
    AgentCreate,
    AgentDeleted,
    AgentList,
    AgentPatch,
    AgentView,
    Rollback,
    VersionList,
    VersionView,
    VoiceList,
    VoiceView,
    changed_config,
    check_tools,
)
from gateway.fields.agent_recording import faults_of
from gateway.http.body import invalid, parse_body, parse_query
from gateway.http.idempotency import once, replayed
from gateway.http.paging import Page
from gateway.http.principal import PRINCIPAL, scope_of
from gateway.http.route import Route
from gateway.keys import AGENT_STORE, AGENTS, NUMBERS, SETTINGS, STORE, VAULT
from gateway.store.agent_secrets import AgentSecrets, unreadable
from gateway.store.agents import AgentRecord, agent_not_found
from gateway.store.credentials import Unreadable


async def create(request: web.Request) -> web.StreamResponse:
    """Create an agent, at version 1."""
    body = await parse_body(request, AgentCreate, ignored=UNSERVED)
    await _check_tools(request, body)
    config = changed_config(body, None, request.path)
    _check_recording(request, config, scope_of(request).auth_id)

    async def effect() -> dict[str, Any]:
        record = await request.app[AGENT_STORE].create(scope_of(request), config)
        await request.app[AGENTS].warm(record.id)
        return AgentView.of(record, []).wire()

    return await _once(request, body, effect)


async def index(request: web.Request) -> web.StreamResponse:
    query, scope = parse_query(request, Page), scope_of(request)
    records, total = await request.app[AGENT_STORE].page(
        scope, limit=query.limit, offset=query.offset
    )
    numbers = await request.app[NUMBERS].of_agent(scope, *(record.id for record in records))
    views = [AgentView.of(record, numbers) for record in records]
    return web.json_response(AgentList.of(views, total, query).wire())


async def show(request: web.Request) -> web.StreamResponse:
    record = await request.app[AGENT_STORE].get(scope_of(request), request.match_info["id"])
    return web.json_response(await _view(request, record))


async def change(request: web.Request) -> web.StreamResponse:
    """Missing fields keep their value; null resets a field to its default.

    A change creates a new version, which applies from the next call on. A request that changes
    nothing creates none.
    """
    body = await parse_body(request, AgentPatch, ignored=UNSERVED)
    await _check_tools(request, body)
    store, scope, agent_id = request.app[AGENT_STORE], scope_of(request), request.match_info["id"]
    known = await store.get(scope, agent_id)
    if known is None:
        raise agent_not_found()

    def edit(before: AgentConfig) -> AgentConfig:
        config = changed_config(body, before, request.path)
        if _about_recordings(config) != _about_recordings(before):
            _check_recording(request, config, known.auth_id)
        return config

    record = await store.change(scope, agent_id, edit)
    await request.app[AGENTS].warm(agent_id)
    return web.json_response(await _view(request, record))


async def delete(request: web.Request) -> web.StreamResponse:
    """The agent's numbers are unbound and stay attached; the records of its calls are kept."""
    record = await request.app[AGENT_STORE].delete(scope_of(request), request.match_info["id"])
    if record is None:
        raise agent_not_found()
    gone = AgentDeleted(success=True, id=record.id, name=record.config.name)
    return web.json_response(gone.wire())


async def versions(request: web.Request) -> web.StreamResponse:
    query = parse_query(request, Page)
    found, total = await request.app[AGENT_STORE].versions(
        scope_of(request), request.match_info["id"], limit=query.limit, offset=query.offset
    )
    if total == 0:
        raise agent_not_found()
    views = [VersionView.of(version) for version in found]
    return web.json_response(VersionList.of(views, total, query).wire())


async def rollback(request: web.Request) -> web.StreamResponse:
    """Create a new version with the content of an old one."""
    body = await parse_body(request, Rollback)
    store, scope, agent_id = request.app[AGENT_STORE], scope_of(request), request.match_info["id"]

    async def effect() -> dict[str, Any]:
        known = await store.get(scope, agent_id)
        if known is None:
            raise agent_not_found()
        old = await store.version(scope, agent_id, body.version)
        if old is None:
            raise NotFound("The agent has no such version", code="VERSION_NOT_FOUND")
        _check_recording(request, old.config, known.auth_id)
        record = await store.change(scope, agent_id, lambda _: old.config)
        await request.app[AGENTS].warm(agent_id)
        return await _view(request, record)

    return await _once(request, body, effect)


async def voices(_request: web.Request) -> web.StreamResponse:
    """List the default voice. Any other voice id of the agent's TTS may be used as well."""
    default = VoiceView(
        id=DEFAULT_VOICE,
        name="Default",
        provider="cartesia",
        description="The default voice of the agent's tts; its other voices go by their own ids.",
    )
    return web.json_response(VoiceList(data=[default]).wire())


async def _check_tools(request: web.Request, body: Any) -> None:
    """Check the tools in a thread: twenty large schemas take seconds. Raises Unprocessable."""
    allow_private = request.app[SETTINGS].webhook_allow_private
    await asyncio.to_thread(check_tools, body, request.path, allow_private=allow_private)


def _about_recordings(config: AgentConfig) -> tuple[object, ...]:
    return config.recording, config.redaction, config.region


def _check_recording(request: web.Request, config: AgentConfig, auth_id: str | None) -> None:
    """Check what the agent's model cannot (gateway.fields.agent_recording). Raises Unprocessable.

    A change of other fields is not refused because the settings have changed.
    """
    settings = request.app[SETTINGS]
    if faults := faults_of(config, settings, settings.tenant_recordings(auth_id)):
        raise invalid(faults, request.path)


async def _once(
    request: web.Request, body: BaseModel, effect: Callable[[], Awaitable[dict[str, Any]]]
) -> web.Response:
    """Run ``once`` for an agent's view, whose secrets are stored sealed for repetitions."""
    secrets = AgentSecrets(request.app[VAULT])

    async def sealed() -> dict[str, Any]:
        return secrets.seal(await effect())

    kept = await once(request, request.app[STORE], request[PRINCIPAL], body, sealed)
    try:
        answer = secrets.open(json.loads(kept.text or ""))
    except Unreadable:  # a repetition after the key was removed
        raise unreadable() from None
    return web.json_response(answer, headers=replayed(kept))


async def _view(request: web.Request, record: AgentRecord | None) -> dict[str, Any]:
    """Return the agent with its numbers. Raises NotFound if ``record`` is None."""
    if record is None:
        raise agent_not_found()
    numbers = await request.app[NUMBERS].of_agent(scope_of(request), record.id)
    return AgentView.of(record, numbers).wire()


_STORED = (faults.CREDENTIAL_UNREADABLE, faults.STORE)
_KNOWN = (faults.NO_AGENT, *_STORED)

ROUTES: tuple[Route, ...] = (
    Route(
        "POST /v1/agents",
        create,
        "Create an agent",
        body=AgentCreate,
        answer=AgentView,
        errors=_STORED,
        idempotent=True,
    ),
    Route(
        "GET /v1/agents",
        index,
        "List agents, newest first",
        query=Page,
        answer=AgentList,
        errors=_STORED,
    ),
    Route("GET /v1/agents/voices", voices, "List the voices an agent can use", answer=VoiceList),
    Route(
        "GET /v1/agents/{id}", show, "One agent, with its numbers", answer=AgentView, errors=_KNOWN
    ),
    Route(
        "PATCH /v1/agents/{id}",
        change,
        "Change an agent",
        body=AgentPatch,
        answer=AgentView,
        errors=_KNOWN,
    ),
    Route(
        "DELETE /v1/agents/{id}",
        delete,
        "Delete an agent and its versions",
        answer=AgentDeleted,
        errors=_KNOWN,
    ),
    Route(
        "GET /v1/agents/{id}/versions",
        versions,
        "An agent's versions, newest first",
        query=Page,
        answer=VersionList,
        errors=_KNOWN,
    ),
    Route(
        "POST /v1/agents/{id}/rollback",
        rollback,
        "Make an old version the newest again",
        body=Rollback,
        answer=AgentView,
        errors=(*_KNOWN, (404, "VERSION_NOT_FOUND")),
        idempotent=True,
    ),
)
