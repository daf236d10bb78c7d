from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import time
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from core.settings import Settings
from gateway.auth.tokens import Authenticator, authentication
from gateway.http.body import parse_json, read_body
from gateway.http.host_names import Names
from gateway.http.principal import PRINCIPAL
from gateway.http.route import Route
from tests.support.edge import Served, make_app, served
from tests.support.tokens import (
    ANY_KEY,
    API_SECRET,
    EC_KEY,
    ED_KEY,
    RSA_KEY,
    SECRET,
    auth_id,
    pem,
    refused,
    token,
)

pytestmark = pytest.mark.unit


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **{"auth_required": True, **values})


def key_file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    return path


@asynccontextmanager
async def gateway(**values: Any) -> AsyncIterator[Served]:
    async def whoami(request: web.Request) -> web.Response:
        return web.json_response({"auth_id": request[PRINCIPAL].auth_id})

    async def echo(request: web.Request) -> web.Response:
        return web.json_response(parse_json(await read_body(request)))

    async def open_(request: web.Request) -> web.Response:
        return web.json_response({"known": PRINCIPAL in request})

    chosen = settings(**values)
    authenticator = Authenticator.from_settings(chosen)
    routes = [
        Route("GET /sip/me", whoami, ""),
        Route("POST /sip/echo", echo, ""),
        Route("GET /", open_, "", public=True),
        Route("GET /internal/x", open_, "", internal=True),
    ]
    async with served(make_app(routes, authentication(authenticator, Names(chosen)))) as http:
        yield http
    await authenticator.aclose()


# --- over HTTP


async def test_a_tenant_is_known_by_its_token() -> None:
    async with gateway(auth_jwt_secret=SECRET) as at:
        headers = {"Authorization": f"bearer  {token(auth_id=' acme ')}"}
        async with at.http.get("/sip/me", headers=headers) as response:
            assert (response.status, await response.json()) == (200, {"auth_id": "acme"})


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "MISSING_AUTH_HEADER"),
        ("", "INVALID_AUTH_HEADER"),
        ("Bearer", "INVALID_AUTH_HEADER"),
        ("Bearer ", "INVALID_AUTH_HEADER"),
        ("Bearer a b", "INVALID_AUTH_HEADER"),
        ("Basic dXNlcjpwdw==", "INVALID_AUTH_HEADER"),
        ("Token abc", "INVALID_AUTH_HEADER"),
        (API_SECRET, "INVALID_AUTH_HEADER"),
        ("Bearer é", "INVALID_AUTH_HEADER"),
        ("Bearer x", "UNAUTHORIZED"),
        ("Bearer a.b.c", "UNAUTHORIZED"),
        ("Bearer ..", "UNAUTHORIZED"),
        ("Bearer " + "x" * 7000, "UNAUTHORIZED"),
    ],
)
async def test_refusals_are_401_with_a_challenge(header: str | None, code: str) -> None:
    async with gateway(auth_jwt_secret=SECRET) as at:
        headers = {} if header is None else {"Authorization": header}
        async with at.http.get("/sip/me", headers=headers) as response:
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
            body = await response.json()
    assert body["code"] == code
    assert set(body) == {"error", "code"}


async def test_two_authorization_headers_are_refused() -> None:
    async with gateway(auth_jwt_secret=SECRET) as at:
        twice = [("Authorization", f"Bearer {token(sub='a')}")] * 2
        async with at.http.get("/sip/me", headers=twice) as response:
            assert (await response.json())["code"] == "INVALID_AUTH_HEADER"


async def test_the_caller_is_known_before_the_body_is_read() -> None:
    async with gateway(auth_jwt_secret=SECRET) as at:
        json_type = {"Content-Type": "application/json"}
        async with at.http.post("/sip/echo", data=b"{", headers=json_type) as response:
            assert response.status == 401
        known = {**json_type, "Authorization": f"Bearer {token(sub='a')}"}
        async with at.http.post("/sip/echo", data=b"{", headers=known) as response:
            assert (await response.json())["code"] == "INVALID_JSON"


async def test_public_internal_and_absent_paths_need_no_token() -> None:
    async with gateway(auth_jwt_secret=SECRET) as at:
        for method, path, status in (
            ("GET", "/", 200),
            ("HEAD", "/", 200),
            ("GET", "/internal/x", 200),
            ("GET", "/nowhere", 404),
            ("POST", "/sip/me", 405),
            ("HEAD", "/sip/me", 401),
        ):
            async with at.http.request(method, path) as response:
                assert (path, response.status) == (path, status)


