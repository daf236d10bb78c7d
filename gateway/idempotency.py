"""``Idempotency-Key``: one effect per key, and the same answer to every repetition."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from pydantic import BaseModel, SecretStr

from core.database import Scope
from core.errors import AppError, BadRequest, Conflict, ServerFault
from core.store import KeptAnswer, Store
from gateway.auth import Principal

HEADER = "Idempotency-Key"
_REPLAYED = "Idempotent-Replayed"
_TWIN_WAIT_S = 10.0
_TWIN_LOOK_S = 0.05


async def once(
    request: web.Request,
    store: Store,
    principal: Principal,
    body: BaseModel,
    effect: Callable[[], Awaitable[dict[str, Any]]],
    *,
    status: int = 200,
) -> web.Response:
    """Run ``effect`` and answer its JSON; with the header, only if it has not run before.

    The answer is kept for 24 h per tenant and key. A request refused before it
    had an effect (an AppError below 500, or 503) frees its key. Raises Conflict
    ``IDEMPOTENCY_KEY_REUSED`` for another body, ``IDEMPOTENCY_IN_PROGRESS`` when the
    first is not done in 10 s, BadRequest for a malformed key.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return web.json_response(await effect(), status=status)
    if not 1 <= len(key) <= 255 or not key.isascii() or not key.isprintable():
        raise BadRequest(f"{HEADER} must be 1 to 255 printable ASCII characters")
    scope = Scope(principal.auth_id)
    mark = _fingerprint(request, body)
    kept = await store.begin_once(scope, key, mark)
    deadline = asyncio.get_running_loop().time() + _TWIN_WAIT_S
    while kept is not None:
        if kept.request_hash != mark:
            raise Conflict(
                f"This {HEADER} was used with another request", code="IDEMPOTENCY_KEY_REUSED"
            )
        if kept.status is not None:
            return _again(kept)
        if asyncio.get_running_loop().time() > deadline:
            raise Conflict(
                "The first request with this key is still in progress",
                code="IDEMPOTENCY_IN_PROGRESS",
            )
        await asyncio.sleep(_TWIN_LOOK_S)
        kept = await store.begin_once(scope, key, mark)
    # From here on the key is ours; a client that hangs up must not leave it undecided.
    return await asyncio.shield(
        asyncio.ensure_future(_decide(store, scope, key, effect, status=status))
    )


async def _decide(
    store: Store,
    scope: Scope,
    key: str,
    effect: Callable[[], Awaitable[dict[str, Any]]],
    *,
    status: int,
) -> web.Response:
    try:
        text = json.dumps(await effect())
    except AppError as error:
        if error.status < 500 or error.status == 503:
            await store.forget_once(scope, key)
        else:
            await store.finish_once(scope, key, error.status, _fault(error.message, error.code))
        raise
    except Exception:
        # Whether it had an effect is not known: it must not be tried a second time.
        await store.finish_once(scope, key, 500, _fault("Internal server error", "INTERNAL_ERROR"))
        raise
    await store.finish_once(scope, key, status, text)
    return web.Response(text=text, status=status, content_type="application/json")


def _again(kept: KeptAnswer) -> web.Response:
    if kept.status is not None and kept.status >= 500:
        fault = json.loads(kept.body or "{}")
        raise ServerFault(fault["message"], code=fault["code"])
    return web.Response(
        text=kept.body,
        status=kept.status or 200,
        content_type="application/json",
        headers={_REPLAYED: "true"},
    )


def replayed(answer: web.Response) -> dict[str, str]:
    """The header that ``once`` marks a repetition with, for an answer made of its answer."""
    return {_REPLAYED: "true"} if _REPLAYED in answer.headers else {}


def _fault(message: str, code: str) -> str:
    return json.dumps({"message": message, "code": code})


def _fingerprint(request: web.Request, body: BaseModel) -> str:
    canonical = json.dumps(
        [request.method, request.path, body.model_dump(exclude_unset=True)],
        sort_keys=True,
        default=_plain,
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def _plain(value: object) -> str:
    # A password is part of what was asked for; only the hash of it all is kept.
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
