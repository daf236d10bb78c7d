"""Reads and validates request bodies and queries, before the request has any effect."""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import MultiDict
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from core.errors import (
    AppError,
    BadRequest,
    Detail,
    PayloadTooLarge,
    RequestTimeout,
    Unprocessable,
    UnsupportedMediaType,
)
from gateway.http.errors import is_seed_path

MAX_BYTES = 1024 * 1024
"""Limit after decompression; web.Application(client_max_size=…) must not be less."""
MAX_FORM_BYTES = 64 * 1024
MAX_DEPTH = 64
READ_DEADLINE_S = 20.0
MAX_DETAILS = 50
IGNORED_HEADER = "X-Ignored-Fields"

_FORM = "application/x-www-form-urlencoded"
_MAX_FIELDS = 200
_UNUSABLE = re.compile(r"[\x00\ud800-\udfff]")

_IGNORED: web.RequestKey[list[str]] = web.RequestKey("ignored_fields", list)

M = TypeVar("M", bound=BaseModel)


async def parse_body(
    request: web.Request, model: type[M], *, ignored: frozenset[str] = frozenset()
) -> M:
    """The JSON body as ``model``. Raises BadRequest, Unprocessable, PayloadTooLarge, …

    An empty body counts as malformed JSON. ``ignored`` are fields that callers of the API know
    and this system does not serve: whatever they hold, they are taken out, and the response
    names them in ``X-Ignored-Fields``. A model that forbids extra fields refuses all others.
    ``customTools.headers`` is a field of an object, or of each object of a list. With
    ``json_schema_extra=documented(ignored)`` in a model's config they are in the OpenAPI document.
    """
    value = parse_json(await read_body(request))
    if found := sorted(name for name in ignored if _take_out(value, name)):
        request[_IGNORED] = found
    return validate(value, model, request.path)


async def add_ignored_fields(request: web.Request, response: web.StreamResponse) -> None:
    """Name the fields that ``parse_body`` ignored; a handler for ``on_response_prepare``."""
    if names := request.get(_IGNORED):
        response.headers[IGNORED_HEADER] = ", ".join(names)


def documented(ignored: frozenset[str]) -> Callable[[dict[str, Any]], None]:
    """Return a ``json_schema_extra`` that adds the ignored fields to a model's JSON schema."""

    def add(schema: dict[str, Any]) -> None:
        for name in sorted(name for name in ignored if "." not in name):
            schema["properties"][name] = {
                "description": "Accepted, but without effect so far; named in X-Ignored-Fields."
            }

    return add


async def read_body(
    request: web.Request, limit: int = MAX_BYTES, *, deadline_s: float = READ_DEADLINE_S
) -> bytes:
    """Read the body of a JSON request, at most ``limit`` bytes, within ``deadline_s``."""
    _check_content_type(request)
    return await _read(request, limit, deadline_s)


def is_form(request: web.BaseRequest) -> bool:
    """Return True for an HTML form's encoding, which callbacks of other systems use."""
    return request.content_type == _FORM


async def read_form(request: web.Request) -> MultiDict[str]:
    """Return the fields of a form, at most _MAX_FIELDS. Raises BadRequest, PayloadTooLarge, …"""
    if not is_form(request):
        raise UnsupportedMediaType(f"Content-Type must be {_FORM}")
    text = (await _read(request, MAX_FORM_BYTES, READ_DEADLINE_S)).decode("utf-8", "replace")
    try:
        fields = parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise BadRequest("The form has too many fields") from None
    return MultiDict(fields)


async def _read(request: web.Request, limit: int, deadline_s: float) -> bytes:
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit)
    coding = _coding(request)
    received = bytearray()
    try:
        async with asyncio.timeout(deadline_s):
            await _continue(request)
            async for chunk in request.content.iter_any():
                received += chunk
                if len(received) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise RequestTimeout("The body took too long") from None
    except (web.RequestPayloadError, HttpProcessingError):
        raise _misdescribed() from None
    return _unpacked(bytes(received), coding, limit)


async def read_text(request: web.Request) -> str:
    """Return the body unparsed, to verify a signature over it."""
    try:
        return (await read_body(request)).decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None


def parse_json(raw: bytes) -> Any:
    """Parse strict JSON (RFC 8259): UTF-8, no NaN, no NUL or lone surrogate, no depth over 64.

    Raises BadRequest ``INVALID_JSON``. If a key is repeated, its last value counts.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise _malformed(f"line {error.lineno}, column {error.colno}") from None
    except ValueError:  # CPython's limit on the digits of an integer
        raise _malformed("a number is out of range") from None
    except RecursionError:
        raise _too_deep() from None
    # NUL and lone surrogates need a \u escape. Most bodies have neither escapes nor the depth.
    if "\\u" in text or text.count("[") + text.count("{") > MAX_DEPTH:
        _check_values(value)
    return value


def parse_query(request: web.Request, model: type[M]) -> M:
    """Return the query string as ``model``; a repeated parameter is a list, if the model allows."""
    given: dict[str, Any] = {}
    for name in request.query:
        values = request.query.getall(name)
        if any(_UNUSABLE.search(text) for text in (name, *values)):
            detail = Detail(_field([name]), "NUL or invalid characters", "string_unicode")
            raise invalid([detail], request.path)
        given[name] = values if len(values) > 1 else values[0]
    return validate(given, model, request.path)


def validate(value: Any, model: type[M], path: str) -> M:
    """Return ``value`` as ``model``. Raises ``invalid``'s error for the path, with all details."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        # Leave out input and context, since either may hold a password.
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        raise invalid([_detail(fault) for fault in faults[:MAX_DETAILS]], path) from None


