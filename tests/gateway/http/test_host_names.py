"""Without authentication a gateway answers only under its own names, and to no foreign page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from dev.stack.environment import GivenSettings
from gateway.auth.tokens import Authenticator, authentication
from gateway.http.host_names import Names, check_listen_address, is_loopback
from gateway.http.route import Route
from tests.support.edge import Served, make_app, served
from tests.support.tokens import SECRET, token

pytestmark = pytest.mark.unit
attack = pytest.mark.attack

OPEN = {"gateway_host": "0.0.0.0", "allow_open_gateway": True}


async def ok(_request: web.Request) -> web.Response:
    return web.json_response({"ok": True})


ROUTES = [
    *(
        Route(f"{method} {path}", ok, "")
        for method in ("GET", "POST")
        for path in ("/v1/x", "/sip/x", "/api/v1/x")
    ),
    Route("GET /healthz", ok, "", public=True),
    Route("POST /livekit/webhook", ok, "", public=True),
    Route("POST /internal/x", ok, "", internal=True),
]


async def serving(**values: Any) -> AsyncIterator[Served]:
    settings = GivenSettings(auth_jwt_secret=SECRET, **values)
    authenticator = Authenticator.from_settings(settings)
    app = make_app(ROUTES, authentication(authenticator, Names(settings)))
    async with served(app) as at:
        yield at


@pytest.fixture(scope="module")
async def local() -> AsyncIterator[Served]:
    """A gateway with the default settings, plus the host name that workers use."""
    async for at in serving(gateway_url="http://gateway:8080"):
        yield at


@pytest.fixture(scope="module")
async def open_() -> AsyncIterator[Served]:
    async for at in serving(**OPEN, gateway_url="http://calls.example.com"):
        yield at


@pytest.fixture(scope="module")
async def closed() -> AsyncIterator[Served]:
    async for at in serving(auth_required=True):
        yield at


async def ask(at: Served, *lines: str, target: str = "/v1/x", version: str = "1.1") -> str:
    """Send the request as it stands; return the answer's status and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
    head = [f"GET {target} HTTP/{version}", *lines, "Connection: close", "", ""]
    writer.write("\r\n".join(head).encode("latin-1"))
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    status, _, rest = answer.decode().partition("\r\n")
    return f"{status.split()[1]} {rest.partition(chr(13) + chr(10) * 2)[2]}{rest[-400:]}"


LOCAL_NAMES = [
    "localhost",
    "localhost:8080",
    "LOCALHOST:8080",
    "localhost.",
    "LocalHost.:80",
    "app.localhost:8080",
    "127.0.0.1",
    "127.0.0.1:8080",
    "127.8.9.10:1",
    "[::1]",
    "[::1]:8080",
    "[0:0:0:0:0:0:0:1]:8080",
    "[::ffff:127.0.0.1]",
    "gateway:8080",
    "Gateway.",
]


@pytest.mark.parametrize("host", LOCAL_NAMES)
async def test_names_of_this_machine(local: Served, host: str) -> None:
    assert (await ask(local, f"Host: {host}")).startswith("200")
    assert (await ask(local, f"Host: {host}", f"Origin: http://{host}")).startswith("200")


FOREIGN_NAMES = [
    "evil.example",
    "evil.example:8080",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "127.0.0.1.nip.io:8080",
    "localhost@evil.example",
    "evil.example@localhost",
    "evil.example#localhost",
    "localhost/evil.example",
    "localhost\\evil.example",
    "localhost,evil.example",
    "localhost evil.example",
    "evillocalhost",
    "localhost..",
    "notgateway",
    "gateway.evil.example",
    "0.0.0.0:8080",
    "[::]",
    "10.0.0.5",
    "169.254.169.254",
    "203.0.113.7:8080",
    "[2001:db8::1]",
    "[fe80::1%25lo]",
    "::1",
    "[::1",
    "2130706433",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "127.1",
    "localhost:",
    "localhost:port",
    "localhost:123456",
    "l\xf6calhost",
    "",
    ":8080",
    "*",
]


@attack
@pytest.mark.parametrize("host", FOREIGN_NAMES)
async def test_other_names(local: Served, host: str) -> None:
    answer = await ask(local, f"Host: {host}")
    assert answer.startswith(("403", "400")) and "{" in answer
    assert "evil" not in answer


FOREIGN_PAGES = [
    "null",
    "",
    "http://evil.example",
    "https://evil.example:8080",
    "http://localhost.evil.example",
    "http://localhost@evil.example",
    "http://localhost:8080/",
    "http://203.0.113.7",
    "http://[2001:db8::1]:8080",
    "file://",
    "chrome-extension://abcdefgh",
    "http://localhost http://evil.example",
    "localhost",
    "//localhost",
    "http:localhost",
]


@attack
@pytest.mark.parametrize("origin", FOREIGN_PAGES)
async def test_pages_of_strangers(local: Served, open_: Served, origin: str) -> None:
    for at in (local, open_):
        answer = await ask(at, "Host: localhost:8080", f"Origin: {origin}")
        assert answer.startswith("403") and "ORIGIN_NOT_ALLOWED" in answer


