from __future__ import annotations

import asyncio
import gzip
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, SecretStr, StrictInt, StrictStr

from core.errors import BadRequest
from gateway.http.body import (
    IGNORED_HEADER,
    MAX_BYTES,
    MAX_DEPTH,
    documented,
    parse_body,
    parse_json,
    parse_query,
    read_body,
)
from gateway.http.route import Route
from tests.support.edge import Served, make_app, served

pytestmark = pytest.mark.unit

JSON = {"Content-Type": "application/json"}


class Trunk(BaseModel):
    password: SecretStr = Field(max_length=8)


class Order(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: StrictStr
    count: StrictInt = 1
    trunk: Trunk | None = None


class Page(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100)
    status: str | None = None
    tags: list[str] = []


async def create(request: web.Request) -> web.Response:
    order = await parse_body(request, Order)
    return web.json_response({"name": order.name, "count": order.count})


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra=documented(frozenset({"later"})))

    name: StrictStr
    tools: list[dict[str, int]] = []


async def strict(request: web.Request) -> web.Response:
    ignored = frozenset({"later", "someday", "tools.color", "tools.size"})
    order = await parse_body(request, Strict, ignored=ignored)
    return web.json_response(order.model_dump())


async def hurried(request: web.Request) -> web.Response:
    return web.Response(body=await read_body(request, deadline_s=0.05))


async def index(request: web.Request) -> web.Response:
    return web.json_response(parse_query(request, Page).model_dump())


@pytest.fixture
async def at() -> AsyncIterator[Served]:
    routes = [
        Route(f"{method} {root}/orders", handler, "")
        for root in ("/sip", "/livekit", "/v1", "/api/v1")
        for method, handler in (("POST", create), ("GET", index))
    ]
    routes += [Route("POST /v1/strict", strict, ""), Route("POST /v1/hurried", hurried, "")]
    async with served(make_app(routes)) as made:
        yield made


async def post(at: Served, data: Any, path: str = "/sip/orders", **headers: str) -> tuple[int, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with at.http.post(path, data=data, headers=named or JSON) as response:
        return response.status, await response.json()


async def test_a_body_becomes_a_model(at: Served) -> None:
    assert await post(at, b'{"name": "Zo\xc3\xab", "x": 1}') == (200, {"name": "Zoë", "count": 1})
    assert await post(at, b'{"name": "a", "name": "b"}') == (200, {"name": "b", "count": 1})


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "application/json; charset=UTF-8",
        "APPLICATION/JSON",
        "application/vnd.acme.v1+json",
    ],
)
async def test_content_types_of_json(at: Served, kind: str) -> None:
    status, _ = await post(at, b'{"name": "a"}', Content_Type=kind)
    assert status == 200


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
        "nonsense",
    ],
)
async def test_other_content_types(at: Served, kind: str) -> None:
    status, answer = await post(at, b'{"name": "a"}', Content_Type=kind)
    assert (status, answer["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")


async def test_a_body_without_a_content_type(at: Served) -> None:
    async with at.http.post(
        "/sip/orders", data=b'{"name": "a"}', skip_auto_headers=["Content-Type"]
    ) as response:
        assert response.status == 415


async def test_no_body_at_all_is_no_json(at: Served) -> None:
    for headers in ({}, JSON):
        async with at.http.post(
            "/sip/orders", headers=headers, skip_auto_headers=["Content-Type"]
        ) as response:
            assert response.status == 400
            assert (await response.json())["code"] == "INVALID_JSON"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b'{"name": "a"} x',
        b"{'name': 'a'}",
        b'{"name": "a",}',
        b"\xff\xfe{}",
        b'\xef\xbb\xbf{"name": "a"}',
        b'{"name": "\xff"}',
        b'{"name": NaN}',
        b'{"name": Infinity}',
        b'{"name": -Infinity}',
        b'{"name": 1e999}',
        b'{"name": ' + b"9" * 5000 + b"}",
        b'{"name": "a\\u0000"}',
        b'{"name": "\\ud800"}',
        b'{"x": {"a\\u0000": [1]}}',
        b'{"x": ["\\udc00"]}',
        b'{"name": "a\nb"}',
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b'{"x": "' + b"[" * 100,
    ],
    ids=range(23),
)
async def test_malformed_json(at: Served, data: bytes) -> None:
    status, answer = await post(at, data)
    assert (status, answer["code"]) == (400, "INVALID_JSON")
    assert answer["error"].startswith("The body is not valid JSON: ")
    assert len(answer["error"]) < 120