async def test_without_auth_a_token_may_be_missing_but_not_wrong() -> None:
    async with gateway(auth_required=False, auth_jwt_secret=SECRET, auth_require_id=True) as at:
        async with at.http.get("/sip/me") as response:
            assert await response.json() == {"auth_id": None}
        headers = {"Authorization": f"Bearer {token(sub='acme')}"}
        async with at.http.get("/sip/me", headers=headers) as response:
            assert await response.json() == {"auth_id": "acme"}
        headers = {"Authorization": "Bearer wrong"}
        async with at.http.get("/sip/me", headers=headers) as response:
            assert response.status == 401


# --- claims


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({}, None),
        ({"sub": "s"}, "s"),
        ({"auth": {"id": "a"}, "sub": "s"}, "a"),
        ({"auth": {}, "sub": "s"}, "s"),
        ({"auth_id": "t", "auth": {"id": "a"}, "sub": "s"}, "t"),
        ({"auth_id": "\u2003tenant\n"}, "tenant"),
        ({"auth_id": "Zoë"}, "Zoë"),
        ({"iat": int(time()) + 30, "sub": "s"}, "s"),
        ({"aud": "whoever", "iss": "whoever", "sub": "s"}, "s"),
    ],
)
async def test_which_claim_names_the_tenant(claims: dict[str, Any], expected: str | None) -> None:
    authenticator = Authenticator.from_settings(settings(auth_jwt_secret=SECRET))
    assert await auth_id(authenticator, token(**claims)) == expected


@pytest.mark.parametrize(
    "claims",
    [
        {"auth_id": ""},
        {"auth_id": "  "},
        {"auth_id": None, "sub": "s"},
        {"auth_id": 7, "sub": "s"},
        {"auth_id": ["t"]},
        {"auth_id": "a\x00b"},
        {"auth_id": "a\nb"},
        {"auth_id": "\ud800"},
        {"auth_id": "x" * 257},
        {"auth": "a"},
        {"auth": None, "sub": "s"},
        {"auth": {"id": 7}},
        {"auth": {"id": None}, "sub": "s"},
        {"auth": {"id": " "}, "sub": "s"},
        {"sub": ""},
        {"exp": None},
        {"exp": int(time()) - 1},
        {"exp": "soon"},
        {"exp": float("inf")},
        {"nbf": int(time()) + 86_400},
    ],
)
async def test_claims_that_refuse_a_token(claims: dict[str, Any]) -> None:
    authenticator = Authenticator.from_settings(settings(auth_jwt_secret=SECRET))
    assert await refused(authenticator, token(**{"sub": "s", **claims})) == "UNAUTHORIZED"


async def test_a_non_string_sub_refuses_a_token() -> None:
    payload = {"exp": int(time()) + 60, "sub": 7}
    bearer = jwt.api_jws.encode(json.dumps(payload).encode(), SECRET, "HS256")
    authenticator = Authenticator.from_settings(settings(auth_jwt_secret=SECRET))
    assert await refused(authenticator, bearer) == "UNAUTHORIZED"


async def test_require_id_refuses_unscoped_tokens() -> None:
    authenticator = Authenticator.from_settings(
        settings(auth_jwt_secret=SECRET, auth_require_id=True)
    )
    assert await refused(authenticator, token()) == "UNAUTHORIZED"
    assert await auth_id(authenticator, token(sub="s")) == "s"


async def test_audience_and_issuer() -> None:
    authenticator = Authenticator.from_settings(
        settings(auth_jwt_secret=SECRET, auth_jwt_audience="us", auth_jwt_issuer="them")
    )
    assert await auth_id(authenticator, token(sub="s", aud=["us", "x"], iss="them")) == "s"
    for claims in (
        {},
        {"aud": "us"},
        {"iss": "them"},
        {"aud": "x", "iss": "them"},
        {"aud": "us", "iss": "x"},
    ):
        assert await refused(authenticator, token(sub="s", **claims)) == "UNAUTHORIZED"


# --- keys


@pytest.mark.parametrize(
    ("key", "algorithm"), [(RSA_KEY, "RS256"), (EC_KEY, "ES256"), (ED_KEY, "EdDSA")]
)
async def test_public_keys(tmp_path: Path, key: ANY_KEY, algorithm: str) -> None:
    path = key_file(tmp_path, pem(key))
    authenticator = Authenticator.from_settings(settings(auth_jwt_public_key=path))
    assert await auth_id(authenticator, token(key, algorithm, sub="s")) == "s"
    assert await refused(authenticator, token(sub="s")) == "UNAUTHORIZED"
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert await refused(authenticator, token(other, "RS256", sub="s")) == "UNAUTHORIZED"


