"""Keys, and tokens signed with them."""

from __future__ import annotations

from time import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from core.errors import Unauthenticated
from gateway.auth.tokens import Authenticator

SECRET = "a-secret-of-at-least-thirty-two-bytes!"
API_SECRET = "an-api-secret-0001"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
ANY_KEY = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def token(key: Any = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    headers = {"kid": claims.pop("kid")} if "kid" in claims else None
    return jwt.encode({"exp": int(time()) + 60, **claims}, key, algorithm, headers=headers)


def pem(key: ANY_KEY) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


async def auth_id(authenticator: Authenticator, bearer: str) -> str | None:
    return (await authenticator.authenticate([f"Bearer {bearer}"])).auth_id


async def refused(authenticator: Authenticator, bearer: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await authenticator.authenticate([f"Bearer {bearer}"])
    return caught.value.code
