"""Tokens between gateway and workers.

Both know LIVEKIT_API_SECRET. The signing key is derived from it (RFC 5869), so
LiveKit does not accept these tokens, and the gateway accepts none of LiveKit's.
"""

from __future__ import annotations

import codecs
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import jwt
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Audience = Literal[
    "switchroom:call", "switchroom:worker", "switchroom:stream", "switchroom:command"
]

# A call lasts at most 24 h; its last events may come a while after its end.
CALL_TOKEN_TTL = timedelta(hours=48)
WORKER_TOKEN_TTL = timedelta(minutes=10)
STREAM_TOKEN_TTL = timedelta(minutes=1)
COMMAND_TOKEN_TTL = timedelta(minutes=1)

# PyJWT (2.x) parses every HMAC key as JSON, and json takes one of 127 random keys (measured) for
# UTF-16 or UTF-32. Loading the codecs now keeps the event loop from reading their files then.
for _codec in ("utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be", "utf-32-le"):
    codecs.lookup(_codec)


class InvalidToken(Exception):
    """The token has a bad signature, has expired, or is for another audience."""


class TokenIssuer:
    """Signs and verifies call-scoped and worker tokens (HS256)."""

    def __init__(self, livekit_api_secret: str) -> None:
        kdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"switchroom internal tokens v1")
        self._key = kdf.derive(livekit_api_secret.encode())

    def for_call(self, call_id: str, epoch: int = 0) -> str:
        """Return a token for the call's agent of this epoch (core.recovery)."""
        return self._sign("switchroom:call", call_id, CALL_TOKEN_TTL, epoch=epoch)

    def for_worker(self, worker_id: str) -> str:
        return self._sign("switchroom:worker", worker_id, WORKER_TOKEN_TTL)

    def for_stream(self, call_id: str) -> str:
        """Return the gateway's token to attach a socket to the call's session on its worker."""
        return self._sign("switchroom:stream", call_id, STREAM_TOKEN_TTL)

    def for_command(self, call_id: str, command: dict[str, Any]) -> str:
        """Return a token that is itself a command to the call's worker."""
        return self._sign("switchroom:command", call_id, COMMAND_TOKEN_TTL, command=command)

    def verify(self, token: str, audience: Audience) -> str:
        """Return the call's or worker's id. Raises InvalidToken."""
        return str(self._claims(token, audience)["sub"])

    def agent_of(self, token: str) -> tuple[str, int]:
        """Return the call's id and the agent's epoch. Raises InvalidToken."""
        claims = self._claims(token, "switchroom:call")
        epoch = claims.get("epoch", 0)  # none in a token of an earlier release
        if not isinstance(epoch, int):
            raise InvalidToken("no epoch")
        return str(claims["sub"]), epoch

    def command(self, token: str, call_id: str) -> Any:
        """Return the command that the token is. Raises InvalidToken, also for another call's."""
        claims = self._claims(token, "switchroom:command")
        if claims["sub"] != call_id:
            raise InvalidToken("another call's")
        return claims.get("command")

    def _claims(self, token: str, audience: Audience) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key,
                algorithms=["HS256"],
                audience=audience,
                options={"require": ["exp", "sub", "aud"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            # The decoder raises more than its own exceptions for a forged token.
            raise InvalidToken(type(error).__name__) from None
        return claims

    def call_token_made(self, token: str) -> datetime:
        """Return the time when ``for_call`` issued the token, which must be verified already."""
        claims = jwt.decode(token, options={"verify_signature": False})
        return datetime.fromtimestamp(claims["exp"], UTC) - CALL_TOKEN_TTL

    def _sign(self, audience: Audience, subject: str, ttl: timedelta, **more: Any) -> str:
        claims = {**more, "sub": subject, "aud": audience, "exp": datetime.now(UTC) + ttl}
        return jwt.encode(claims, self._key, algorithm="HS256")
