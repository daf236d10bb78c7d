"""Who is asking: ``Authorization: Bearer <JWT or API secret>`` to a principal.

Checked before the body is read. Paths and methods that do not exist answer 404 and
405 without a token: the list of routes is public (``/openapi.json``) anyway. With
AUTH_REQUIRED=false a request without a token is nobody's in particular, and one with
a token must still have a valid one.
"""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jwt
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from core.errors import Unauthenticated
from core.settings import Settings
from gateway.auth.jwks import Jwks
from gateway.auth.keys import (
    MAX_AUTH_ID,
    UNUSABLE_ID,
    TokenHeader,
    Verifier,
    api_secrets,
    digest,
    hmac_key,
    public_key,
)
from gateway.http.host_names import Names
from gateway.http.principal import PRINCIPAL
from gateway.http.route import route_of
from gateway.store.database import Principal

log = logging.getLogger(__name__)

MAX_TOKEN_BYTES = 8192

# Nine million years on, which every clock and float can hold.
_FAR_AWAY = 2**48

# RFC 6750 §2.1, and what people put into hand-made secrets.
_BEARER = re.compile(r"bearer +([\x21-\x7e]+)", re.IGNORECASE)


class Authenticator:
    """Verifies tokens. ``aclose`` it: a JWKS refresh may be under way."""

    def __init__(
        self,
        *,
        required: bool,
        require_id: bool = False,
        secrets: Mapping[bytes, str] | None = None,
        verifiers: Sequence[Verifier] = (),
        jwks: Jwks | None = None,
        audience: str | None = None,
        issuer: str | None = None,
    ) -> None:
        self._required = required
        self._require_id = require_id
        self._secrets = dict(secrets or {})
        self._jwks = jwks
        self._verifiers: tuple[Verifier, ...] = (*verifiers, *([jwks] if jwks else []))
        self._audience = audience
        self._issuer = issuer

    @classmethod
    def from_settings(cls, settings: Settings) -> Authenticator:
        """Raises ValueError naming the variable that is wrong, never its value."""
        verifiers: list[Verifier] = []
        if settings.auth_jwt_secret is not None:
            verifiers.append(hmac_key(settings.auth_jwt_secret.get_secret_value()))
        if settings.auth_jwt_public_key is not None:
            verifiers.append(public_key(settings.auth_jwt_public_key))
        secrets = None
        if settings.auth_api_secrets_json is not None:
            secrets = api_secrets(settings.auth_api_secrets_json.get_secret_value())
        return cls(
            required=settings.auth_required,
            require_id=settings.auth_require_id,
            secrets=secrets,
            verifiers=verifiers,
            jwks=Jwks(settings.auth_jwks_url) if settings.auth_jwks_url else None,
            audience=settings.auth_jwt_audience,
            issuer=settings.auth_jwt_issuer,
        )

    async def aclose(self) -> None:
        if self._jwks is not None:
            await self._jwks.aclose()

    async def authenticate(self, headers: Sequence[str]) -> Principal:
        """The principal of a request with these ``Authorization`` headers.

        Raises Unauthenticated, or Unavailable while the JWKS cannot be had.
        """
        if not headers:
            if self._required:
                raise Unauthenticated("Missing Authorization header", code="MISSING_AUTH_HEADER")
            return Principal(None)
        match = _BEARER.fullmatch(headers[0].strip()) if len(headers) == 1 else None
        if match is None or len(match[1]) > MAX_TOKEN_BYTES:
            message = "Authorization must be one header of the form: Bearer <token>"
            raise Unauthenticated(message, code="INVALID_AUTH_HEADER")
        return await self.verify(match[1])

    async def verify(self, token: str) -> Principal:
        """The principal of a bare token. Raises as ``authenticate`` does."""
        if (auth_id := self._by_secret(token)) is not None:
            return Principal(auth_id)
        claims = await self._claims(token)
        principal = Principal(_auth_id(claims), min(int(claims["exp"]), _FAR_AWAY))
        if principal.auth_id is None and self._require_id:
            raise _invalid()
        return principal

    def _by_secret(self, token: str) -> str | None:
        wanted = digest(token)
        found = None
        # All of them, always: the time taken says nothing about which came close.
        for known, auth_id in self._secrets.items():
            if hmac.compare_digest(known, wanted):
                found = auth_id
        return found

    async def _claims(self, token: str) -> dict[str, Any]:
        if (header := TokenHeader.of(token)) is None:
            raise _invalid()
        for verifier in self._verifiers:
            if (chosen := await verifier.key_for(header)) is None:
                continue
            key, algorithm = chosen
            try:
                return jwt.decode(
                    token,
                    key,
                    algorithms=[algorithm],
                    audience=self._audience,
                    issuer=self._issuer,
                    options={
                        "require": self._required_claims(),
                        "verify_aud": self._audience is not None,
                        "verify_iat": False,  # clocks differ; exp and nbf decide
                    },
                )
            except Exception as error:
                # Whatever it is that a token does to the decoder, it is not one of this key's;
                # the next key may be the one it was signed with.
                if not isinstance(error, jwt.PyJWTError):
                    log.info("undecodable token", extra={"problem": type(error).__name__})
        raise _invalid()

    def _required_claims(self) -> list[str]:
        named = {"aud": self._audience, "iss": self._issuer}
        return ["exp", *(claim for claim, wanted in named.items() if wanted is not None)]


def authentication(authenticator: Authenticator, names: Names) -> Middleware:
    """Puts the principal into ``request[PRINCIPAL]``, but on public and internal routes.

    What brings no token must name this machine (gateway.http.host_names). Public routes tell
    nothing of calls, and LiveKit and the workers sign theirs: they may come by any name.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = route_of(request)
        if route is not None and not route.public and not route.internal:
            headers = request.headers.getall(hdrs.AUTHORIZATION, [])
            request[PRINCIPAL] = await authenticator.authenticate(headers)
            if not headers:
                names.check(request)
        return await handler(request)

    return middleware


def _auth_id(claims: Mapping[str, Any]) -> str | None:
    """``auth_id``, else ``auth.id``, else ``sub``; a claim that is there decides, good or bad."""
    if "auth_id" in claims:
        return _checked_id(claims["auth_id"])
    if "auth" in claims:
        auth = claims["auth"]
        if not isinstance(auth, dict):
            raise _invalid()
        if "id" in auth:
            return _checked_id(auth["id"])
    if "sub" in claims:
        return _checked_id(claims["sub"])
    return None


def _checked_id(value: Any) -> str:
    """A blank, null or odd id must not turn a tenant's token into an unscoped one."""
    if not isinstance(value, str) or not (auth_id := value.strip()):
        raise _invalid()
    if len(auth_id) > MAX_AUTH_ID or UNUSABLE_ID.search(auth_id):
        raise _invalid()
    return auth_id


def _invalid() -> Unauthenticated:
    """One answer for every reason: why a token failed is no business of who made it up."""
    return Unauthenticated("Invalid or expired token", code="UNAUTHORIZED")
