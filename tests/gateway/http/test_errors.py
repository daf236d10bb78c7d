from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from core.errors import (
    AppError,
    BadRequest,
    Conflict,
    Detail,
    Forbidden,
    NotFound,
    ServerFault,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from gateway.http.errors import body
from gateway.http.route import Route
from tests.support.edge import Served, make_app, served

pytestmark = pytest.mark.unit

DETAIL = Detail("a.b", "is wrong", "value_error")


async def raising(request: web.Request) -> web.StreamResponse:
    match request.match_info["what"]:
        case "bug":
            raise RuntimeError("hush: a secret in an exception")
        case "timeout":
            raise TimeoutError
        case "gone":
            raise web.HTTPGone(text="upstream text")
        case "moved":
            raise web.HTTPFound("/elsewhere")
        case "busy":
            raise TooManyRequests("Too many", retry_after_s=7)
        case "stream":
            stream = web.StreamResponse()
            await stream.prepare(request)
            raise RuntimeError("after the headers")
    raise NotFound("No such call", code="CALL_NOT_FOUND", details=[DETAIL])


ROUTES = [
    Route(f"GET {root}/raise/{{what}}", raising, "") for root in ("/sip", "/v1", "/api/v1", "")
] + [Route("POST /sip/raise/{what}", raising, "")]


@pytest.fixture
async def at() -> Any:
    async with served(make_app(ROUTES)) as made:
        yield made


@pytest.fixture
async def in_a_hurry() -> AsyncIterator[Served]:
    async with served(make_app(ROUTES), headers_deadline_s=0.05) as made:
        yield made


FLAT = {
    "error": "No such call",
    "code": "CALL_NOT_FOUND",
    "details": [{"field": "a.b", "message": "is wrong", "type": "value_error"}],
}
NESTED = {
    "error": {
        "message": "No such call",
        "code": "CALL_NOT_FOUND",
        "type": "not_found_error",
        "details": FLAT["details"],
    }
}
ENVELOPE = {
    "success": False,
    "data": None,
    "message": "No such call",
    "meta": {"code": "CALL_NOT_FOUND", "details": FLAT["details"]},
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/sip/raise/x", FLAT),
        ("/raise/x", FLAT),
        ("/v1/raise/x", NESTED),
        ("/api/v1/raise/x", ENVELOPE),
    ],
)
async def test_the_path_decides_the_shape(at: Served, path: str, expected: Any) -> None:
    async with at.http.get(path) as response:
        assert response.status == 404
        assert response.content_type == "application/json"
        assert await response.json() == expected


def test_without_details() -> None:
    error = Conflict("Twice", code="PARTICIPANT_EXISTS")
    assert body(error, "/sip/call") == {"error": "Twice", "code": "PARTICIPANT_EXISTS"}
    assert body(error, "/v1/calls")["error"]["details"] == []
    assert body(error, "/v1")["error"]["type"] == "conflict_error"
    assert body(error, "/v1x") == body(error, "/sip/call")


def test_the_call_that_an_error_leaves_behind() -> None:
    error = ServerFault("Cut off", code="OUTCOME_UNKNOWN", call_id="call_1")
    assert body(error, "/sip/call")["call_id"] == "call_1"
    assert body(error, "/v1/calls")["error"]["callId"] == "call_1"
    assert body(error, "/api/v1/sessions")["meta"]["callId"] == "call_1"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadRequest("m"), "invalid_request_error"),
        (Unauthenticated("m"), "authentication_error"),
        (Forbidden("m"), "permission_error"),
        (TooManyRequests("m"), "rate_limit_error"),
        (Unavailable("m"), "api_error"),
        (AppError("m"), "api_error"),
    ],
)
def test_types_of_v1_errors(error: AppError, kind: str) -> None:
    assert body(error, "/v1/calls")["error"]["type"] == kind


async def test_unknown_paths_and_methods_are_json(at: Served) -> None:
    async with at.http.get("/v1/nothing") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "NOT_FOUND")
    async with at.http.delete("/sip/raise/x") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET, HEAD, POST"
        assert (await response.json())["code"] == "METHOD_NOT_ALLOWED"


