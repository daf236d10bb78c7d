"""Destinations of exports: those that are refused, and what they are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from core.settings import Settings
from gateway.recordings.destinations import (
    GuardedBucket,
    TenantBucket,
    allowed,
    session_to_tenants,
)
from recordings.errors import StoreRefused
from tests.recordings.test_store import put
from tests.recordings.test_stores import counting
from tests.support.export_rig import (
    rig_in,
)
from tests.support.s3_server import SECRET_KEY, S3Server

pytestmark = pytest.mark.store


@pytest.mark.attack
@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/prefix-evil",
        "s3://bucket",
        "s3://bucket/prefix/../other",
        "s3://bucket/prefix/..",
        "s3://bucket/prefix/%2e%2e/other",
        "s3://bucket/prefix//other",
        "s3://bucket/prefix/a?endpoint=https://evil.example",
        "s3://bucket/prefix?region=x",
        "s3://bucket.evil/prefix",
        "S3://bucket/prefix",
        "s3://user@bucket/prefix",
        "s3://bucket/prefix\\..\\other",
        "file:///exports/a",
        "file:///exports/../etc",
        "https://bucket/prefix",
    ],
)
def test_no_other_address_is_below_ours(url: str) -> None:
    settings = Settings(
        _env_file=None,
        recordings_export_urls=("s3://bucket/prefix/?region=eu-central-1", "file:///exports"),
    )
    assert allowed(url, settings, operator=False) is None
    if url != "file:///exports/a":
        assert allowed(url, settings, operator=True) is None


def test_the_endpoint_is_the_settings() -> None:
    settings = Settings(
        _env_file=None, recordings_export_urls=("s3://bucket/prefix/?region=eu-central-1",)
    )
    assert (
        allowed("s3://bucket/prefix/a/b/", settings, operator=False)
        == "s3://bucket/prefix/a/b?region=eu-central-1"
    )


@pytest.mark.attack
@pytest.mark.parametrize(
    "changes",
    [
        {"endpoint": "https://127.0.0.1"},
        {"endpoint": "https://169.254.169.254"},
        {"endpoint": "https://2130706433"},
        {"endpoint": "https://[::1]:9000"},
        {"endpoint": "https://localhost"},
        {"endpoint": "http://s3.example.com"},
        {"endpoint": "https://s3.example.com/path"},
        {"endpoint": "https://user:password@s3.example.com"},
        {"endpoint": "file:///etc"},
        {"endpoint": "https://s3.example.com:99999"},
        {"endpoint": "https://s3.example.com:abc"},
        {"endpoint": "https://s3.example.com:0"},
        {"endpoint": "https://s3 example.com"},
        {"endpoint": "https://a..b"},
        {"endpoint": f"https://{'a' * 70}.example.com"},
        {"endpoint": "https://exa<mple.com"},
        {"endpoint": "https://exa\tmple.com"},
        {"endpoint": "https://[::gg]"},
        {"url": "s3://bucket/a\x01b"},
        {"region": "eu.evil.example/"},
        {"url": "file:///etc"},
        {"url": "s3://bucket/../other"},
        {"url": "s3://bucket?endpoint=https://127.0.0.1"},
    ],
)
async def test_endpoints_that_are_refused(
    tmp_path: Path, s3_server: S3Server, changes: dict[str, str]
) -> None:
    async with rig_in(tmp_path, s3_server, webhook_allow_private=False) as rig:
        own = {**rig.own(), "endpoint": "https://s3.example.com", **changes}
        status, body = await rig.asked(destination=own)
        assert status == 422, body
        assert SECRET_KEY not in str(body)


@pytest.mark.attack
async def test_a_name_that_leads_to_a_private_address_gets_no_connection(tmp_path: Path) -> None:
    """The connection is guarded, whatever the name resolved to when the job was accepted."""
    with counting() as (port, seen):
        bucket = TenantBucket(
            url="s3://bucket",
            access_key_id="id",
            secret_access_key="secret",
            endpoint=f"http://localhost:{port}",
        )
        async with session_to_tenants(Settings(_env_file=None)) as session:
            with pytest.raises(StoreRefused, match="not public"):
                await put(GuardedBucket(bucket, session), "a.wav", b"data")
        assert seen.empty()


@pytest.mark.attack
async def test_nothing_of_ours_goes_to_a_tenants_endpoint(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "our-token")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "our-id")
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(f"{request.rel_url} {request.headers}")
        raise web.HTTPTemporaryRedirect("http://127.0.0.1:9/elsewhere")

    async with RawTestServer(answer) as server:
        bucket = TenantBucket(
            url="s3://bucket/a",
            access_key_id="their-id",
            secret_access_key="secret",
            endpoint=f"http://127.0.0.1:{server.port}",
        )
        settings = Settings(_env_file=None, webhook_allow_private=True)
        async with session_to_tenants(settings) as session:
            with pytest.raises(StoreRefused, match="answered 307"):
                await put(GuardedBucket(bucket, session), "b.wav", b"data")
    (request,) = asked
    assert request.startswith("/bucket/a/b.wav?") and "their-id" in request
    assert "our-" not in request
