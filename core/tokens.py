"""Tokens between gateway and workers.

Both know LIVEKIT_API_SECRET; the signing key is derived from it (RFC 5869), so
a token for us is never one for LiveKit, and the other way round.
"""

from __future__ import annotations

import codecs
from datetime import UTC, datetime, timedelta
from typing import Literal

import jwt
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Audience = Literal["switchroom:call", "switchroom:worker"]

# LiveKit caps a call at 24 h; the last events may come a while after its end.
CALL_TOKEN_TTL = timedelta(hours=48)
WORKER_TOKEN_TTL = timedelta(minutes=10)

# PyJWT (2.x) tries every HMAC key as JSON. A key is random bytes, which json takes for UTF-16 or
# UTF-32 once in 127 keys (measured): the codec's file must not be read in the event loop then.
for _codec in ("utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be", "utf-32-le"):
    codecs.lookup(_codec)


class InvalidToken(Exception):
    """Not ours, expired, or for something else."""


class TokenIssuer:
    """Signs and verifies call-scoped and worker tokens (HS256)."""

    def __init__(self, livekit_api_secret: str) -> None:
        kdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"switchroom internal tokens v1")
        self._key = kdf.derive(livekit_api_secret.encode())

    def for_call(self, call_id: str) -> str:
        return self._sign("switchroom:call", call_id, CALL_TOKEN_TTL)

    def for_worker(self, worker_id: str) -> str:
        return self._sign("switchroom:worker", worker_id, WORKER_TOKEN_TTL)

    def verify(self, token: str, audience: Audience) -> str:
        """The call's or worker's id. Raises InvalidToken."""
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=["HS256"],
                audience=audience,
                options={"require": ["exp", "sub", "aud"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            # Not all of what a made-up token does to the decoder is its own kind of error.
            raise InvalidToken(type(error).__name__) from None
        return str(claims["sub"])

    def call_token_made(self, token: str) -> datetime:
        """When ``for_call`` made it. Of a verified token only."""
        claims = jwt.decode(token, options={"verify_signature": False})
        return datetime.fromtimestamp(claims["exp"], UTC) - CALL_TOKEN_TTL

    def _sign(self, audience: Audience, subject: str, ttl: timedelta) -> str:
        claims = {"sub": subject, "aud": audience, "exp": datetime.now(UTC) + ttl}
        return jwt.encode(claims, self._key, algorithm="HS256")
