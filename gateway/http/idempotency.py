"""``Idempotency-Key``: one effect per key, and the same response to every retry."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from aiohttp import web
from pydantic import BaseModel, SecretStr

from core.errors import AppError, BadRequest, Conflict, ServerFault, Unavailable
from gateway.http.pace import PACE, Pace
from gateway.store.calls import Store
from gateway.store.database import Principal, Scope
from gateway.store.once import HELD, HeldKey, IdempotencyKeys, KeptAnswer

log = logging.getLogger(__name__)

HEADER = "Idempotency-Key"
_REPLAYED = "Idempotent-Replayed"
_TWIN_LOOK_S = 0.05
_UNKNOWN = "OUTCOME_UNKNOWN"
_DECIDING: set[asyncio.Task[web.Response]] = set()


async def once(
    request: web.Request,
    store: Store,
    principal: Principal,
    body: BaseModel,
    effect: Callable[[], Awaitable[dict[str, Any]]],
    *,
    status: int = 200,
) -> web.Response:
    """Run ``effect`` and return its JSON; with the header, only if it has not run before.

    The response is stored for 24 h per tenant and key. A request that was refused before it had
    an effect (an AppError below 500, or 503) releases its key. A retry of a request that died
    with its gateway gets ServerFault ``OUTCOME_UNKNOWN`` with the call that it created. Raises
    Conflict ``IDEMPOTENCY_KEY_REUSED`` for another body, ``IDEMPOTENCY_IN_PROGRESS`` if the
    first request is not done within 10 s, and BadRequest for a malformed key.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return web.json_response(await effect(), status=status)
    if not 1 <= len(key) <= 255 or not key.isascii() or not key.isprintable():
        raise BadRequest(f"{HEADER} must be 1 to 255 printable ASCII characters")
    scope = Scope(principal.auth_id)
    pace = request.app[PACE]
    kept = await _take(store.keys, scope, key, _fingerprint(request, body), pace)
    if isinstance(kept, KeptAnswer):
        return _again(kept)
    # This request now holds the key, and must decide it even if the client disconnects.
    decision = _decide(store.keys, kept, effect, pace, status=status)
    deciding = asyncio.create_task(decision, name="once")
    _DECIDING.add(deciding)
    deciding.add_done_callback(_DECIDING.discard)
    return await asyncio.shield(deciding)


async def _take(
    keys: IdempotencyKeys, scope: Scope, key: str, request_hash: str, pace: Pace
) -> HeldKey | KeptAnswer:
    """Take the key, or return its stored response. Raises Conflict."""
    deadline = asyncio.get_running_loop().time() + pace.twin_wait_s
    kept = await keys.begin(scope, key, request_hash, orphan=_ORPHAN)
    while isinstance(kept, KeptAnswer):
        if kept.request_hash != request_hash:
            raise Conflict(
                f"This {HEADER} was used with another request", code="IDEMPOTENCY_KEY_REUSED"
            )
        if kept.status is not None:
            break
        if asyncio.get_running_loop().time() > deadline:
            raise Conflict(
                "The first request with this key is still in progress",
                code="IDEMPOTENCY_IN_PROGRESS",
            )
        await asyncio.sleep(_TWIN_LOOK_S)
        kept = await keys.look(scope, key) or await keys.begin(
            scope, key, request_hash, orphan=_ORPHAN
        )
    return kept


async def _decide(
    keys: IdempotencyKeys,
    held: HeldKey,
    effect: Callable[[], Awaitable[dict[str, Any]]],
    pace: Pace,
    *,
    status: int,
) -> web.Response:
    HELD.set(held)  # for this task and those that the effect starts
    renewing = asyncio.create_task(_renew(keys, held, pace), name="lease")
    try:
        text = json.dumps(await effect())
    except AppError as error:
        if error.status < 500 or error.status == 503:
            await _keep(keys.forget(held))
        else:
            await _keep(keys.finish(held, error.status, _fault(error.message, error.code)))
        raise
    except Exception:
        # The request may have had an effect, so it must not run again.
        await _keep(keys.finish(held, 500, _fault("Internal server error", "INTERNAL_ERROR")))
        raise
    finally:
        renewing.cancel()
    await _keep(keys.finish(held, status, text))
    return web.Response(text=text, status=status, content_type="application/json")


async def _renew(keys: IdempotencyKeys, held: HeldKey, pace: Pace) -> None:
    while True:
        await asyncio.sleep(pace.renew_key_s)
        try:
            if not await keys.renew(held):
                log.warning("a running request was mistaken for a dead one")
                return
        except Unavailable:
            log.warning("the lease of an idempotency key was not renewed")


async def _keep(write: Coroutine[Any, Any, None]) -> None:
    """Write to the store. On failure the client still gets its response; a retry gets "unknown"."""
    try:
        await write
    except Unavailable:
        log.error("the answer of an idempotency key was not kept")


def _again(kept: KeptAnswer) -> web.Response:
    if kept.status is not None and kept.status >= 500:
        fault = json.loads(kept.body or "{}")
        lost = fault["code"] == _UNKNOWN
        raise ServerFault(
            fault["message"], code=fault["code"], call_id=kept.call_id if lost else None
        )
    return web.Response(
        text=kept.body,
        status=kept.status or 200,
        content_type="application/json",
        headers={_REPLAYED: "true"},
    )


def replayed(answer: web.Response) -> dict[str, str]:
    """Return the header by which ``once`` marks a stored response, to copy it to another one."""
    return {_REPLAYED: "true"} if _REPLAYED in answer.headers else {}


def _fault(message: str, code: str) -> str:
    return json.dumps({"message": message, "code": code})


_ORPHAN = (
    500,
    _fault("The first request with this key was cut off; its outcome is not known", _UNKNOWN),
)


def _fingerprint(request: web.Request, body: BaseModel) -> str:
    canonical = json.dumps(
        [request.method, request.path, body.model_dump(exclude_unset=True)],
        sort_keys=True,
        default=_plain,
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def _plain(value: object) -> str:
    # A password is part of the request's identity; only the hash of everything is stored.
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
