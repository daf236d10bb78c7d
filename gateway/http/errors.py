"""Renders every error as JSON in the shape of its path, with an X-Request-Id.

``/v1/*``: nested; ``/api/v1/*``: the envelope; everything else: flat.

    app = web.Application(middlewares=[error_middleware, …])
    app.on_response_prepare.append(add_request_id)
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from core.errors import (
    AppError,
    BadRequest,
    Detail,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    ServerFault,
    UnsupportedMediaType,
)

log = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-Id"
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
_PREPARED: web.RequestKey[bool] = web.RequestKey("prepared", bool)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

# The OpenAPI document lists them too.
TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    422: "validation_error",
    429: "rate_limit_error",
}


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every exception into a response. A response that has begun is aborted instead."""
    try:
        if "\x00" in request.path:
            # No id holds a NUL, and PostgreSQL would raise an error for one.
            raise NotFound("No such path")
        return await handler(request)
    except AppError as error:
        answer = error
    except web.HTTPException as error:
        if error.status < 400:
            raise
        answer = _from_aiohttp(error)
    except Exception as error:
        if isinstance(error, ConnectionError) and _is_gone(request):
            log.info("client went away", extra=_facts(request))
            answer = BadRequest("The connection was closed")
        else:
            log.exception("request failed", extra=_facts(request))
            answer = ServerFault("Internal error")
    if request.get(_PREPARED):
        # The status has been sent, so breaking the transfer is the only way to signal the error.
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("response cut off after an error")
    return render(answer, request.path)


def render(error: AppError, path: str) -> web.Response:
    """Return the response for ``error`` on ``path``."""
    return web.json_response(body(error, path), status=error.status, headers=error.headers)


def body(error: AppError, path: str) -> dict[str, Any]:
    """Return the JSON of ``error`` in the shape of ``path``."""
    details = [_detail(detail) for detail in error.details]
    if _below(path, "/v1"):
        other = "invalid_request_error" if error.status < 500 else "api_error"
        return {
            "error": {
                "message": error.message,
                "code": error.code,
                "type": TYPES.get(error.status, other),
                "details": details,
                **({"callId": error.call_id} if error.call_id else {}),
            }
        }
    if _below(path, "/api/v1"):
        return {
            "success": False,
            "data": None,
            "message": error.message,
            "meta": {
                "code": error.code,
                "details": details,
                **({"callId": error.call_id} if error.call_id else {}),
            },
        }
    flat: dict[str, Any] = {"error": error.message, "code": error.code}
    if error.call_id:
        flat["call_id"] = error.call_id
    return {**flat, "details": details} if details else flat


def is_seed_path(path: str) -> bool:
    """Return True for paths where an invalid field is 400 INVALID_REQUEST, not 422."""
    return _below(path, "/sip") or _below(path, "/livekit")


def request_id(request: web.BaseRequest) -> str:
    """Return the client's X-Request-Id if it is well-formed, else a new one; stable per request."""
    if (known := request.get(REQUEST_ID)) is None:
        given = request.headers.get(REQUEST_ID_HEADER, "")
        known = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        request[REQUEST_ID] = known
    return known


async def add_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """Add the id to a response.

    It is a signal, not middleware: a stream sends its headers before its handler returns.
    """
    request[_PREPARED] = True
    response.headers[REQUEST_ID_HEADER] = request_id(request)
    response.headers[hdrs.SERVER] = "switchroom"


def _from_aiohttp(error: web.HTTPException) -> AppError:
    match error:
        case web.HTTPNotFound():
            return NotFound("No such path")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"Method not allowed; use {allowed}"
            return MethodNotAllowed(message, headers={hdrs.ALLOW: allowed})
        case web.HTTPRequestEntityTooLarge():
            return PayloadTooLarge("The body is too large")
        case web.HTTPUnsupportedMediaType():
            return UnsupportedMediaType("Unsupported media type")
    # aiohttp itself raises few others, all of them for bad requests.
    code = HTTPStatus(error.status).name
    message = HTTPStatus(error.status).phrase
    return BadRequest(message, code=code) if error.status < 500 else ServerFault(message, code=code)


def _detail(detail: Detail) -> dict[str, str]:
    return {"field": detail.field, "message": detail.message, "type": detail.type}


def _below(path: str, root: str) -> bool:
    return path == root or path.startswith(f"{root}/")


def _is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _facts(request: web.Request) -> dict[str, str]:
    """Return fields for the log, with the route's pattern: a path may hold private data."""
    resource = request.match_info.route.resource
    return {
        "request_id": request_id(request),
        "method": request.method,
        "route": resource.canonical if resource is not None else "",
    }
