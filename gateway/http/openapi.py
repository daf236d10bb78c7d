"""The OpenAPI 3.1 document, built from the list of routes and their models."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from core import __version__
from gateway.http.docs import page
from gateway.http.errors import TYPES, is_seed_path
from gateway.http.route import Route

Schema = dict[str, Any]
Refs = Mapping[Any, Schema]
"""References by (model, mode), as pydantic returns them."""

_REF = "#/components/schemas/{model}"
_DESCRIPTION = """\
Phone calls for AI voice agents, on LiveKit.

Every answer carries `X-Request-Id`; a request may bring its own. Paths and methods that do not
exist answer 404 and 405 without a token. Bodies are JSON of at most 1 MiB. Errors have a stable
`code` and a `message` for people; their shape depends on the path: flat under `/sip` and
`/livekit`, nested under `/v1`, an envelope under `/api/v1`.
"""
_IDEMPOTENCY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key and body within 24 h get the same answer, and one effect.",
    "schema": {"type": "string", "pattern": "^[ -~]{1,255}$"},
}
_DETAIL: Schema = {
    "type": "object",
    "required": ["field", "message", "type"],
    "properties": {name: {"type": "string"} for name in ("field", "message", "type")},
}
_DETAILS: Schema = {"type": "array", "items": {"$ref": _REF.format(model="ErrorDetail")}}
_TEXT: Schema = {"type": "string"}
_CALL: Schema = {"type": "string", "description": "`OUTCOME_UNKNOWN`: the call that was created."}
_EVENT: Schema = {
    "description": "One of the events.",
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": _TEXT,
        "id": _TEXT,
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
_TYPES = sorted({*TYPES.values(), "invalid_request_error", "api_error"})
_ERRORS: dict[str, Schema] = {
    "ErrorDetail": _DETAIL,
    "FlatError": {
        "type": "object",
        "required": ["error", "code"],
        "properties": {"error": _TEXT, "code": _TEXT, "details": _DETAILS, "call_id": _CALL},
    },
    "NestedError": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "code", "type", "details"],
                "properties": {
                    "message": _TEXT,
                    "code": _TEXT,
                    "type": {"enum": _TYPES},
                    "details": _DETAILS,
                    "callId": _CALL,
                },
            }
        },
    },
    "EnvelopeError": {
        "type": "object",
        "required": ["success", "data", "message", "meta"],
        "properties": {
            "success": {"const": False},
            "data": {"type": "null"},
            "message": _TEXT,
            "meta": {
                "type": "object",
                "required": ["code", "details"],
                "properties": {"code": _TEXT, "details": _DETAILS, "callId": _CALL},
            },
        },
    },
}


def build(routes: Sequence[Route], *, auth_required: bool = True) -> Schema:
    """Return the document of all routes that are not internal."""
    shown = [route for route in routes if not route.internal]
    refs, components = _schemas(shown)
    paths: defaultdict[str, Schema] = defaultdict(dict)
    for route in shown:
        paths[_path(route)][route.method.lower()] = _operation(route, refs, auth_required)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Switchroom", "version": __version__, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in shown)],
        "paths": dict(paths),
        "components": {
            "schemas": {**_ERRORS, **components},
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A JWT or an API secret.",
                }
            },
        },
    }


def documents(routes: Sequence[Route], *, auth_required: bool = True) -> tuple[Route, Route]:
    """Return ``/openapi.json`` and ``/docs`` for ``routes`` and themselves.

    They are built at the first request, in a thread: this takes 0.1 s, which must delay neither
    the start nor a call.
    """
    built: tuple[str, str] | None = None
    building = asyncio.Lock()

    async def texts() -> tuple[str, str]:
        nonlocal built
        async with building:
            if built is None:
                built = await asyncio.to_thread(build_texts)
        return built

    def build_texts() -> tuple[str, str]:
        document = build([*routes, *own], auth_required=auth_required)
        return json.dumps(document), page(document)

    async def openapi(_request: web.Request) -> web.StreamResponse:
        text, _ = await texts()
        return web.Response(text=text, content_type="application/json")

    async def docs(_request: web.Request) -> web.StreamResponse:
        # The page loads nothing, and no script may run in it.
        headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        _, html = await texts()
        return web.Response(text=html, content_type="text/html", headers=headers)

    own = (
        Route(
            "GET /openapi.json",
            openapi,
            "This document",
            tag="Documentation",
            public=True,
        ),
        Route(
            "GET /docs",
            docs,
            "This document, to read",
            tag="Documentation",
            content="text/html",
            public=True,
        ),
    )
    return own


def _schemas(routes: Sequence[Route]) -> tuple[Refs, dict[str, Schema]]:
    """Return a reference for each model in its mode, and the schemas that they point to."""
    used: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {}
    for route in routes:
        for model in (route.body, route.query):
            if model is not None:
                used[model, "validation"] = None
        if route.answer is not None:
            used[route.answer, "serialization"] = None
    refs, definitions = models_json_schema(list(used), ref_template=_REF)
    return refs, definitions.get("$defs", {})


def _operation(
    route: Route,
    refs: Refs,
    auth_required: bool,
) -> Schema:
    operation: Schema = {
        "tags": [route.tag],
        "summary": route.summary,
        "operationId": _operation_id(route),
        "parameters": _parameters(route),
        "responses": _responses(route, refs, auth_required),
    }
    if route.handler.__doc__:
        operation["description"] = route.handler.__doc__.strip()
    if route.body is not None:
        schema = refs[route.body, "validation"]
        operation["requestBody"] = {
            "required": route.body_required,
            "content": {"application/json": {"schema": schema}},
        }
    if not route.public:
        operation["security"] = [{"bearer": []}] if auth_required else [{"bearer": []}, {}]
    return {name: value for name, value in operation.items() if value != []}


def _parameters(route: Route) -> list[Schema]:
    parameters: list[Schema] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)", route.path)
    ]
    if route.query is not None:
        schema = route.query.model_json_schema(ref_template=_REF)
        for name, property_ in schema.get("properties", {}).items():
            rest = {key: value for key, value in property_.items() if key != "description"}
            parameter = {
                "name": name,
                "in": "query",
                "required": name in schema.get("required", ()),
                "schema": rest,
            }
            if "description" in property_:
                parameter["description"] = property_["description"]
            parameters.append(parameter)
    if route.idempotent:
        parameters.append(_IDEMPOTENCY)
    return parameters


def _responses(route: Route, refs: Refs, auth_required: bool) -> dict[str, Schema]:
    schema: Schema = {"type": "string"} if route.content.startswith("text/") else {}
    if route.content == "text/event-stream":
        schema = _EVENT
    if route.answer is not None:
        schema = refs[route.answer, "serialization"]
    success: Schema = {"description": route.summary}
    if route.status not in (101, 204):
        text = dict.fromkeys(route.also, {"schema": _TEXT})
        success["content"] = {route.content: {"schema": schema}, **text}
    responses = {str(route.status): success}
    codes: defaultdict[int, list[str]] = defaultdict(list)
    for status, code in (*_common(route, auth_required), *route.errors):
        if code not in codes[status]:
            codes[status].append(code)
    for status, named in sorted(codes.items()):
        responses[str(status)] = _failure(route.path, named)
    return responses


def _common(route: Route, auth_required: bool) -> list[tuple[int, str]]:
    """Return the errors that any route of this kind may return, beyond its own."""
    found: list[tuple[int, str]] = []
    invalid = (400, "INVALID_REQUEST") if is_seed_path(route.path) else (422, "VALIDATION_ERROR")
    if route.body is not None:
        found += [
            (400, "INVALID_JSON"),
            invalid,
            (408, "REQUEST_TIMEOUT"),
            (413, "PAYLOAD_TOO_LARGE"),
            (415, "UNSUPPORTED_MEDIA_TYPE"),
        ]
    if route.query is not None:
        found.append(invalid)
    if route.idempotent:
        found += [(400, "INVALID_REQUEST")]
        found += [(409, "IDEMPOTENCY_KEY_REUSED"), (409, "IDEMPOTENCY_IN_PROGRESS")]
        found += [(500, "OUTCOME_UNKNOWN")]
    if not route.public:
        codes = ("MISSING_AUTH_HEADER", "INVALID_AUTH_HEADER", "UNAUTHORIZED")
        found += [(401, code) for code in codes]
        found.append((503, "AUTH_UNAVAILABLE"))
        if not auth_required:
            found.append((400, "INVALID_HOST"))
            found += [(403, "HOST_NOT_ALLOWED"), (403, "ORIGIN_NOT_ALLOWED")]
        if is_seed_path(route.path):
            found.append((503, "LIVEKIT_UNAVAILABLE"))
        found.append((500, "INTERNAL_ERROR"))
    return found


def _failure(path: str, codes: Sequence[str]) -> Schema:
    shape = "FlatError"
    if path.startswith("/v1/"):
        shape = "NestedError"
    elif path.startswith("/api/v1/"):
        shape = "EnvelopeError"
    return {
        "description": ", ".join(f"`{code}`" for code in codes),
        "content": {"application/json": {"schema": {"$ref": _REF.format(model=shape)}}},
    }


def _path(route: Route) -> str:
    """Return the path with aiohttp's ``{id:regex}`` replaced by OpenAPI's ``{id}``."""
    return re.sub(r"\{(\w+):[^{}]*\}", r"{\1}", route.path)


def _operation_id(route: Route) -> str:
    words = re.findall(r"\w+", _path(route))
    return "_".join([route.method.lower(), *words]).replace(".", "_") or "root"
