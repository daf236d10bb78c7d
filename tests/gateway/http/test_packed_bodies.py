"""Compressed, broken and mislabelled bodies: clear errors, bounded memory, no tracebacks."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import tracemalloc
import zlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from pydantic import BaseModel

from core.errors import PayloadTooLarge, Unauthenticated
from gateway.http import body as body_module
from gateway.http.body import MAX_BYTES, parse_body
from gateway.http.route import Route
from tests.support.edge import Served, make_app, served

pytestmark = pytest.mark.unit
attack = pytest.mark.attack

PLAIN = b'{"name": "a"}'
GZIP, ZLIB = gzip.compress(PLAIN, mtime=0), zlib.compress(PLAIN)
RAW = zlib.compressobj(wbits=-15)
DEFLATE = RAW.compress(PLAIN) + RAW.flush()
BOMB = gzip.compress(b" " * (50 * MAX_BYTES), mtime=0)
TOO_LARGE, BROKEN, UNKNOWN = (
    (413, "PAYLOAD_TOO_LARGE"),
    (400, "INVALID_JSON"),
    (415, "UNSUPPORTED_MEDIA_TYPE"),
)


class Order(BaseModel):
    name: str


async def create(request: web.Request) -> web.Response:
    return web.json_response({"name": (await parse_body(request, Order)).name})


async def refuse(_request: web.Request) -> web.Response:
    raise Unauthenticated("No")


@pytest.fixture(scope="module")
async def at() -> AsyncIterator[Served]:
    routes = [
        Route("POST /v1/orders", create, ""),
        Route("POST /v1/refused", refuse, ""),
    ]
    async with served(make_app(routes)) as made:
        yield made


async def post(
    at: Served, *parts: bytes, path: str = "/v1/orders", **headers: str
) -> tuple[int, str | None]:
    """Send each part in a packet of its own; return the answer's status and code."""
    named = {"Host": "a", "Content-Type": "application/json", "Connection": "close"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in named.items()]
    reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
    writer.write("\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode())
    for part in parts:
        await asyncio.sleep(0.01)
        writer.write(part)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    head, _, text = answer.partition(b"\r\n\r\n")
    answered = json.loads(text)
    error = answered.get("error")
    code = error.get("code") if isinstance(error, dict) else answered.get("code")
    return int(head.split()[1]), code


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        ("gzip", GZIP),
        ("GZip", GZIP),
        ("deflate", ZLIB),
        ("deflate", DEFLATE),
        ("identity", PLAIN),
        ("", PLAIN),
    ],
)
async def test_packed_as_it_says(at: Served, coding: str, data: bytes) -> None:
    length = {"Content_Length": str(len(data)), "Content_Encoding": coding}
    assert await post(at, data, **length) == (200, None)
    half = len(data) // 2
    assert await post(at, data[:half], data[half:], **length) == (200, None)


HOSTILE: list[tuple[str, bytes, tuple[int, str]]] = [
    ("gzip", b"not gzip", BROKEN),
    ("gzip", PLAIN, BROKEN),
    ("gzip", GZIP[:-1], BROKEN),
    ("gzip", GZIP[:-9], BROKEN),
    ("gzip", GZIP[:12], BROKEN),
    ("gzip", GZIP[:2], BROKEN),
    ("gzip", GZIP[:-8] + bytes(8), BROKEN),
    ("gzip", GZIP + b"more", BROKEN),
    ("gzip", GZIP + GZIP, BROKEN),
    ("gzip", ZLIB, BROKEN),
    ("gzip", b"", BROKEN),
    ("gzip", gzip.compress(b"", mtime=0), BROKEN),
    ("gzip", gzip.compress(GZIP, mtime=0), BROKEN),
    ("gzip", BOMB, TOO_LARGE),
    ("gzip", gzip.compress(BOMB, mtime=0), BROKEN),
    ("gzip", gzip.compress(PLAIN[:-1] + b" " * MAX_BYTES + b"}", mtime=0), TOO_LARGE),
    ("deflate", b"garbage", BROKEN),
    ("deflate", b"\x78\x9c", BROKEN),
    ("deflate", ZLIB[:-1], BROKEN),
    ("deflate", DEFLATE[:-1], BROKEN),
    ("deflate", GZIP, BROKEN),
    ("deflate", zlib.compress(b" " * (50 * MAX_BYTES)), TOO_LARGE),
    ("br", b"\xff\xff\xff", UNKNOWN),
    ("br", b"", UNKNOWN),
    ("zstd", b"\x28\xb5\x2f\xfd\xff", UNKNOWN),
    ("compress", PLAIN, UNKNOWN),
    ("gzip, gzip", gzip.compress(GZIP, mtime=0), UNKNOWN),
    ("gzip;q=1", GZIP, UNKNOWN),
    ("identity, gzip", GZIP, UNKNOWN),
    ("x-evil", PLAIN, UNKNOWN),
    ("../gzip", PLAIN, UNKNOWN),
]


@attack
@pytest.mark.parametrize("number", range(len(HOSTILE)))
async def test_packed_otherwise(at: Served, number: int, caplog: pytest.LogCaptureFixture) -> None:
    coding, data, expected = HOSTILE[number]
    length = str(len(data))
    with caplog.at_level(logging.WARNING):
        assert await post(at, data, Content_Encoding=coding, Content_Length=length) == expected
        chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        for parts in ([chunk + b"0\r\n\r\n"], [chunk, b"0\r\n\r\n"]):
            chunked = await post(at, *parts, Content_Encoding=coding, Transfer_Encoding="chunked")
            assert chunked == expected
        # A refusal before the body is read logs no traceback either.
        refused = await post(
            at, data, path="/v1/refused", Content_Encoding=coding, Content_Length=length
        )
        assert refused == (401, "UNAUTHORIZED")
    assert caplog.records == []


TORN: list[tuple[bytes, ...]] = [
    (b"zz\r\n",),
    (b"5\r\n{}",),
    (b"2\r\n{}\r\nzz\r\n",),
    (b"2\r\n{}", b"XX0\r\n\r\n"),
    (b"-1\r\n{}\r\n0\r\n\r\n",),
    (b"0x2\r\n{}\r\n0\r\n\r\n",),
    (b"2 \r\n{}\r\n0\r\n\r\n",),
    (b"ffffffffffffffffff\r\n{}\r\n",),
    (b"2\n{}\n0\n\n",),
    (b"2\r\n{}\r\n0\r\nBad Trailer\r\n\r\n",),
    (b"2\r\n{}\r\n0\r\n" + b"X: " + b"y" * 20_000 + b"\r\n\r\n",),
]


@attack
@pytest.mark.parametrize("parts", TORN, ids=range(len(TORN)))
@pytest.mark.parametrize("path", ["/v1/orders", "/v1/refused"])
async def test_chunks_that_are_none(
    at: Served, path: str, parts: tuple[bytes, ...], caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
    with caplog.at_level(logging.WARNING):
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        for part in parts:
            await asyncio.sleep(0.01)
            writer.write(part)
        writer.write_eof()
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
    assert not answer or 400 <= int(answer.split()[1]) < 500
    assert caplog.records == []


@attack
def test_a_bomb_is_not_unpacked() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            body_module._unpacked(BOMB, "gzip", MAX_BYTES)
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_BYTES
    finally:
        tracemalloc.stop()