def invalid(details: Sequence[Detail], path: str) -> AppError:
    """Return 400 INVALID_REQUEST under /sip and /livekit, 422 VALIDATION_ERROR elsewhere."""
    first = details[0]
    message = f"{first.field}: {first.message}" if first.field else first.message
    kind = BadRequest if is_seed_path(path) else Unprocessable
    return kind(message, details=details)


def _detail(fault: ErrorDetails) -> Detail:
    # pydantic adds this prefix to the message of a custom validator.
    message = fault["msg"].removeprefix("Value error, ")
    return Detail(_field(fault["loc"]), message, fault["type"])


def _field(path: Iterable[str | int]) -> str:
    """Return a dotted path. The client may have chosen its names, so each is cut and cleaned."""
    return ".".join(_UNUSABLE.sub("?", str(part))[:64] for part in path)


def _take_out(value: Any, name: str) -> bool:
    """Remove a field, and return True if it was there.

    ``outer.inner`` is removed from the object, or from each object in the list, at ``outer``.
    """
    if isinstance(value, list):
        return sum(_take_out(item, name) for item in value) > 0
    if not isinstance(value, dict):
        return False
    outer, _, inner = name.partition(".")
    if outer not in value:
        return False
    if inner:
        return _take_out(value[outer], inner)
    del value[outer]
    return True


async def _continue(request: web.Request) -> None:
    """Send ``100 Continue`` to a client that waits for it (RFC 9110 §10.1.1)."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.can_read_body:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the final response has not begun


def _check_content_type(request: web.Request) -> None:
    kind = request.content_type if hdrs.CONTENT_TYPE in request.headers else ""
    is_json = kind == "application/json" or re.fullmatch(r"application/[\w.-]+\+json", kind)
    if not is_json and (kind or request.can_read_body):
        raise UnsupportedMediaType("Content-Type must be application/json")
    if (request.charset or "utf-8").lower() not in {"utf-8", "utf8"}:
        raise UnsupportedMediaType("The charset of a JSON body must be utf-8")


def _coding(request: web.Request) -> str:
    """Return the body's content coding: ``gzip``, ``deflate``, or ``""`` for none."""
    named = ",".join(request.headers.getall(hdrs.CONTENT_ENCODING, [])).strip().lower()
    if named in {"", "identity"}:
        return ""
    if named not in {"gzip", "deflate"}:
        message = "Content-Encoding must be gzip or deflate, or be absent"
        raise UnsupportedMediaType(message, headers={hdrs.ACCEPT_ENCODING: "gzip, deflate"})
    return named


def _unpacked(raw: bytes, coding: str, limit: int) -> bytes:
    """Decompress the body, but never beyond the first byte over the limit."""
    if not coding:
        return raw
    window = zlib.MAX_WBITS
    if coding == "gzip":
        window += 16
    elif raw and raw[0] & 0x0F != zlib.DEFLATED:
        window = -window  # without zlib's header, as many clients take "deflate" to mean
    unpacking = zlib.decompressobj(window)
    try:
        body = unpacking.decompress(raw, limit + 1)
    except zlib.error:
        raise _misdescribed() from None
    if len(body) > limit:
        raise _too_large(limit)
    if raw and (not unpacking.eof or unpacking.unused_data):
        raise _misdescribed()  # truncated, or followed by other data
    return body


def _check_values(value: Any) -> None:
    """Check the depth, and that PostgreSQL, UTF-8 and SIP headers can carry all strings."""
    level, depth = [value], 0
    while level:
        inner: list[Any] = []
        nested = False
        for item in level:
            if isinstance(item, str):
                if _UNUSABLE.search(item):
                    raise _malformed("a string holds NUL or half of a surrogate pair")
            elif isinstance(item, list):
                nested = True
                inner += item
            elif isinstance(item, dict):
                nested = True
                inner += item
                inner += item.values()
        depth += nested
        if depth > MAX_DEPTH:
            raise _too_deep()
        level = inner


def _no_constant(name: str) -> NoReturn:
    raise _malformed(f"{name} is no JSON value")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise _malformed("a number is out of range")
    return number


def _malformed(reason: str) -> BadRequest:
    return BadRequest(f"The body is not valid JSON: {reason}", code="INVALID_JSON")


def _misdescribed() -> BadRequest:
    return BadRequest("The body does not match its headers", code="INVALID_JSON")


def _too_deep() -> BadRequest:
    return _malformed(f"it is nested more than {MAX_DEPTH} deep")


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is larger than {limit // 1024} KiB")
