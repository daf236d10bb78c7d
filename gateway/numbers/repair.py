"""Compares LiveKit's trunks and rules, and Twilio's voice URLs, with the stored numbers, and
repairs differences.

They differ after an object was deleted or changed by hand, LiveKit lost its data, or a gateway was
killed while it attached or switched a number. Only objects with this installation's label are ever
deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from core.errors import AppError
from core.models import PhoneNumber
from gateway.numbers.provider import ProviderRef
from gateway.numbers.provisioning import Provisioner, may_have_objects
from gateway.numbers.sip_objects import Listing
from gateway.numbers.switching import Switching
from gateway.numbers.twilio import NotThere
from gateway.store.database import Scope

log = logging.getLogger(__name__)

PERIOD_S = 60.0
_LISTING_DEADLINE_S = 40.0


@dataclass(slots=True)
class Repairs:
    """The repairs and failures of one round."""

    restored: int = 0
    """Numbers whose trunk, rule or voice URL was recreated or corrected."""
    removed: int = 0
    """Trunks and rules that belonged to no number."""
    undone: int = 0
    """Abandoned attachments, switches and detachments that were undone."""
    failed: int = 0


class NumberRepair:
    """Reconciles at the start and every minute, while ``run`` runs."""

    def __init__(self, provisioner: Provisioner) -> None:
        self._provisioner = provisioner
        self._objects = provisioner.objects
        self._numbers = provisioner.numbers
        self._switching = Switching(provisioner)

    async def run(self, period_s: float = PERIOD_S) -> None:
        """Reconcile until cancelled."""
        while True:
            try:
                await self.reconcile()
            except Exception:
                # One bad number must not end the repair, which would go unnoticed.
                log.exception("repairing numbers failed")
            await asyncio.sleep(period_s)

    async def reconcile(self) -> Repairs:
        """Run one round. Failures of LiveKit, a provider or the database are logged."""
        repairs = Repairs()
        try:
            # List first, then read the rows: the row of every listed object existed before it.
            there = await self._listing(repairs)
            rows = await self._numbers.provisioned()
            if there is None:
                rows = [number for number in rows if not may_have_objects(number)]
            wrong = [number for number in rows if self._wrong(number, there)]
            # List again: a number may have been attached or detached between the two reads.
            again = await self._objects.listing() if wrong and there else there
            for number in wrong:
                await self._mend(number, again, repairs)
            if there is not None:
                await self._sweep({number.id: number for number in rows}, there, repairs)
            await self._reroute(rows, repairs)
        except AppError as error:
            repairs.failed += 1
            log.warning("numbers could not be compared", extra={"problem": error.code})
        if repairs != Repairs():
            facts = {name: getattr(repairs, name) for name in Repairs.__slots__}
            log.info("numbers reconciled with LiveKit", extra=facts)
        return repairs

    async def _listing(self, repairs: Repairs) -> Listing | None:
        """Return LiveKit's objects; None: it fails, so only streamed numbers can be repaired."""
        try:
            return await self._objects.listing()
        except AppError as error:
            repairs.failed += 1
            log.warning("LiveKit's trunks cannot be listed", extra={"problem": error.code})
            return None

    def _wrong(self, number: PhoneNumber, there: Listing | None) -> bool:
        if number.status != "active" or _switching(number):
            return True
        if number.via != "sip" or there is None:
            return False
        return not self._objects.right(number, there)

    async def _mend(self, number: PhoneNumber, there: Listing | None, repairs: Repairs) -> None:
        if self._provisioner.in_whose_hands(number) is not None:
            return
        with self._failures(number, repairs):
            if number.status != "active":
                await self._provisioner.finish(number)
                repairs.undone += 1
                facts = {"number_id": number.id, "status": number.status}
                log.info("rolled back a number's partial attachment", extra=facts)
            elif _switching(number):
                await self._switching.settle(number)
                repairs.undone += 1
                log.info("rolled back a number's partial switch", extra={"number_id": number.id})
            elif there is not None:
                await self._restore(number, there, repairs)

    @contextlib.contextmanager
    def _failures(self, number: PhoneNumber, repairs: Repairs) -> Iterator[None]:
        """Count and log a failure, so that one number does not keep the others."""
        try:
            yield
        except (AppError, TimeoutError, NotThere) as error:
            repairs.failed += 1
            facts = {"number_id": number.id, "problem": type(error).__name__}
            log.warning("a number could not be repaired", extra=facts)

    async def _restore(self, number: PhoneNumber, there: Listing, repairs: Repairs) -> None:
        now = await self._numbers.get(Scope(None), number.id)
        if now is None or now.status != "active" or _switching(now) or not self._wrong(now, there):
            return
        allowed = await self._provisioner.allowed_addresses(now)
        trunk_id = await self._objects.put_trunk(now, allowed, there)
        rule_id = await self._objects.put_rule(now, trunk_id, there)
        values = {"trunk_id": trunk_id, "rule_id": rule_id}
        await self._numbers.move(Scope(None), now.id, {"active"}, values, since=now.provider_ref)
        repairs.restored += 1
        log.info("corrected a number's trunk and rule", extra={"number_id": now.id})

    async def _reroute(self, rows: list[PhoneNumber], repairs: Repairs) -> None:
        """Correct the voice URLs that were changed at Twilio; one listing an account finds them."""
        accounts: dict[str | None, list[PhoneNumber]] = defaultdict(list)
        for number in rows:
            if number.via == "stream" and number.status == "active" and not _switching(number):
                accounts[number.credential_id].append(number)
        for numbers in accounts.values():
            with self._failures(numbers[0], repairs):
                async with asyncio.timeout(_LISTING_DEADLINE_S):
                    astray = await self._provisioner.provider.astray(numbers)
                for number in astray:
                    with self._failures(number, repairs):
                        await self._switching.settle(number)
                        repairs.restored += 1
                        log.info("corrected a voice URL", extra={"number_id": number.id})

    async def _sweep(self, rows: dict[str, PhoneNumber], there: Listing, repairs: Repairs) -> None:
        """Delete labelled objects that belong to no row, or are duplicates."""
        for rule_id, rule in there.rules.items():
            owner = self._objects.rule_owner(rule)
            if owner is not None and _surplus(rule_id, rows.get(owner), "rule_id", there.rules):
                await self._objects.remove_rule(rule_id)
                repairs.removed += 1
                log.info("removed a rule without a number", extra={"number_id": owner})
        for trunk_id, trunk in there.trunks.items():
            owner = self._objects.trunk_owner(trunk)
            if owner is not None and _surplus(trunk_id, rows.get(owner), "trunk_id", there.trunks):
                await self._objects.remove_trunk(trunk_id)
                repairs.removed += 1
                log.info("removed a trunk without a number", extra={"number_id": owner})


def _switching(number: PhoneNumber) -> bool:
    return ProviderRef.of(number).switching is not None


def _surplus(found: str, number: PhoneNumber | None, column: str, there: Collection[str]) -> bool:
    if number is None:
        return True
    if number.status == "active" and number.via == "stream":
        return not _switching(number)
    # While the number's own object is missing, this one may replace it.
    own = getattr(number, column)
    return number.status == "active" and own in there and own != found
