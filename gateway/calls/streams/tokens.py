"""Tokens that attach a socket to a session, and the key in a session's callback URLs.

Both keys are derived from LIVEKIT_API_SECRET (RFC 5869), apart from those of core.tokens. A token's
signature and time are checked here; the database (gateway.store.streams) lets it be used once.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import jwt
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from core.models import new_id, now
from core.tokens import InvalidToken
from gateway.store.call_status import Call

TOKEN_TTL: Final = timedelta(seconds=60)
_AUDIENCE = "switchroom:session"
_MAX_LENGTH = 4096


@dataclass(frozen=True, slots=True)
class Bound:
    """The facts that a token is bound to."""

    call_id: str
    agent_id: str | None
    instance_id: str | None
    from_number: str | None
    to_number: str | None

    @classmethod
    def to(cls, call: Call) -> Bound:
        instance = call.metadata.get("instanceId")
        return cls(
            call.id,
            call.agent_id,
            instance if isinstance(instance, str) else None,
            call.from_number,
            call.to_number,
        )


@dataclass(frozen=True, slots=True)
class SessionToken:
    """A token, verified or new. ``text`` is shown in no representation."""

    id: str
    bound: Bound
    expires_at: datetime
    text: str = field(repr=False)


class SessionTokens:
    """Signs and verifies the tokens (HS256)."""

    def __init__(self, livekit_api_secret: str, clock: Callable[[], datetime] = now) -> None:
        self._clock = clock
        self._key = _derived(livekit_api_secret, b"switchroom session tokens v1")
        self._callbacks = _derived(livekit_api_secret, b"switchroom session callbacks v1")

    def issue(self, call: Call, ttl: timedelta = TOKEN_TTL) -> SessionToken:
        """Return a new token for the call's session, not yet valid in the database."""
        bound, expires_at = Bound.to(call), self._clock() + ttl
        token_id = new_id("tok")
        claims = {
            "aud": _AUDIENCE,
            "sub": bound.call_id,
            "jti": token_id,
            "agent": bound.agent_id,
            "instance": bound.instance_id,
            "from": bound.from_number,
            "to": bound.to_number,
            "exp": expires_at,
        }
        text = jwt.encode(claims, self._key, algorithm="HS256")
        return SessionToken(token_id, bound, expires_at, text)

    def verify(self, text: str) -> SessionToken:
        """Raises InvalidToken for a token that was not signed here, or has expired."""
        if len(text) > _MAX_LENGTH:
            raise InvalidToken("too long")
        try:
            claims = jwt.decode(
                text,
                self._key,
                algorithms=["HS256"],
                audience=_AUDIENCE,
                # This gateway's clock decides, as in the database.
                options={"require": ["exp", "sub", "aud", "jti"], "verify_exp": False},
            )
            bound = Bound(
                claims["sub"], claims["agent"], claims["instance"], claims["from"], claims["to"]
            )
            expires_at = datetime.fromtimestamp(claims["exp"], UTC)
        except (jwt.PyJWTError, ValueError, TypeError, LookupError, RecursionError) as error:
            # The decoder raises more than its own exceptions for a forged token.
            raise InvalidToken(type(error).__name__) from None
        if expires_at <= self._clock():
            raise InvalidToken("expired")
        return SessionToken(claims["jti"], bound, expires_at, text)

    def callback_key(self, call_id: str) -> str:
        """Return the key that opens the session's callbacks, for as long as there is a session."""
        made = hmac.new(self._callbacks, call_id.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(made).decode().rstrip("=")

    def is_callback_key(self, call_id: str, key: str) -> bool:
        given = key.encode(errors="replace")
        return hmac.compare_digest(self.callback_key(call_id).encode(), given)


def _derived(secret: str, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(secret.encode())
