"""Addresses that a tenant's URL may lead to, checked when the connection is made."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from core import url_guard
from core.url_guard import (
    AddressRefused,
    UrlRefused,
    check_url,
    guarded_session,
    is_public,
    read_bounded,
)

pytestmark = pytest.mark.unit

PRIVATE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",  # CGNAT
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",  # link-local: cloud metadata
    "172.16.0.1",
    "192.0.0.1",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",  # IPv4-compatible
    "::ffff:127.0.0.1",  # IPv4-mapped
    "::ffff:10.0.0.1",
    "::ffff:0:10.0.0.1",  # IPv4-translated
    "64:ff9b::a00:1",  # NAT64 of 10.0.0.1
    "64:ff9b:1::808:808",
    "2001:0:5ef5:79fb:0:0:f5ff:fffe",  # Teredo of 10.0.0.1
    "2001:db8::1",
    "2002:a00:1::",  # 6to4 of 10.0.0.1
    "fc00::1",
    "fd12::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "",
    "example.com",
]
PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "file:///etc/passwd",
        "//example.com/",
        "http://",
        "http:///path",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://[::1",
        "http://localhost/",
        "http://LOCALHOST./",
        "http://api.localhost:8080/",
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://[::1]:8080/",
        "http://[::ffff:169.254.169.254]/latest",
        "https://user@10.0.0.1/",
        "http://0/",
    ],
)
def test_refused_at_once(url: str) -> None:
    with pytest.raises(UrlRefused):
        check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/hook?x=1",
        "http://example.com:8080",
        "https://8.8.8.8/",
        "https://[2606:4700::1111]/",
        "https://xn--bcher-kva.example/",
    ],
)
def test_left_to_the_connection(url: str) -> None:
    check_url(url)


@pytest.fixture
async def server() -> AsyncIterator[tuple[int, list[str]]]:
    """The port of a loopback server, and the hosts that its requests named."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.host)
        if request.path == "/bomb":
            return web.Response(body=b"\x1f\x8b" + b"z" * 100, headers={"Content-Encoding": "gzip"})
        if request.path == "/endless":
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(b"x" * 1024)
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1], asked
    finally:
        await runner.cleanup()


def resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Make DNS give these answers in turn (the last one repeats); return the names asked for."""
    names: list[str] = []
    left = list(answers)

    async def getaddrinfo(host: Any, port: Any, **_: Any) -> Any:
        names.append(str(host))
        found = left.pop(0) if len(left) > 1 else left[0]
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
            for address in found
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
    return names


class TestSession:
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    async def test_a_private_address_is_not_connected_to(
        self, server: tuple[int, list[str]], host: str
    ) -> None:
        port, asked = server
        async with guarded_session(allow_private=False) as session:
            with pytest.raises(aiohttp.ClientConnectorError) as refused:
                await session.post(f"http://{host}:{port}/")
        assert isinstance(refused.value.os_error, AddressRefused)
        assert asked == []

    @pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001"])
    async def test_nor_in_another_spelling(self, server: tuple[int, list[str]], host: str) -> None:
        port, asked = server
        async with guarded_session(allow_private=False) as session:
            with pytest.raises(aiohttp.ClientError):
                await session.post(f"http://{host}:{port}/")
        assert asked == []

    async def test_a_name_that_leads_to_one(
        self, server: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        port, asked = server
        names = resolve_to(monkeypatch, ["127.0.0.1"])
        async with guarded_session(allow_private=False) as session:
            with pytest.raises(aiohttp.ClientConnectorError) as refused:
                await session.post(f"http://hook.example:{port}/")
        assert isinstance(refused.value.os_error, AddressRefused)
        assert (names, asked) == (["hook.example"], [])

    async def test_a_name_that_changes_its_mind(
        self, server: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The name is resolved once, and the socket connects to the address that was checked."""
        port, asked = server
        checked: list[str] = []
        connected: list[Any] = []
        real = url_guard.is_public

        def spied(address: str) -> bool:
            checked.append(address)
            return real(address)

        async def connect(sock: socket.socket, address: Any) -> None:
            connected.append(address)
            raise ConnectionRefusedError

        monkeypatch.setattr(url_guard, "is_public", spied)
        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", connect, raising=False)
        names = resolve_to(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
        async with guarded_session(allow_private=False) as session:
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.post(f"http://rebind.example:{port}/")
        assert names == ["rebind.example"]
        assert checked == ["93.184.216.34"]
        assert connected == [("93.184.216.34", port)]
        assert asked == []

    async def test_of_several_addresses_only_public_ones_are_tried(
        self, server: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        port, asked = server
        connected: list[Any] = []

        async def connect(sock: socket.socket, address: Any) -> None:
            connected.append(address[0])
            raise ConnectionRefusedError

        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", connect, raising=False)
        resolve_to(monkeypatch, ["127.0.0.1", "93.184.216.34", "10.0.0.1"])
        async with guarded_session(allow_private=False) as session:
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.post(f"http://mixed.example:{port}/")
        assert set(connected) == {"93.184.216.34"}
        assert asked == []

    async def test_private_ones_where_allowed(self, server: tuple[int, list[str]]) -> None:
        port, _ = server
        async with (
            guarded_session(allow_private=True) as session,
            session.post(f"http://127.0.0.1:{port}/") as response,
        ):
            assert await read_bounded(response, 100) == b"hello"

    async def test_nothing_is_decompressed(self, server: tuple[int, list[str]]) -> None:
        port, _ = server
        async with (
            guarded_session(allow_private=True) as session,
            session.get(f"http://127.0.0.1:{port}/bomb") as response,
        ):
            assert await read_bounded(response, 10) == b"\x1f\x8b" + b"z" * 8

    async def test_an_endless_answer_is_left(self, server: tuple[int, list[str]]) -> None:
        port, _ = server
        async with (
            guarded_session(allow_private=True) as session,
            asyncio.timeout(10),
            session.get(f"http://127.0.0.1:{port}/endless") as response,
        ):
            assert await read_bounded(response, 5000) == b"x" * 5000
