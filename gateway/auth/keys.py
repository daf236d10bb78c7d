"""The keys and API secrets that verify tokens, parsed from the settings' values.

Each function raises ValueError naming the invalid variable, never its value.
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import HMACAlgorithm
from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

log = logging.getLogger(__name__)

MAX_AUTH_ID = 256
MIN_RSA_BITS = 2048  # RFC 7518 §3.3
UNUSABLE_ID = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class TokenHeader:
    """The unverified header of a JWT, with fields of the required types."""

    alg: str
    kid: str | None

    @classmethod
    def of(cls, token: str) -> Self | None:
        """Parse a token's header; None if it is not a JWT or violates RFC 7515 §4.1.

        Key lookups get this instead of the raw header, which anybody can forge: a ``kid`` could be
        a list, for example, which cannot be a dict's key.
        """
        try:
            header = jwt.get_unverified_header(token)
        except Exception as error:
            # The decoder raises more than its own exceptions for forged bytes.
            if not isinstance(error, jwt.PyJWTError):
                log.info("undecodable token", extra={"problem": type(error).__name__})
            return None
        texts = [header.get(name) for name in ("alg", "kid", "typ", "cty")]
        if not all(isinstance(text, str | None) for text in texts) or not header.get("alg"):
            return None
        # No extension is supported. A token that lists critical ones must be refused (§4.1.11), and
        # so is one that changes the signed content (RFC 7797).
        if "crit" in header or "b64" in header:
            return None
        return cls(header["alg"], header.get("kid"))


class Verifier(Protocol):
    async def key_for(self, header: TokenHeader) -> tuple[Any, str] | None:
        """Return the key for such a token, with the key's algorithm; None: no such key."""


@dataclass(frozen=True, slots=True)
class FixedKey:
    key: Any
    algorithm: str

    async def key_for(self, header: TokenHeader) -> tuple[Any, str] | None:
        return (self.key, self.algorithm) if header.alg == self.algorithm else None


def digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def hmac_key(secret: str) -> FixedKey:
    key = secret.encode()
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(key)
    except jwt.InvalidKeyError:
        message = "AUTH_JWT_SECRET: is a public key or certificate; use AUTH_JWT_PUBLIC_KEY"
        raise ValueError(message) from None
    return FixedKey(key, "HS256")


def public_key(path: Path) -> FixedKey:
    """Read a PEM file. The key's type sets the algorithm: RS256, ES256 or EdDSA."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise ValueError(f"AUTH_JWT_PUBLIC_KEY: {error.strerror}") from None
    except ValueError:
        raise ValueError("AUTH_JWT_PUBLIC_KEY: is not a PEM public key") from None
    match key:
        case RSAPublicKey() if key.key_size < MIN_RSA_BITS:
            raise ValueError(f"AUTH_JWT_PUBLIC_KEY: RSA keys need at least {MIN_RSA_BITS} bits")
        case RSAPublicKey():
            return FixedKey(key, "RS256")
        case EllipticCurvePublicKey() if isinstance(key.curve, SECP256R1):
            return FixedKey(key, "ES256")
        case Ed25519PublicKey():
            return FixedKey(key, "EdDSA")
    message = "AUTH_JWT_PUBLIC_KEY: must be an RSA, P-256 or Ed25519 key (RS256, ES256, EdDSA)"
    raise ValueError(message)


class _ApiSecret(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    id: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_AUTH_ID)
    ]
    secret: Annotated[str, StringConstraints(min_length=16, pattern=r"^[\x21-\x7e]+$")]


_API_SECRETS = TypeAdapter(list[_ApiSecret])


def api_secrets(text: str) -> dict[bytes, str]:
    """Return a mapping from the SHA-256 of each secret to its auth_id."""
    try:
        entries = _API_SECRETS.validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        # A JSON syntax error names only the position, and quotes nothing of the text.
        message = f"AUTH_API_SECRETS_JSON: {where + ': ' if where else ''}{problem['msg']}"
        raise ValueError(message) from None
    if not entries:
        raise ValueError("AUTH_API_SECRETS_JSON: names no secret")
    by_digest = {digest(entry.secret): entry.id for entry in entries}
    if len({entry.id for entry in entries}) < len(entries):
        raise ValueError("AUTH_API_SECRETS_JSON: the same id twice")
    if len(by_digest) < len(entries):
        raise ValueError("AUTH_API_SECRETS_JSON: the same secret twice")
    if any(UNUSABLE_ID.search(entry.id) for entry in entries):
        raise ValueError("AUTH_API_SECRETS_JSON: control characters in an id")
    return by_digest
