"""A number at its provider: its routing to this system, and back to where it led before."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Self
from urllib.parse import urlsplit

from core.errors import AppError, Conflict, Unavailable
from core.models import Model, NumberVia, PhoneNumber
from core.settings import Settings
from gateway.numbers.accounts import Accounts
from gateway.numbers.twilio import NotThere, OwnedNumber, Routing, TwilioAccount

log = logging.getLogger(__name__)

VOICE_PATH = "/v1/sessions/twilio"
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class ProviderRef(Model):
    """The content of ``PhoneNumber.provider_ref``."""

    sid: str | None = None
    before: Routing = Routing()
    """The number's routing before it was attached."""
    trunk_sid: str | None = None
    """The trunk in the account that this system made, while calls may come in by it."""
    voice_url: str | None = None
    """This system's voice URL, while the number may have it."""
    switching: NumberVia | None = None
    """A change of ``via`` to this value has begun; until it is complete, the column has the old."""
    bought: bool = False
    release: bool = False
    """Release a bought number to the provider when it is detached."""
    claim: bool = False
    """An approved claim is being attached; if that is undone, it awaits approval again."""
    held_by: str | None = None
    """The gateway that attaches, switches or detaches it, until ``held_until`` (s since the
    epoch)."""
    held_until: float = 0.0

    @classmethod
    def of(cls, number: PhoneNumber) -> Self:
        return cls.model_validate(number.provider_ref)

    def same_hold(self, other: ProviderRef) -> bool:
        return (self.held_by, self.held_until) == (other.held_by, other.held_until)

    def settled(self, via: NumberVia) -> Self:
        """Return what remains once calls come in by ``via``, and nothing is in progress."""
        unused = {"voice_url": None} if via == "sip" else {"trunk_sid": None}
        over = {"held_by": None, "held_until": 0.0, "release": False, "claim": False}
        return self.model_copy(update={**over, **unused, "switching": None})


Note = Callable[[ProviderRef], Awaitable[None]]
"""Stores progress; raises Conflict if another process has taken the number over."""


class Provider:
    def __init__(self, accounts: Accounts, settings: Settings) -> None:
        self._accounts = accounts
        self._settings = settings
        self._trunk_name = f"Switchroom ({settings.agent_name})"

    def address(self, via: NumberVia) -> str:
        """Return where the provider sends calls: a SIP or an HTTP URL.

        Raises Conflict ``SIP_ADDRESS_NOT_CONFIGURED``, ``PUBLIC_URL_NOT_CONFIGURED``.
        """
        if via == "stream":
            if not _reachable(self._settings):
                raise Conflict(
                    "Set PUBLIC_URL to the https address where Twilio reaches the gateway",
                    code="PUBLIC_URL_NOT_CONFIGURED",
                )
            return f"{self._settings.public_base_url}{VOICE_PATH}"
        if self._settings.sip_public_address is None:
            raise Conflict(
                "Set SIP_PUBLIC_ADDRESS to where Twilio reaches the SIP service",
                code="SIP_ADDRESS_NOT_CONFIGURED",
            )
        return f"sip:{self._settings.sip_public_address}"

    async def route(
        self,
        number: PhoneNumber,
        via: NumberVia,
        account: TwilioAccount,
        owned: OwnedNumber | None,
        note: Note,
    ) -> ProviderRef:
        """Buy the number unless it is ``owned``, and have its calls come in by ``via``.

        Idempotent. Raises Conflict ``NUMBER_UNAVAILABLE``, as ``address`` does, and the account's
        errors.
        """
        ref, address = ProviderRef.of(number), self.address(via)
        trunk_sid = await account.trunk(self._trunk_name, address) if via == "sip" else None
        if owned is None:
            # The name identifies the purchase if this process dies right after it.
            owned = await account.buy(number.phone_number, number.id)
        ours = {"voice_url": address} if trunk_sid is None else {"trunk_sid": trunk_sid}
        former = {"sid": owned.sid, "before": _before(ref, owned.routing)}
        ref = ref.model_copy(update={**former, **ours})
        await note(ref)
        try:
            if trunk_sid is None:
                await account.point(owned, address)
            else:
                await account.assign(owned, trunk_sid)
                if ref.voice_url is not None:
                    await account.reset(owned, ref.before, ref.voice_url)
        except NotThere:
            raise Conflict(
                "The number or the trunk disappeared from the account", code="NUMBER_UNAVAILABLE"
            ) from None
        return ref

    async def find(self, number: PhoneNumber) -> tuple[TwilioAccount, OwnedNumber]:
        """Return the number's account, and the number there. Raises NotThere, and its errors."""
        account = await self._accounts.of(number)
        if account is None:
            raise NotThere
        return account, await account.number(ProviderRef.of(number).sid or "")

    async def astray(self, numbers: Sequence[PhoneNumber]) -> list[PhoneNumber]:
        """Return those of an account's streamed numbers whose calls go elsewhere by now.

        Raises as ``address`` does, NotThere, and the account's errors.
        """
        account, address = await self._accounts.of(numbers[0]), self.address("stream")
        there = {} if account is None else await account.routings()
        routings = [(number, there.get(ProviderRef.of(number).sid or "")) for number in numbers]
        return [
            number
            for number, routing in routings
            if routing is None or not routing.posts_to(address)
        ]

    async def give_back(self, number: PhoneNumber) -> None:
        """Restore or release the number at the provider.

        If the provider refuses permanently, log it: the number must not stay attached forever.
        """
        ref = ProviderRef.of(number)
        if ref.sid is None and not ref.bought:
            return
        try:
            account = await self._accounts.of(number)
            if account is None:
                return
            if ref.bought and ref.release:
                sid = ref.sid or await _purchase(account, number)
                if sid is not None:
                    await account.release(sid)
            elif ref.sid is not None:
                ours = Routing(trunk_sid=ref.trunk_sid, voice_url=ref.voice_url)
                await account.restore(ref.sid, ref.before, ours)
        except AppError as error:
            if isinstance(error, Unavailable):
                raise
            facts = {"number_id": number.id, "problem": error.code}
            log.warning("the provider did not release the number", extra=facts)


def _reachable(settings: Settings) -> bool:
    """Return True if Twilio can be told the public address: https, or loopback if set so."""
    url = urlsplit(settings.public_base_url)
    local = url.scheme == "http" and url.hostname in _LOOPBACK
    return url.scheme == "https" or (local and settings.public_url is not None)


def _before(ref: ProviderRef, now: Routing) -> Routing:
    """Return the routing to restore, of a number whose routing is ``now``.

    While calls come in by the trunk, the number's own URLs may be changed at the provider.
    """
    if ref.sid is None:
        return now
    if ref.voice_url is not None:
        return ref.before
    former = {name: getattr(ref.before, name) for name in ("trunk_sid", "voice_application_sid")}
    return now.model_copy(update=former)


async def _purchase(account: TwilioAccount, number: PhoneNumber) -> str | None:
    """Return the SID of a number that was bought for this row but not noted in it."""
    owned = await account.owned(number.phone_number)
    return owned.sid if owned is not None and owned.friendly_name == number.id else None
