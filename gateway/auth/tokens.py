"""Authentication: from ``Authorization: Bearer <JWT or API secret>`` to a principal.

It is checked before the body is read. Unknown paths and methods get 404 and 405 without
a token, since the list of routes is public anyway (``/openapi.json``). With
AUTH_REQUIRED=false a request without a token is accepted and has no tenant, but a token
must be valid if there is one.
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
from gateway.http.body import is_form
from gateway.http.host_names import Names
from gateway.http.principal import PRINCIPAL
from gateway.http.route import route_of
from gateway.store.database import Principal

log = logging.getLogger(__name__)

MAX_TOKEN_BYTES = 8192

# Nine million years from now, which every clock and float can represent.
_FAR_AWAY = 2**48

# RFC 6750 §2.1, extended to all visible ASCII characters for hand-made secrets.
_BEARER = re.compile(r"bearer +([\x21-\x7e]+)", re.IGNORECASE)


class Authenticator:
    """Verifies tokens. Call ``aclose``: a JWKS fetch may be in progress."""

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
        """Create it from the settings. Raises ValueError naming a variable, never its value."""
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
        """Return the principal of a request with these ``Authorization`` headers.

        Raises Unauthenticated, or Unavailable while the JWKS cannot be fetched.
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
        """Return the principal of a bare token. Raises as ``authenticate`` does."""
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
        # Compare with all secrets in constant time, so that timing reveals nothing about them.
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
                        "verify_iat": False,  # clocks may differ; exp and nbf decide
                    },
                )
            except Exception as error:
                # Whatever the decoder raised, this key did not sign the token; the next key may
                # have.
                if not isinstance(error, jwt.PyJWTError):
                    log.info("undecodable token", extra={"problem": type(error).__name__})
        raise _invalid()

    def _required_claims(self) -> list[str]:
        named = {"aud": self._audience, "iss": self._issuer}
        return ["exp", *(claim for claim, wanted in named.items() if wanted is not None)]


def authentication(authenticator: Authenticator, names: Names) -> Middleware:
    """Return a middleware that sets ``request[PRINCIPAL]``, except on public and internal routes.

    A request without a token must name this machine (gateway.http.host_names). Public routes reveal
    nothing about calls, and LiveKit and the workers sign their requests, so those may use any name.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = route_of(request)
        signed = route is not None and route.signed_forms and is_form(request)
        headers = request.headers.getall(hdrs.AUTHORIZATION, [])
        linked = route is not None and route.linked and not headers and "token" in request.query
        own_check = signed or linked
        if route is not None and not route.public and not route.internal and not own_check:
            request[PRINCIPAL] = await authenticator.authenticate(headers)
            if not headers:
                names.check(request)
        return await handler(request)

    return middleware


def _auth_id(claims: Mapping[str, Any]) -> str | None:
    """Return ``auth_id``, else ``auth.id``, else ``sub``; the first claim present decides."""
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
    """Refuse a blank, null or malformed id, which must not make a tenant's token unscoped."""
    if not isinstance(value, str) or not (auth_id := value.strip()):
        raise _invalid()
    if len(auth_id) > MAX_AUTH_ID or UNUSABLE_ID.search(auth_id):
        raise _invalid()
    return auth_id


def _invalid() -> Unauthenticated:
    """Return the same error for every reason: the reason would only help an attacker."""
    return Unauthenticated("Invalid or expired token", code="UNAUTHORIZED")
