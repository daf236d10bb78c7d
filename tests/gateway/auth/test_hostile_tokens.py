"""Forged and malformed tokens, against each way of verifying one: all get 401, none a 500."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import time
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA256
from jwt.algorithms import HMACAlgorithm, RSAAlgorithm

from core.settings import Settings
from core.tokens import InvalidToken, TokenIssuer
from gateway.auth.tokens import Authenticator, authentication
from gateway.http.host_names import Names
from gateway.http.principal import PRINCIPAL
from gateway.http.route import Route
from tests.support.edge import Served, make_app, served
from tests.support.tokens import RSA_KEY, SECRET, pem

pytestmark = [pytest.mark.unit, pytest.mark.attack]

KID = "r"
INTERNAL = TokenIssuer("a-livekit-secret-of-32-bytes-at-least")
"""The issuer of the tokens between gateway and workers."""


def part(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def by_secret(signed: bytes) -> bytes:
    return HMACAlgorithm(HMACAlgorithm.SHA256).sign(signed, SECRET.encode())


def by_rsa(signed: bytes) -> bytes:
    return RSA_KEY.sign(signed, padding.PKCS1v15(), SHA256())


def claims(**changes: Any) -> dict[str, Any]:
    return {"sub": "acme", "exp": int(time()) + 60, **changes}


class Maker:
    """Makes tokens; except FORGER's, the signatures are valid and only the content is wrong."""

    def __init__(self, alg: str, sign: Callable[[bytes], bytes]) -> None:
        self.alg, self._sign = alg, sign

    def raw(self, header: bytes, payload: bytes) -> str:
        signed = f"{part(header)}.{part(payload)}"
        return f"{signed}.{part(self._sign(signed.encode()))}"

    def headed(self, **header: Any) -> str:
        whole = {"alg": self.alg, "typ": "JWT", "kid": KID, **header}
        return self.raw(json.dumps(whole).encode(), json.dumps(claims()).encode())

    def claiming(self, **changes: Any) -> str:
        header = {"alg": self.alg, "kid": KID}
        return self.raw(json.dumps(header).encode(), json.dumps(claims(**changes)).encode())


FORGER = Maker("HS256", lambda _: b"x" * 32)


@dataclass(frozen=True)
class Gate:
    """A gateway, its ways of verifying tokens, and a maker that can sign for it."""

    kind: str
    at: Served
    maker: Maker

    async def answer(self, bearer: str) -> tuple[int, str | None]:
        headers = {"Authorization": f"Bearer {bearer}"}
        async with self.at.http.get("/v1/me", headers=headers) as response:
            error = (await response.json()).get("error")
            return response.status, error and error["code"]


@pytest.fixture(scope="module")
async def gates(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Gate]]:
    async def jwks(_request: web.Request) -> web.Response:
        key = RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True)
        return web.json_response({"keys": [{**key, "kid": KID}]})

    async def whoami(request: web.Request) -> web.Response:
        return web.json_response({"auth_id": request[PRINCIPAL].auth_id})

    async with AsyncExitStack() as stack:
        provider = Route("GET /jwks", jwks, "")
        keys = await stack.enter_async_context(served(make_app([provider])))
        key_file = tmp_path_factory.mktemp("keys") / "key.pem"
        key_file.write_bytes(pem(RSA_KEY))
        secrets = json.dumps([{"id": "b", "secret": "another-secret-0001"}])
        ways: dict[str, dict[str, Any]] = {
            "secret": {"auth_jwt_secret": SECRET},
            "public key": {"auth_jwt_public_key": key_file},
            "jwks": {"auth_jwks_url": f"http://127.0.0.1:{keys.port}/jwks"},
        }
        ways["all"] = {name: value for way in ways.values() for name, value in way.items()}
        ways["all"]["auth_api_secrets_json"] = secrets
        found = []
        for kind, values in ways.items():
            settings = Settings(_env_file=None, auth_required=True, **values)
            authenticator = Authenticator.from_settings(settings)
            stack.push_async_callback(authenticator.aclose)
            route = Route("GET /v1/me", whoami, "")
            app = make_app([route], authentication(authenticator, Names(settings)))
            maker = Maker("HS256", by_secret) if kind == "secret" else Maker("RS256", by_rsa)
            found.append(Gate(kind, await stack.enter_async_context(served(app)), maker))
        yield found


async def refused(gates: list[Gate], bearer: Callable[[Maker], str]) -> bool:
    """Check that every gateway refuses the token with the same answer."""
    answers = {gate.kind: await gate.answer(bearer(gate.maker)) for gate in gates}
    assert answers == {gate.kind: (401, "UNAUTHORIZED") for gate in gates}
    return True


def each(name: str, *values: Any) -> list[dict[str, Any]]:
    return [{name: value} for value in values]


DEEP = b'{"alg":' + b"[" * 2000 + b"]" * 2000 + b"}"
LIST, OBJECT = ["RS256"], {"RS256": "HS256"}

