"""The operations on phone numbers, for both path families.

``/api/v1/phone-numbers`` (gateway.api.numbers) and ``/v1/numbers`` (gateway.api.numbers_v1) differ
only in the shape of their responses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import phonenumbers
from phonenumbers import PhoneNumberFormat

from core.errors import AppError, Conflict, Detail, NotFound, Unprocessable
from core.models import (
    CredentialProvider,
    NumberDirection,
    NumberStatus,
    NumberVia,
    PhoneNumber,
    new_id,
    now,
)
from core.settings import Settings
from gateway.lookup.agents import Agents
from gateway.lookup.numbers import Numbers
from gateway.numbers.accounts import Accounts
from gateway.numbers.provider import ProviderRef
from gateway.numbers.provisioning import Provisioner, busy, taken
from gateway.numbers.switching import Keep, Switching
from gateway.numbers.twilio import AvailableNumber, NotThere, OwnedNumber, TwilioAccount
from gateway.store.agents import agent_not_found
from gateway.store.credentials import CredentialStore
from gateway.store.database import Scope
from gateway.store.numbers import NumberStore

# Another customer may buy a listed number first.
_BUY_TRIES = 3
_CHANGEABLE: frozenset[NumberStatus] = frozenset({"pending", "active"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Criteria for available numbers; ``country`` is ISO 3166-1 alpha-2."""

    country: str = "US"
    area_code: str | None = None
    city: str | None = None
    state: str | None = None
    postal_code: str | None = None
    limit: int = 20


