"""Switches a Twilio number between SIP and streams, so that it is never left half switched.

The number stays active. Its row names the new way only at the end, so that until then the old one
is restored from the row: at once if a step fails, by the repair if the gateway was killed. The
same function restores it and corrects what was changed at Twilio by hand.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from core.errors import AppError
from core.models import NumberVia, PhoneNumber
from gateway.numbers.provider import ProviderRef
from gateway.numbers.provisioning import (
    ATTACH_DEADLINE_S,
    UNDO_DEADLINE_S,
    Provisioner,
    busy,
    too_slow,
)
from gateway.numbers.twilio import NotThere, OwnedNumber, TwilioAccount
from gateway.store.database import Scope

log = logging.getLogger(__name__)

_TIDY_DEADLINE_S = 10.0

Keep = Callable[[dict[str, Any]], Awaitable[PhoneNumber]]
"""Sets columns of an active number, together with the other changes of a request."""


class Switching:
    def __init__(self, provisioner: Provisioner) -> None:
        self._provisioner = provisioner
        self._objects = provisioner.objects
        self._numbers = provisioner.numbers

    async def switch(
        self,
        number: PhoneNumber,
        via: NumberVia,
        account: TwilioAccount,
        owned: OwnedNumber,
        keep: Keep,
    ) -> PhoneNumber:
        """Have the calls of an active number come in by ``via``, and ``keep`` that.

        Once started it finishes or is undone, whether or not the HTTP client waits. Raises Conflict
        ``NUMBER_BUSY``, ``TRUNK_CONFLICT``, ``NUMBER_UNAVAILABLE``; Unavailable; and the errors of
        the account and of ``keep``.
        """
        self._provisioner.check_idle(number)
        work = self._switch(number, via, account, owned, keep)
        return await self._provisioner.whole(work, number.id)

    async def settle(self, number: PhoneNumber) -> None:
        """Have an active number's calls come in as its row says."""
        self._provisioner.check_idle(number)
        await self._provisioner.whole(self._settle(number), number.id)

    # --- the steps

    async def _switch(
        self,
        number: PhoneNumber,
        via: NumberVia,
        account: TwilioAccount,
        owned: OwnedNumber,
        keep: Keep,
    ) -> PhoneNumber:
        held = await self._hold(number, via)
        try:
            async with asyncio.timeout(ATTACH_DEADLINE_S):
                switched = await keep(await self._redirect(held, via, account, owned))
        except BaseException as error:
            await self._switch_back(held, error)
            if isinstance(error, TimeoutError):
                raise too_slow() from None
            raise
        await self._tidy(switched)
        log.info("number switched", extra={"number_id": number.id, "via": via})
        return switched

    async def _settle(self, number: PhoneNumber) -> None:
        await self._redirect_back(await self._hold(number, number.via))

    async def _hold(self, number: PhoneNumber, via: NumberVia) -> PhoneNumber:
        ref = ProviderRef.of(number).model_copy(update={"switching": via})
        values = {"provider_ref": self._provisioner.held(ref).wire()}
        held = await self._numbers.move(
            Scope(None), number.id, {"active"}, values, since=number.provider_ref
        )
        if held is None:
            raise busy()
        return held

    async def _redirect(
        self, held: PhoneNumber, via: NumberVia, account: TwilioAccount, owned: OwnedNumber
    ) -> dict[str, Any]:
        """Have the calls come in by ``via``; return the columns that say so. Idempotent."""
        values: dict[str, Any] = {"via": via, "trunk_id": None, "rule_id": None}
        if via == "sip":
            there = await self._objects.listing()
            values |= await self._provisioner.put_objects(held, there)
        ref = await self._provisioner.route(held, via, account, owned)
        return {**values, "provider_ref": ref.settled(via).wire()}

    async def _switch_back(self, held: PhoneNumber, error: BaseException) -> None:
        facts = {"number_id": held.id, "problem": type(error).__name__}
        try:
            now = await self._numbers.get(Scope(None), held.id)
            # Else the row names the new way and only the database's confirmation was lost, or
            # another gateway has taken the number over.
            if now is not None and ProviderRef.of(now).same_hold(ProviderRef.of(held)):
                await self._redirect_back(now)
            log.info("switching a number failed and was undone", extra=facts)
        except (AppError, TimeoutError, NotThere) as trouble:
            facts["trouble"] = type(trouble).__name__
            log.warning("switching a number failed; the reconciler will undo it", extra=facts)

    async def _redirect_back(self, held: PhoneNumber) -> None:
        async with asyncio.timeout(UNDO_DEADLINE_S):
            found = await self._provisioner.provider.find(held)
            values = await self._redirect(held, held.via, *found)
            await self._numbers.move(Scope(None), held.id, {"active"}, values)
        await self._tidy(held)

    async def _tidy(self, number: PhoneNumber) -> None:
        """Remove the trunk and the rule of a number that needs none; else the repair does."""
        if number.via == "sip":
            return
        try:
            async with asyncio.timeout(_TIDY_DEADLINE_S):
                await self._objects.remove(number)
        except (AppError, TimeoutError) as error:
            facts = {"number_id": number.id, "problem": type(error).__name__}
            log.warning("the trunk of a streamed number was not removed", extra=facts)