async def test_the_algorithm_is_never_the_tokens_choice(tmp_path: Path) -> None:
    public = pem(RSA_KEY)
    path = key_file(tmp_path, public)
    authenticator = Authenticator.from_settings(
        settings(auth_jwt_public_key=path, auth_jwt_secret=SECRET)
    )
    assert await auth_id(authenticator, token(sub="s")) == "s"
    assert await auth_id(authenticator, token(RSA_KEY, "RS256", sub="s")) == "s"
    # An HMAC with the public key, made by hand because pyjwt refuses such a key.
    signer = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    forged = token(b"x" * 32, sub="s").rpartition(".")[0]
    signature = base64.urlsafe_b64encode(signer.sign(forged.encode(), public)).rstrip(b"=")
    unsigned = jwt.encode({"exp": time() + 60, "sub": "s"}, "", "none")
    stripped = token(sub="s").rpartition(".")[0] + "."
    for bearer in (
        f"{forged}.{signature.decode()}",
        unsigned,
        stripped,
        token(SECRET * 2, "HS512", sub="s"),
        token(RSA_KEY, "PS256", sub="s"),
        token(RSA_KEY, "RS512", sub="s"),
    ):
        assert await refused(authenticator, bearer) == "UNAUTHORIZED"


async def test_api_secrets() -> None:
    secrets = json.dumps(
        [{"id": " acme ", "secret": API_SECRET}, {"id": "b", "secret": "second-secret-0002"}]
    )
    authenticator = Authenticator.from_settings(settings(auth_api_secrets_json=secrets))
    assert await auth_id(authenticator, API_SECRET) == "acme"
    assert await auth_id(authenticator, "second-secret-0002") == "b"
    for bearer in (API_SECRET + "x", API_SECRET[:-1], token(sub="s")):
        assert await refused(authenticator, bearer) == "UNAUTHORIZED"


def two_secrets(*, ids: str, ends: str) -> str:
    pairs = zip(ids, ends, strict=True)
    return json.dumps([{"id": name, "secret": f"hush-hush-hush-{end}"} for name, end in pairs])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not json", "Invalid JSON"),
        ("{}", "array"),
        ("[]", "names no secret"),
        ('[{"id": "a"}]', "secret"),
        ('[{"id": "a", "secret": "hush-hush"}]', "16"),
        ('[{"id": "", "secret": "hush-hush-hush-0"}]', "id"),
        ('[{"id": 7, "secret": "hush-hush-hush-0"}]', "id"),
        ('[{"id": "a\\u0000", "secret": "hush-hush-hush-0"}]', "control"),
        ('[{"id": "a", "secret": "hush hush hush 0"}]', "secret"),
        ('[{"id": "a", "secret": "hush-hush-hush-0", "x": 1}]', "x"),
        (two_secrets(ids="aa", ends="01"), "same id"),
        (two_secrets(ids="ab", ends="00"), "same secret"),
    ],
)
def test_bad_api_secrets_are_named_but_not_shown(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="^AUTH_API_SECRETS_JSON: ") as caught:
        Authenticator.from_settings(settings(auth_api_secrets_json=text))
    assert says in str(caught.value)
    assert "hush" not in str(caught.value)


def small_rsa() -> bytes:
    return pem(rsa.generate_private_key(public_exponent=65537, key_size=1024))


def other_curve() -> bytes:
    return pem(ec.generate_private_key(ec.SECP384R1()))


@pytest.mark.parametrize("content", [lambda: b"", lambda: b"nonsense", small_rsa, other_curve])
def test_bad_public_keys_are_refused(tmp_path: Path, content: Callable[[], bytes]) -> None:
    path = key_file(tmp_path, content())
    with pytest.raises(ValueError, match="^AUTH_JWT_PUBLIC_KEY: "):
        Authenticator.from_settings(settings(auth_jwt_public_key=path))


def test_a_public_key_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^AUTH_JWT_PUBLIC_KEY: No such file"):
        Authenticator.from_settings(settings(auth_jwt_public_key=tmp_path / "none.pem"))


def test_a_public_key_is_no_secret() -> None:
    with pytest.raises(ValueError, match="^AUTH_JWT_SECRET: "):
        Authenticator.from_settings(settings(auth_jwt_secret=pem(RSA_KEY).decode()))


def test_a_jwks_url_must_be_one() -> None:
    with pytest.raises(ValueError, match="^AUTH_JWKS_URL: "):
        Authenticator.from_settings(settings(auth_jwks_url="file:///etc/passwd"))


def test_no_settings_no_verifier() -> None:
    with pytest.raises(ValueError, match="AUTH_REQUIRED needs"):
        settings()