def test_depth_is_counted_outside_strings_only() -> None:
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH) is not None
    assert parse_json(b"[" + b"[]," * 100 + b"[]]") == [[]] * 101
    assert parse_json(json.dumps(["[" * 200, '\\"' + "{" * 200]).encode())
    with pytest.raises(BadRequest, match="nested"):
        parse_json(b'["\\\\", ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"]")


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('ab[{"\\'), inner),
)


@given(JSON_VALUES)
def test_whatever_is_json_is_read_as_it_is(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False, indent=1).encode()) == value


@given(st.binary(max_size=200))
def test_whatever_is_not_is_refused_in_one_way(data: bytes) -> None:
    try:
        parse_json(data)
    except BadRequest as error:
        assert error.code == "INVALID_JSON"


async def test_large_bodies(at: Served) -> None:
    padding = MAX_BYTES - len(b'{"name": ""}')
    fits = b'{"name": "' + b"a" * padding + b'"}'
    assert (await post(at, fits))[0] == 200

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(fits) + 1, 65_536):
            yield (fits + b" ")[start : start + 65_536]

    for data in (io.BytesIO(fits + b" "), chunks()):
        status, answer = await post(at, data)
        assert (status, answer["code"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_a_compressed_body_counts_as_it_unfolds(at: Served) -> None:
    small = gzip.compress(b'{"name": "a"}')
    assert (await post(at, small, **JSON_HEADERS, Content_Encoding="gzip"))[0] == 200
    bomb = gzip.compress(b" " * (20 * MAX_BYTES))
    assert len(bomb) < MAX_BYTES
    status, answer = await post(at, bomb, **JSON_HEADERS, Content_Encoding="gzip")
    assert (status, answer["code"]) == (413, "PAYLOAD_TOO_LARGE")
    status, answer = await post(at, b"not gzip", **JSON_HEADERS, Content_Encoding="gzip")
    assert (status, answer["code"]) == (400, "INVALID_JSON")


JSON_HEADERS = {"Content_Type": "application/json"}


async def exchange(at: Served, *parts: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
    answer = b""
    async with asyncio.timeout(10):
        for part in parts:
            writer.write(part)
            answer += await reader.read(4096)
    writer.close()
    return answer


HEAD = b"POST /sip/orders HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


async def test_a_slow_body_is_not_waited_for(at: Served) -> None:
    head = HEAD.replace(b"/sip/orders", b"/v1/hurried")
    answer = await exchange(at, head + b"Content-Length: 13\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408") and b'"REQUEST_TIMEOUT"' in answer


async def test_a_body_that_breaks_its_own_framing(at: Served) -> None:
    answer = await exchange(at, HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))


async def test_a_client_that_asks_first_is_told_to_go_on(at: Served) -> None:
    asked = HEAD + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: 13\r\n\r\n"
    answer = await exchange(at, asked, b'{"name": "a"}')
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


async def test_a_client_that_asks_first_is_told_when_it_is_too_much(at: Served) -> None:
    asked = HEAD + b"Expect: 100-continue\r\nContent-Length: 9999999\r\n\r\n"
    assert (await exchange(at, asked)).startswith(b"HTTP/1.1 413")


async def test_a_client_that_leaves_makes_no_noise(
    at: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        _, writer = await asyncio.open_connection("127.0.0.1", at.port)
        writer.write(HEAD + b"Content-Length: 13\r\n\r\n{")
        await writer.drain()
        assert await post(at, b'{"name": "a"}')  # the server has seen the first one by now
        writer.transport.abort()
        async with asyncio.timeout(5):
            while not any(r.getMessage() == "client went away" for r in caplog.records):
                assert await post(at, b'{"name": "a"}')
    assert not [r for r in caplog.records if r.levelname in {"WARNING", "ERROR"}]


# --- validation


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/sip/orders", 400, "INVALID_REQUEST"),
        ("/livekit/orders", 400, "INVALID_REQUEST"),
        ("/v1/orders", 422, "VALIDATION_ERROR"),
        ("/api/v1/orders", 422, "VALIDATION_ERROR"),
    ],
)
async def test_the_path_decides_the_refusal(at: Served, path: str, status: int, code: str) -> None:
    found, answer = await post(at, b'{"count": "1"}', path)
    assert found == status
    error = answer.get("meta") or answer["error"]
    error = answer if isinstance(error, str) else error
    assert error["code"] == code
    assert [(d["field"], d["type"]) for d in error["details"]] == [
        ("name", "missing"),
        ("count", "int_type"),
    ]


@pytest.mark.parametrize("data", [b"null", b"[]", b'"text"', b"1", b"true"])
async def test_a_body_must_be_an_object(at: Served, data: bytes) -> None:
    status, answer = await post(at, data)
    assert (status, answer["code"]) == (400, "INVALID_REQUEST")


async def test_refusals_never_repeat_what_was_sent(at: Served) -> None:
    secret = "hush-hush-hush"
    sent = {"name": [secret], "count": secret, "trunk": {"password": secret}}
    status, answer = await post(at, json.dumps(sent).encode())
    assert status == 400
    assert "hush" not in json.dumps(answer)
    assert [d["field"] for d in answer["details"]] == ["name", "count", "trunk.password"]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 200),
        ("limit=100&status=busy", 200),
        ("tags=a&tags=b", 200),
        ("limit=101", 422),
        ("limit=x", 422),
        ("limit=1&limit=2", 422),
        ("other=1", 422),
    ],
)
async def test_queries(at: Served, query: str, status: int) -> None:
    async with at.http.get(f"/v1/orders?{query}") as response:
        assert response.status == status
        answer = await response.json()
    if status == 422:
        assert answer["error"]["details"][0]["field"] in {"limit", "other"}