class NumberService:
    """Operations on numbers. Another tenant's resources count as not found."""

    def __init__(
        self,
        *,
        settings: Settings,
        numbers: NumberStore,
        lookup: Numbers,
        agents: Agents,
        credentials: CredentialStore,
        accounts: Accounts,
        provisioner: Callable[[], Provisioner],
    ) -> None:
        """``provisioner`` raises ServerFault ``LIVEKIT_NOT_CONFIGURED`` without LiveKit."""
        self._settings = settings
        self._numbers = numbers
        self._lookup = lookup
        self._agents = agents
        self._credentials = credentials
        self._accounts = accounts
        self._provisioner = provisioner

    # --- reading

    async def get(self, scope: Scope, number_id: str) -> PhoneNumber:
        """Return the number. Raises NotFound ``NUMBER_NOT_FOUND``."""
        number = await self._numbers.get(scope, number_id)
        if number is None:
            raise not_found()
        return number

    async def page(
        self, scope: Scope, *, limit: int, offset: int, status: NumberStatus | None = None
    ) -> tuple[list[PhoneNumber], int]:
        return await self._numbers.page(scope, limit=limit, offset=offset, status=status)

    async def credential_names(self, *numbers: PhoneNumber) -> dict[str, str]:
        """Return the names of the numbers' credentials, by credential id."""
        ids = {number.credential_id for number in numbers if number.credential_id is not None}
        return await self._credentials.names(ids) if ids else {}

    async def available(
        self, scope: Scope, search: Search, credentials_ref: str | None
    ) -> list[AvailableNumber]:
        """Return numbers that the scope's Twilio account could buy.

        Raises as Accounts.twilio and TwilioAccount do.
        """
        _, account = await self._accounts.twilio(scope, credentials_ref)
        try:
            return await _search(account, search)
        except NotThere:
            return []

    # --- attaching

    async def attach(
        self,
        scope: Scope,
        *,
        provider: CredentialProvider,
        phone_number: str,
        credentials_ref: str | None,
        agent_id: str | None,
        direction: NumberDirection,
        via: NumberVia,
        record: bool = False,
    ) -> PhoneNumber:
        """Attach a number that the tenant already owns.

        A Twilio credential proves the ownership. Nothing proves it for another trunk's number, so
        a tenant's claim stays ``pending`` until an operator approves it
        (SIP_NUMBERS_NEED_APPROVAL).

        Raises, in this order: Unprocessable (not E.164, streams of another provider), NotFound
        ``CREDENTIAL_NOT_FOUND``, ``AGENT_NOT_FOUND``, Conflict ``NUMBER_ATTACHED``,
        ``SIP_ADDRESS_NOT_CONFIGURED`` or ``PUBLIC_URL_NOT_CONFIGURED``, Unprocessable
        ``NUMBER_NOT_IN_ACCOUNT``; and as Provisioner.claim or .attach does.
        """
        provisioner = self._provisioner()
        number = _new(scope, phone_number, provider, direction, via, record=record)
        _check_via(provider, via)
        if credentials_ref is not None:
            credential = await self._accounts.credential(scope, credentials_ref)
            if credential.provider != provider:
                raise _invalid("credentialsRef", f"The credential is not one of {provider}")
            number = number.model_copy(update={"credential_id": credential.id})
        elif provider == "twilio":
            raise _invalid("credentialsRef", "Field required for twilio")
        await self._check_agent(scope, agent_id)
        await self._check_free(scope, number)
        if provider == "sip" and self._needs_approval(scope):
            bound_at = now() if agent_id is not None else None
            claim = number.model_copy(update={"agent_id": agent_id, "bound_at": bound_at})
            return await self._warmed(await provisioner.claim(claim))
        account: TwilioAccount | None = None
        owned: OwnedNumber | None = None
        if provider == "twilio":
            provisioner.provider.address(via)
            account = await self._accounts.of(number)
        if account is not None:
            owned = await account.owned(number.phone_number)
            if owned is None:
                raise _not_in_account()
        return await self._warmed(await provisioner.attach(number, agent_id, account, owned))

    async def approve(self, number_id: str) -> PhoneNumber:
        """Attach a claimed number; the operator vouches that the tenant owns it.

        An attached number stays as it is. Raises NotFound ``NUMBER_NOT_FOUND``, Conflict
        ``NUMBER_ATTACHED`` (by another tenant), and as Provisioner.attach does.
        """
        provisioner = self._provisioner()
        number = await self.get(Scope(None), number_id)
        if number.status == "active":
            return number
        return await self._warmed(await provisioner.approve(number))

    async def buy(
        self,
        scope: Scope,
        search: Search,
        *,
        phone_number: str | None,
        credentials_ref: str | None,
        agent_id: str | None,
        via: NumberVia = "sip",
        record: bool = False,
    ) -> PhoneNumber:
        """Buy ``phone_number``, or the first number found, and attach it for both directions.

        Raises as ``attach`` does, and Conflict ``CREDENTIAL_REQUIRED``, ``NUMBER_UNAVAILABLE``.
        """
        provisioner = self._provisioner()
        wanted = None if phone_number is None else _new(scope, phone_number, "twilio", "both", via)
        credential, account = await self._accounts.twilio(scope, credentials_ref)
        await self._check_agent(scope, agent_id)
        provisioner.provider.address(via)
        if wanted is not None:
            await self._check_free(scope, wanted)
            candidates = [wanted.phone_number]
        else:
            try:
                found = await _search(account, search)
            except NotThere:
                found = []
            candidates = [each.phone_number for each in found[:_BUY_TRIES]]
        for candidate in candidates:
            number = _new(scope, candidate, "twilio", "both", via, record=record)
            number = number.model_copy(update={"credential_id": credential.id})
            try:
                return await self._warmed(await provisioner.attach(number, agent_id, account))
            except Conflict as error:
                if error.code not in {"NUMBER_UNAVAILABLE", "NUMBER_ATTACHED"}:
                    raise
                refused = error
        if candidates:
            raise refused
        raise Conflict("No such number can be bought", code="NUMBER_UNAVAILABLE")

    # --- changing

    async def change(self, scope: Scope, number_id: str, changes: dict[str, Any]) -> PhoneNumber:
        """Change ``agent_id`` (None unbinds), ``direction``, ``record`` and ``via``, if given.

        All of them are changed, or none. Raises NotFound ``NUMBER_NOT_FOUND``,
        ``AGENT_NOT_FOUND``, Conflict ``NUMBER_BUSY``; for ``via`` also Unprocessable (streams of
        another provider), as Provider.address, Accounts.of and Switching.switch do, and
        ``NUMBER_NOT_IN_ACCOUNT``.
        """
        before = await self.get(scope, number_id)
        columns = {name: changes[name] for name in changes if name not in {"agent_id", "via"}}
        await self._check_agent(Scope(before.auth_id), changes.get("agent_id"))

        async def keep(values: dict[str, Any]) -> PhoneNumber:
            merged = {**columns, **values}
            if "agent_id" in changes:
                after = await self._numbers.bind(
                    scope, number_id, changes["agent_id"], before=_CHANGEABLE, values=merged
                )
            else:
                after = await self._numbers.move(scope, number_id, _CHANGEABLE, merged)
            if after is None:
                if (await self.get(scope, number_id)).status not in _CHANGEABLE:
                    raise busy()
                raise agent_not_found()
            return after

        via = changes.get("via", before.via)
        unfinished = "via" in changes and ProviderRef.of(before).switching is not None
        if via != before.via or unfinished:
            return await self._warmed(await self._switch(before, via, keep))
        return await self._warmed(await keep({}))

    async def _switch(self, number: PhoneNumber, via: NumberVia, keep: Keep) -> PhoneNumber:
        _check_via(number.provider, via)
        if number.status != "active":
            raise busy()
        provisioner = self._provisioner()
        provisioner.provider.address(via)
        try:
            account, owned = await provisioner.provider.find(number)
        except NotThere:
            raise _not_in_account() from None
        return await Switching(provisioner).switch(number, via, account, owned, keep)

    async def unbind(self, scope: Scope, number_id: str, agent_id: str) -> PhoneNumber:
        """Unbind the number from this agent.

        Raises NotFound ``AGENT_NOT_FOUND``, and ``NUMBER_NOT_FOUND`` if another agent has it.
        """
        await self._check_agent(scope, agent_id)
        if (await self.get(scope, number_id)).agent_id != agent_id:
            raise not_found()
        return await self.change(scope, number_id, {"agent_id": None})

    async def bind(self, scope: Scope, number_id: str, agent_id: str) -> PhoneNumber:
        """Bind the number to this agent, whichever agent had it.

        Raises as ``change`` does, the agent's errors first.
        """
        await self._check_agent(scope, agent_id)
        return await self.change(scope, number_id, {"agent_id": agent_id})

    async def remove(
        self, scope: Scope, number_id: str, *, release: bool
    ) -> tuple[PhoneNumber, bool]:
        """Detach the number, and ``release`` it if it was bought through this system.

        Returns the number, and True if it was released. Raises NotFound ``NUMBER_NOT_FOUND``, and
        as Provisioner.detach does.
        """
        provisioner = self._provisioner()
        number = await self.get(scope, number_id)
        bought = ProviderRef.model_validate(number.provider_ref).bought
        await provisioner.detach(number, release=release)
        return number, release and bought

    # --- checks

    def _needs_approval(self, scope: Scope) -> bool:
        return scope.auth_id is not None and self._settings.sip_numbers_need_approval

    async def _check_agent(self, scope: Scope, agent_id: str | None) -> None:
        if agent_id is not None:
            await self._agents.require(scope, agent_id)

    async def _check_free(self, scope: Scope, number: PhoneNumber) -> None:
        """Check that the scope has not attached the number. Raises Conflict ``NUMBER_ATTACHED``.

        Another tenant's attachment is reported only after the account has been checked. An operator
        sees tenants' claims, and may attach such a number nevertheless.
        """
        own = await self._numbers.by_number(Scope(scope.auth_id), number.phone_number)
        claimed = own is not None and own.status == "pending" and own.auth_id != scope.auth_id
        if own is not None and not claimed:
            raise taken()

    async def _warmed(self, number: PhoneNumber) -> PhoneNumber:
        await self._lookup.warm(number.id)
        return number


