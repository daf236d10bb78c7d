"""GET /try/{agentId} and the files that it loads: who may get them, and what they may do."""

from __future__ import annotations

import gzip
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.api import try_page
from gateway.api.try_page import livekit_origins
from tests.support.inprocess import Running, running, settings_in

pytestmark = pytest.mark.store


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    public = "wss://livekit.example.com:7443"
    async with running(settings_in(tmp_path, livekit_public_url=public)) as started:
        yield started


async def test_it_is_public_and_may_load_little(gateway: Running) -> None:
    async with gateway.http.get("/try/no_such-agent") as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        rules = dict(
            rule.split(" ", 1) for rule in response.headers["Content-Security-Policy"].split("; ")
        )
        html = await response.text()
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == "'self'"
    host = "livekit.example.com:7443"
    assert rules["connect-src"] == f"'self' wss://{host} https://{host}"
    assert "no_such-agent" not in html, "the page is the same for every agent"
    # The policy would refuse inline scripts and styles.
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", html)


async def test_everything_it_names_is_served(gateway: Running) -> None:
    async with gateway.http.get("/try/agent") as response:
        html = await response.text()
    named = set(re.findall(r'(?:src|href)="([^"]+)"', html))
    for module in ("try.js", "call.js", "socket_call.js", "switchroom.js"):
        async with gateway.http.get(f"/static/{module}") as response:
            code = await response.text()
        imports = re.findall(r'^import .* from "\./([^"]+)"|new URL\("\./([^"]+)"', code, re.M)
        named |= {f"/static/{name or beside}" for name, beside in imports}
    assert named == {f"/static/{name}" for name in try_page._FILES}
    for path in named - {"/static/livekit-client.js"}:
        async with gateway.http.get(path) as response:
            assert response.status == 200, path
            assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_the_library_that_is_not_installed_is_not_found(
    gateway: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = (tmp_path / "none.js", "text/javascript")
    monkeypatch.setitem(try_page._FILES, "livekit-client.js", missing)
    async with gateway.http.get("/static/livekit-client.js") as response:
        assert response.status == 404
        assert (await response.json())["code"] == "NOT_FOUND"


@pytest.mark.parametrize(
    "path", ["/static/none.js", "/static/..%2fapp.py", "/static/try.html", "/try/a%2fb", "/try/"]
)
async def test_nothing_else_is(gateway: Running, path: str) -> None:
    async with gateway.http.get(path) as response:
        assert response.status == 404


async def test_what_has_not_changed_is_not_sent_again(gateway: Running) -> None:
    async with gateway.http.get("/static/try.js") as response:
        tag = response.headers["ETag"]
    async with gateway.http.get("/static/try.js", headers={"If-None-Match": tag}) as response:
        assert response.status == 304
        assert await response.read() == b""
    async with gateway.http.get("/static/try.js", headers={"If-None-Match": 'W/"x"'}) as response:
        assert response.status == 200


async def test_it_is_packed_for_those_who_can_unpack_it(gateway: Running) -> None:
    plain, packed = {"Accept-Encoding": "identity"}, {"Accept-Encoding": "gzip"}
    async with gateway.http.get("/static/try.css", headers=plain) as response:
        assert "Content-Encoding" not in response.headers
        whole = await response.read()
    url = gateway.http._build_url("/static/try.css")
    async with gateway.http.get(url, headers=packed) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        assert int(response.headers["Content-Length"]) == len(gzip.compress(whole, mtime=0))
        assert await response.read() == whole, "aiohttp unpacks it"


@pytest.mark.parametrize(
    ("address", "origins"),
    [
        ("ws://127.0.0.1:7880", ["ws://127.0.0.1:7880", "http://127.0.0.1:7880"]),
        ("https://[::1]/rtc", ["wss://[::1]", "https://[::1]"]),
        ("wss://user:word@lk.example.com", ["wss://lk.example.com", "https://lk.example.com"]),
        ("wss://lk.example.com;script-src *", []),
        ("wss://a b", []),
    ],
)
def test_only_hosts_get_into_the_policy(tmp_path: Path, address: str, origins: list[str]) -> None:
    assert livekit_origins(settings_in(tmp_path, livekit_public_url=address)) == origins