HEADERS: list[dict[str, Any]] = [
    *each("alg", LIST, OBJECT, None, True, 256, 1.5, "", " RS256", "rs256", []),
    *each("alg", "none", "None", "nOnE", "HS384", "PS256", "ES256K", "RS256\x00"),
    *each("kid", ["r"], {"r": 1}, True, 7, 1e300, [[]]),
    *each("typ", ["JWT"], {"JWT": 1}, 7, True),
    *each("cty", ["JWT"], {}, 7),
    *each("crit", ["exp"], [], {}, "exp", ["b64"], [["b64"]], None, 7),
    *each("b64", False, True, "false", [], {}),
    {"b64": False, "crit": ["b64"]},
    {"alg": LIST, "kid": ["r"], "typ": {}, "crit": {}},
]


@pytest.mark.parametrize("header", HEADERS, ids=json.dumps)
async def test_a_header_that_is_not_as_it_must_be(
    gates: list[Gate], header: dict[str, Any]
) -> None:
    assert await refused(gates, lambda maker: maker.headed(**header))
    with pytest.raises(InvalidToken):
        INTERNAL.verify(FORGER.headed(**header), "switchroom:call")


RAW: dict[str, tuple[bytes, bytes]] = {
    "a header that is a list": (b'["RS256"]', b"{}"),
    "a header that is a string": (b'"RS256"', b"{}"),
    "a header that is null": (b"null", b"{}"),
    "a header that is a number": (b"1", b"{}"),
    "an empty header": (b"{}", b"{}"),
    "a header without alg": (b'{"typ":"JWT","kid":"r"}', b"{}"),
    "a header of nothing": (b"", b"{}"),
    "a header that is no JSON": (b'{"alg":', b"{}"),
    "a header that is no UTF-8": (b'{"alg":"\xff"}', b"{}"),
    "a header in UTF-16": ('{"alg":"RS256"}'.encode("utf-16"), b"{}"),
    "a header half a surrogate": (b'{"alg":"\\ud800"}', b"{}"),
    "a kid half a surrogate": (b'{"alg":"RS256","kid":"\\ud800"}', b"{}"),
    "a header a thousand deep": (DEEP, b"{}"),
    "a number of many digits": (b'{"alg":"RS256","x":' + b"9" * 5000 + b"}", b"{}"),
    "NaN": (b'{"alg":NaN,"kid":Infinity}', b"{}"),
    "a payload that is a list": (b'{"alg":"RS256"}', b"[]"),
    "a payload that is null": (b'{"alg":"HS256"}', b"null"),
    "a payload of nothing": (b'{"alg":"RS256"}', b""),
    "a payload that is no JSON": (b'{"alg":"RS256"}', b"{"),
    "a payload that is no UTF-8": (b'{"alg":"HS256"}', b'{"sub":"\xff"}'),
    "a payload a thousand deep": (b'{"alg":"HS256"}', b"[" * 2000 + b"]" * 2000),
}


@pytest.mark.parametrize("name", RAW)
async def test_parts_that_are_no_json_objects(gates: list[Gate], name: str) -> None:
    assert await refused(gates, lambda maker: maker.raw(*RAW[name]))


SHAPES = [
    "x",
    ".",
    "..",
    "...",
    "a.b",
    "a.b.c",
    "a.b.c.d.e",
    "!.!.!",
    "=.=.=",
    "e30.e30.",
    "e30=.e30=.e30=",
    f"{part(b'{}')}.{part(b'{}')}.{'A' * 4000}",
    "e" * 8000,
    "." * 8000,
]


@pytest.mark.parametrize("bearer", SHAPES, ids=range(len(SHAPES)))
async def test_what_is_no_token_at_all(gates: list[Gate], bearer: str) -> None:
    assert await refused(gates, lambda _: bearer)


CLAIMS: list[dict[str, Any]] = [
    *each("exp", [], {}, None, True, "soon", -1, float("inf"), "٣"),
    *each("nbf", [], {}, "soon", float("nan"), 1e308),
    *each("sub", [], {}, 7, None, "", " ", "a\x00b", "x" * 257),
    *each("auth_id", [], {}, 7, None, "\n", "a\x7fb"),
    *each("auth", [], "a", 7, None, {"id": []}, {"id": {}}, {"id": None}),
    *each("jti", [], {}, 7),
]


@pytest.mark.parametrize("changes", CLAIMS, ids=json.dumps)
async def test_claims_that_are_not_as_they_must_be(
    gates: list[Gate], changes: dict[str, Any]
) -> None:
    assert await refused(gates, lambda maker: maker.claiming(**changes))


async def test_the_same_makers_get_in_with_good_ones(gates: list[Gate]) -> None:
    """The makers' good tokens are accepted, so the tests above show refusals of the content."""
    for gate in gates:
        maker = gate.maker
        for bearer in (maker.headed(), maker.claiming(), maker.claiming(exp=1e308)):
            assert (gate.kind, *await gate.answer(bearer)) == (gate.kind, 200, None)