def e164(value: str) -> phonenumbers.PhoneNumber:
    """Parse a number, which must be E.164 already. Raises Unprocessable for ``phoneNumber``."""
    try:
        parsed = phonenumbers.parse(value, None)
    except phonenumbers.NumberParseException:
        parsed = None
    plain = parsed is not None and phonenumbers.format_number(parsed, PhoneNumberFormat.E164)
    if parsed is None or plain != value or not phonenumbers.is_possible_number(parsed):
        raise _invalid("phoneNumber", "Not a phone number in E.164 form, like +14155550123")
    return parsed


def _country(number: phonenumbers.PhoneNumber) -> str:
    """Return the number's country, else the first of its calling code; ``ZZ`` for none (+800)."""
    region = phonenumbers.region_code_for_number(number)
    region = region or phonenumbers.region_code_for_country_code(number.country_code or 0)
    return region if len(region) == 2 else "ZZ"


def _new(
    scope: Scope,
    phone_number: str,
    provider: CredentialProvider,
    direction: NumberDirection,
    via: NumberVia,
    *,
    record: bool = False,
) -> PhoneNumber:
    parsed = e164(phone_number)
    return PhoneNumber(
        id=new_id("num"),
        auth_id=scope.auth_id,
        phone_number=phone_number,
        country=_country(parsed),
        provider=provider,
        direction=direction,
        via=via,
        record=record,
        status="attaching",
        created_at=now(),
    )


async def _search(account: TwilioAccount, search: Search) -> list[AvailableNumber]:
    return await account.available(
        search.country,
        area_code=search.area_code,
        city=search.city,
        state=search.state,
        postal_code=search.postal_code,
        limit=search.limit,
    )


def _check_via(provider: CredentialProvider, via: NumberVia) -> None:
    if via == "stream" and provider != "twilio":
        raise _invalid("via", "Only numbers of twilio can stream their calls")


def _not_in_account() -> Unprocessable:
    return Unprocessable("The number is not in that Twilio account", code="NUMBER_NOT_IN_ACCOUNT")


def _invalid(field: str, message: str) -> AppError:
    return Unprocessable(f"{field}: {message}", details=[Detail(field, message, "value_error")])


def not_found() -> NotFound:
    return NotFound("Phone number not found", code="NUMBER_NOT_FOUND")