async def test_a_path_with_nul_is_of_nothing(at: Served) -> None:
    async with at.http.get("/v1/raise/%00bug") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "NOT_FOUND")


async def test_a_bug_is_logged_with_the_request_and_not_shown(
    at: Served, caplog: pytest.LogCaptureFixture
) -> None:
    async with at.http.get("/v1/raise/bug", headers={"X-Request-Id": "abc.1"}) as response:
        text = await response.text()
        assert (response.status, response.headers["X-Request-Id"]) == (500, "abc.1")
    assert "hush" not in text and "Traceback" not in text
    [record] = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.name == "gateway.http.errors"
    assert record.exc_info is not None and record.exc_info[0] is RuntimeError
    assert record.__dict__["request_id"] == "abc.1"
    assert record.__dict__["route"] == "/v1/raise/{what}"


@pytest.mark.parametrize(
    ("what", "status", "code"),
    [
        ("timeout", 500, "INTERNAL_ERROR"),
        ("gone", 400, "GONE"),
        ("busy", 429, "RATE_LIMITED"),
    ],
)
async def test_other_ways_to_fail(at: Served, what: str, status: int, code: str) -> None:
    async with at.http.get(f"/sip/raise/{what}") as response:
        assert response.status == status
        assert response.headers.get("Retry-After") == ("7" if what == "busy" else None)
        found = await response.json()
    assert found["code"] == code
    assert "upstream" not in found["error"]


async def test_a_redirect_is_no_error(at: Served) -> None:
    async with at.http.get("/raise/moved", allow_redirects=False) as response:
        assert response.status == 302


async def test_a_response_that_has_begun_is_cut_off(
    at: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(aiohttp.ClientError):
        async with at.http.get("/raise/stream") as response:
            await response.read()
    errors = [r.name for r in caplog.records if r.levelno >= logging.ERROR]
    assert errors == ["gateway.http.errors"]


@pytest.mark.parametrize("given", ["a", "A-z_0.9", "x" * 128])
async def test_a_harmless_request_id_is_kept(at: Served, given: str) -> None:
    async with at.http.get("/nothing", headers={"X-Request-Id": given}) as response:
        assert response.headers["X-Request-Id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é", "a;b"])
async def test_another_one_is_replaced(at: Served, given: str) -> None:
    async with at.http.get("/nothing", headers={"X-Request-Id": given}) as response:
        assert re.fullmatch(r"[0-9a-f]{32}", response.headers["X-Request-Id"])


# --- below the application


async def raw(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"GARBAGE\r\n\r\n", b"400", b"INVALID_REQUEST"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n", b"400", b"INVALID_REQUEST"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", b"431", b"HEADERS_TOO_LARGE"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", b"431", b"HEADERS_TOO_LARGE"),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 300 + b"\r\n", b"400", b"INVALID_REQUEST"),
        (
            b"POST /sip/raise/x HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"400",
            b"INVALID_REQUEST",
        ),
        (
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"400",
            b"INVALID_REQUEST",
        ),
    ],
    ids=range(7),
)
async def test_bad_http_is_answered_in_json(
    at: Served, data: bytes, status: bytes, code: bytes
) -> None:
    head, _, text = (await raw(at.port, data)).partition(b"\r\n\r\n")
    assert head.split()[1] == status
    assert b"application/json" in head and b"X-Request-Id: " in head
    assert b'"code": "' + code + b'"' in text
    assert b"aaaa" not in text and b"GARBAGE" not in text


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nX-Half: "])
async def test_half_sent_headers_are_not_waited_for(in_a_hurry: Served, sent: bytes) -> None:
    assert await raw(in_a_hurry.port, sent) == b""


async def test_the_deadline_ends_with_the_headers(in_a_hurry: Served) -> None:
    request = b"GET /sip/raise/x HTTP/1.1\r\nHost: a\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", in_a_hurry.port)
    writer.write(request)
    assert (await reader.readuntil(b"}]}")).startswith(b"HTTP/1.1 404")
    # The deadline does not apply to a connection that is idle between requests.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await reader.read(1)
    writer.write(request[:-2])
    assert await reader.read() == b""
    writer.close()