async def test_a_nul_in_a_query(at: Served) -> None:
    async with at.http.get("/v1/orders?status=%00") as response:
        assert response.status == 422


class TestIgnoredFields:
    async def ask(self, at: Served, **body: Any) -> tuple[int, Any, str | None]:
        async with at.http.post("/v1/strict", json=body) as response:
            return response.status, await response.json(), response.headers.get(IGNORED_HEADER)

    async def test_they_are_accepted_whatever_they_hold_and_named(self, at: Served) -> None:
        answer = await self.ask(at, name="a", someday=[{"x": None}], later="soon")
        assert answer == (200, {"name": "a", "tools": []}, "later, someday")
        assert await self.ask(at, name="a") == (200, {"name": "a", "tools": []}, None)

    async def test_they_may_be_inside(self, at: Served) -> None:
        tools = [{"color": "red", "weight": 1}, {"weight": 2}, {"color": None}]
        left = [{"weight": 1}, {"weight": 2}, {}]
        answer = await self.ask(at, name="a", tools=tools)
        assert answer == (200, {"name": "a", "tools": left}, "tools.color")

    async def test_a_list_around_the_body_is_no_way_in(self, at: Served) -> None:
        async with at.http.post("/v1/strict", json=[{"name": "a", "later": 1}]) as response:
            assert response.status == 422

    async def test_a_field_that_nobody_knows_is_refused_still(self, at: Served) -> None:
        status, body, named = await self.ask(at, name="a", later=1, never=2)
        assert (status, named) == (422, "later")
        assert [detail["field"] for detail in body["error"]["details"]] == ["never"]

    def test_the_schema_tells_of_them(self) -> None:
        assert list(Strict.model_json_schema()["properties"]) == ["name", "tools", "later"]
