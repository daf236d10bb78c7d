"""The provider's account behind a credential or a number."""

from __future__ import annotations

from core.errors import Conflict, NotFound
from core.models import PhoneNumber
from gateway.numbers.twilio import TwilioAccount, TwilioHttp
from gateway.numbers.twilio_calls import TwilioCalls
from gateway.store.credentials import (
    Credential,
    CredentialStore,
    SipSecret,
    TwilioSecret,
    Unreadable,
    unreadable,
)
from gateway.store.database import Scope


class Accounts:
    def __init__(self, credentials: CredentialStore, http: TwilioHttp) -> None:
        self._credentials = credentials
        self._http = http

    async def credential(self, scope: Scope, ref: str) -> Credential:
        """Find a credential by name or id. Raises NotFound ``CREDENTIAL_NOT_FOUND``."""
        found = await self._credentials.get(scope, ref)
        if found is None:
            raise not_found()
        return found

    async def twilio(self, scope: Scope, ref: str | None) -> tuple[Credential, TwilioAccount]:
        """Return the account of the named Twilio credential, or of the scope's only one.

        Raises NotFound ``CREDENTIAL_NOT_FOUND``, Conflict ``CREDENTIAL_REQUIRED``, ServerFault
        ``CREDENTIAL_UNREADABLE``.
        """
        if ref is None:
            known = await self._credentials.of_provider(scope, "twilio", limit=2)
            if len(known) != 1:
                raise Conflict(
                    "credentialsRef is needed: there are several Twilio credentials"
                    if known
                    else "There is no Twilio credential; make one with POST /api/v1/credentials",
                    code="CREDENTIAL_REQUIRED",
                )
            ref = known[0].id
        credential, secret = await self._open_twilio(scope, ref)
        return credential, TwilioAccount(secret, self._http)

    async def named(self, scope: Scope, account_sid: str) -> TwilioSecret | None:
        """Return the scope's own Twilio credential for this account, if there is one.

        Raises ServerFault ``CREDENTIAL_UNREADABLE``: one that cannot be read may be this one.
        """
        try:
            secrets = await self._credentials.opened(scope, "twilio")
        except Unreadable:
            raise unreadable() from None
        known = map(TwilioSecret.model_validate, secrets)
        return next((each for each in known if each.account_sid == account_sid), None)

    def account(self, secret: TwilioSecret) -> TwilioAccount:
        return TwilioAccount(secret, self._http)

    async def calls(self, scope: Scope, ref: str) -> TwilioCalls:
        """Return the calls of a Twilio credential's account. Raises what ``twilio`` raises."""
        return self.calls_of(await self.login(scope, ref))

    def calls_of(self, secret: TwilioSecret) -> TwilioCalls:
        return TwilioCalls(secret, self._http)

    async def login(self, scope: Scope, ref: str) -> TwilioSecret:
        """Return a Twilio credential's secret, whose token signs Twilio's requests."""
        return (await self._open_twilio(scope, ref))[1]

    async def of(self, number: PhoneNumber) -> TwilioAccount | None:
        """Return the number's Twilio account, if it has one.

        Raises ServerFault ``CREDENTIAL_UNREADABLE``.
        """
        secret = await self.secret(number)
        return TwilioAccount(secret, self._http) if isinstance(secret, TwilioSecret) else None

    async def secret(self, number: PhoneNumber) -> TwilioSecret | SipSecret | None:
        """Return the secret of the number's credential, if it has one.

        Raises ServerFault ``CREDENTIAL_UNREADABLE``.
        """
        if number.credential_id is None:
            return None
        return (await self._open(Scope(number.auth_id), number.credential_id))[1]

    async def _open_twilio(self, scope: Scope, ref: str) -> tuple[Credential, TwilioSecret]:
        credential, secret = await self._open(scope, ref)
        if not isinstance(secret, TwilioSecret):
            raise Conflict("The credential is not a Twilio credential", code="CREDENTIAL_REQUIRED")
        return credential, secret

    async def _open(self, scope: Scope, ref: str) -> tuple[Credential, TwilioSecret | SipSecret]:
        try:
            found = await self._credentials.find(scope, ref)
        except Unreadable:
            raise unreadable() from None
        if found is None:
            raise not_found()
        credential, secret = found
        if credential.provider == "twilio":
            return credential, TwilioSecret.model_validate(secret)
        return credential, SipSecret.model_validate(secret)


def not_found() -> NotFound:
    return NotFound("Credential not found", code="CREDENTIAL_NOT_FOUND")