@pytest.mark.parametrize(
    "origin", ["http://localhost:8080", "http://127.0.0.1:3000", "https://[::1]", "http://gateway"]
)
async def test_pages_of_this_machine(local: Served, origin: str) -> None:
    assert (await ask(local, "Host: 127.0.0.1", f"Origin: {origin}")).startswith("200")


@attack
@pytest.mark.parametrize(
    ("lines", "version", "target"),
    [
        ((), "1.0", "/v1/x"),
        ((), "1.1", "/v1/x"),
        (("Host: localhost", "Host: localhost"), "1.1", "/v1/x"),
        (("Host: localhost", "Host: evil.example"), "1.1", "/v1/x"),
        (("Host: evil.example", "Host: localhost"), "1.1", "/v1/x"),
        (("Host: localhost", "Origin: http://localhost", "Origin: null"), "1.1", "/v1/x"),
        (("Host: evil.example",), "1.0", "/v1/x"),
        (("Host: localhost",), "1.1", "http://evil.example/v1/x"),
        (("Host: localhost",), "1.1", "http://evil.example:80/v1/x?localhost"),
        (("Host: localhost",), "1.1", "http://localhost@evil.example/v1/x"),
        (("Host: evil.example",), "1.1", "http://localhost/v1/x"),
        (("Host: localhost", "X-Forwarded-Host: localhost"), "1.1", "http://evil.example/v1/x"),
        (("Host: evil.example", "X-Forwarded-Host: localhost"), "1.1", "/v1/x"),
        (("Host: evil.example", "Forwarded: host=localhost"), "1.1", "/v1/x"),
    ],
)
async def test_a_request_that_names_none_two_or_another(
    local: Served, lines: tuple[str, ...], version: str, target: str
) -> None:
    answer = await ask(local, *lines, version=version, target=target)
    assert answer.startswith(("403", "400"))


async def test_a_target_that_says_the_same_as_host(local: Served) -> None:
    assert (await ask(local, "Host: localhost", target="http://localhost/v1/x")).startswith("200")


@attack
@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/sip/x", '{"error": "This gateway has no authentication'),
        ("/v1/x", '{"error": {"message": "This gateway has no authentication'),
        ("/api/v1/x", '{"success": false, "data": null, "message": "This gateway has no auth'),
    ],
)
async def test_the_refusal_has_the_shape_of_its_path(local: Served, path: str, told: str) -> None:
    answer = await ask(local, "Host: evil.example", target=path)
    assert answer.startswith("403") and told in answer and "HOST_NOT_ALLOWED" in answer


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/healthz"), ("POST", "/livekit/webhook"), ("POST", "/internal/x")],
)
async def test_probes_workers_and_livekit_may_use_any_name(
    local: Served, method: str, path: str
) -> None:
    async with local.http.request(method, path, headers={"Host": "10.1.2.3:8080"}) as response:
        assert response.status == 200


async def test_a_token_vouches_for_a_request(local: Served, closed: Served) -> None:
    headers = {"Host": "calls.example.com", "Origin": "https://console.example.com"}
    vouched = {**headers, "Authorization": f"Bearer {token(sub='acme')}"}
    for at in (local, closed):
        async with at.http.get("/v1/x", headers=vouched) as response:
            assert response.status == 200
    async with closed.http.get("/v1/x", headers=headers) as response:
        assert response.status == 401
    async with local.http.get("/v1/x", headers={**headers, "Authorization": "Bearer x"}) as refused:
        assert refused.status == 401


@pytest.mark.parametrize(
    "host", ["10.0.0.5:8080", "[2001:db8::1]", "localhost", "calls.example.com", "0.0.0.0"]
)
async def test_an_open_gateway_is_reached_by_address_and_by_its_names(
    open_: Served, host: str
) -> None:
    assert (await ask(open_, f"Host: {host}")).startswith("200")
    assert (await ask(open_, f"Host: {host}", f"Origin: http://{host}")).startswith("200")


@attack
@pytest.mark.parametrize("host", ["evil.example", "10.0.0.5.evil.example", "example.com"])
async def test_an_open_gateway_too_has_only_its_own_names(open_: Served, host: str) -> None:
    assert (await ask(open_, f"Host: {host}")).startswith("403")


# --- which addresses a gateway may listen on


@attack
@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "192.168.1.5", "gateway.api.worker", "[::]", "*", "0"]
)
def test_an_open_door_is_not_opened_by_mistake(host: str) -> None:
    with pytest.raises(ValueError, match="^GATEWAY_HOST .* AUTH_REQUIRED=true"):
        check_listen_address(GivenSettings(gateway_host=host))
    check_listen_address(GivenSettings(gateway_host=host, allow_open_gateway=True))
    check_listen_address(
        GivenSettings(gateway_host=host, auth_required=True, auth_jwt_secret=SECRET)
    )


@pytest.mark.parametrize("host", [None, "127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST."])
def test_loopback_is_open_to_nobody_else(host: str | None) -> None:
    check_listen_address(GivenSettings(gateway_host=host))
    assert host is None or is_loopback(host)
