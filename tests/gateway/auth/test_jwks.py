from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from core.errors import Unavailable
from gateway.auth import jwks
from gateway.auth.jwks import Jwks
from gateway.auth.keys import TokenHeader
from gateway.auth.tokens import Authenticator
from gateway.http.route import Route
from tests.support.edge import make_app, served
from tests.support.tokens import ANY_KEY, EC_KEY, ED_KEY, RSA_KEY, auth_id, refused, token

pytestmark = pytest.mark.unit


def jwk(key: ANY_KEY, kid: str | None, **more: Any) -> dict[str, Any]:
    match key:
        case rsa.RSAPrivateKey():
            made = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        case ec.EllipticCurvePrivateKey():
            made = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        case _:
            made = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**made, **({"kid": kid} if kid else {}), **more}


class Provider:
    """An identity provider whose document and behaviour a test may change."""

    def __init__(self) -> None:
        self.document: Any = {"keys": []}
        self.status = 200
        self.fetches = 0
        self.answering = asyncio.Event()
        self.answering.set()
        self.asked = asyncio.Event()
        self.url = ""

    async def serve(self, _request: web.Request) -> web.Response:
        self.fetches += 1
        self.asked.set()
        await self.answering.wait()
        return web.json_response(self.document, status=self.status)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider()
    route = Route("GET /jwks", made.serve, "", public=True)
    async with served(make_app([route])) as at:
        made.url = f"http://127.0.0.1:{at.port}/jwks"
        yield made
        made.answering.set()


@pytest.fixture
async def clock() -> Clock:
    return Clock()


@pytest.fixture
async def keys(provider: Provider, clock: Clock) -> AsyncIterator[Jwks]:
    made = Jwks(provider.url, clock=clock)
    yield made
    await made.aclose()


@pytest.fixture
async def authenticator(keys: Jwks) -> Authenticator:
    return Authenticator(required=True, jwks=keys)


async def test_jwks_keys_are_fetched_once_and_chosen_by_kid(
    provider: Provider, authenticator: Authenticator
) -> None:
    provider.document = {"keys": [jwk(RSA_KEY, "r"), jwk(EC_KEY, "e"), jwk(ED_KEY, "d")]}
    bearers = [
        token(RSA_KEY, "RS256", sub="1", kid="r"),
        token(EC_KEY, "ES256", sub="2", kid="e"),
        token(ED_KEY, "EdDSA", sub="3", kid="d"),
    ]
    found = await asyncio.gather(*(auth_id(authenticator, bearer) for bearer in bearers * 5))
    assert found == ["1", "2", "3"] * 5
    assert provider.fetches == 1
    mixed_up = token(EC_KEY, "ES256", sub="2", kid="r")
    assert await refused(authenticator, mixed_up) == "UNAUTHORIZED"


async def test_a_token_without_kid_needs_a_single_key(
    provider: Provider, authenticator: Authenticator, clock: Clock
) -> None:
    provider.document = {"keys": [jwk(RSA_KEY, "r")]}
    assert await auth_id(authenticator, token(RSA_KEY, "RS256", sub="s")) == "s"
    provider.document = {"keys": [jwk(RSA_KEY, "r"), jwk(EC_KEY, "e")]}
    clock.now += jwks.STALE_S + 1
    assert await refused(authenticator, token(RSA_KEY, "RS256", sub="s")) == "UNAUTHORIZED"


async def test_unknown_kids_refetch_at_most_once_per_cooldown(
    provider: Provider, authenticator: Authenticator, clock: Clock
) -> None:
    provider.document = {"keys": [jwk(RSA_KEY, "old")]}
    assert await auth_id(authenticator, token(RSA_KEY, "RS256", sub="s", kid="old")) == "s"
    rotated = token(EC_KEY, "ES256", sub="s", kid="new")
    for _ in range(5):
        assert await refused(authenticator, rotated) == "UNAUTHORIZED"
    assert provider.fetches == 1
    provider.document = {"keys": [jwk(EC_KEY, "new")]}
    clock.now += jwks.COOLDOWN_S + 1
    assert await auth_id(authenticator, rotated) == "s"
    assert provider.fetches == 2
    assert await refused(authenticator, token(RSA_KEY, "RS256", sub="s", kid="old"))


async def test_ageing_keys_are_used_while_they_are_refreshed(
    provider: Provider, authenticator: Authenticator, clock: Clock
) -> None:
    bearer = token(RSA_KEY, "RS256", sub="s", kid="r")
    provider.document = {"keys": [jwk(RSA_KEY, "r")]}
    assert await auth_id(authenticator, bearer) == "s"
    clock.now += jwks.FRESH_S + 1
    provider.answering.clear()
    assert await auth_id(authenticator, bearer) == "s"
    provider.status = 500
    provider.answering.set()
    clock.now += jwks.STALE_S
    with pytest.raises(Unavailable) as caught:
        await auth_id(authenticator, bearer)
    assert caught.value.code == "AUTH_UNAVAILABLE"
    assert caught.value.headers["Retry-After"]


async def test_an_unreachable_provider_is_not_asked_by_every_request(
    provider: Provider, authenticator: Authenticator, clock: Clock
) -> None:
    provider.status = 500
    bearer = token(RSA_KEY, "RS256", sub="s", kid="r")
    for _ in range(5):
        with pytest.raises(Unavailable):
            await auth_id(authenticator, bearer)
    assert provider.fetches == 1
    provider.status, provider.document = 200, {"keys": [jwk(RSA_KEY, "r")]}
    clock.now += jwks.RETRY_S + 1
    assert await auth_id(authenticator, bearer) == "s"


async def test_tokens_that_are_not_for_the_provider_cost_no_fetch(
    provider: Provider, authenticator: Authenticator
) -> None:
    for bearer in ("x", "a.b.c", token(sub="s", kid="r")):
        assert await refused(authenticator, bearer) == "UNAUTHORIZED"
    assert provider.fetches == 0


@pytest.mark.parametrize(
    "document",
    [
        {"keys": []},
        {"keys": "r"},
        [],
        {"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "r"}]},
        {"keys": [jwk(RSA_KEY, "r", use="enc")]},
        {"keys": [jwk(RSA_KEY, "r", alg="RS512")]},
        {"keys": [{**jwk(RSA_KEY, "r"), "kid": ["r"]}]},
        {"keys": [jwk(RSA_KEY, "r")], "padding": "x" * jwks.MAX_BYTES},
    ],
    ids=range(8),
)
async def test_documents_without_a_usable_key(
    provider: Provider, authenticator: Authenticator, document: Any
) -> None:
    provider.document = document
    with pytest.raises(Unavailable):
        await auth_id(authenticator, token(RSA_KEY, "RS256", sub="s", kid="r"))


async def test_redirects_of_the_provider_are_not_followed(authenticator: Authenticator) -> None:
    async def away(_request: web.Request) -> web.Response:
        raise web.HTTPFound("/jwks")

    route = Route("GET /away", away, "", public=True)
    async with served(make_app([route])) as at:
        async with at.http.get("/away", allow_redirects=False) as response:
            assert response.status == 302
        keys = Jwks(f"http://127.0.0.1:{at.port}/away")
        with pytest.raises(Unavailable):
            await keys.key_for(TokenHeader("RS256", "r"))
        await keys.aclose()


async def test_closing_ends_a_fetch_under_way(provider: Provider) -> None:
    provider.answering.clear()
    keys = Jwks(provider.url)
    waiting = asyncio.create_task(keys.key_for(TokenHeader("RS256", "r")))
    await provider.asked.wait()
    await keys.aclose()
    with pytest.raises(Unavailable):
        await waiting
