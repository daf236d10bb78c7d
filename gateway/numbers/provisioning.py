"""Attaches and detaches numbers, so that neither is ever left half done.

The row is inserted first and deleted last, so that all changes at LiveKit and Twilio in between can
be found through it and undone. A failed attachment is undone at once, in reverse order. One that
was interrupted (a killed gateway, LiveKit unreachable) is undone by ``reconcile``, which runs at
the start and every minute.

A claim is a row without any objects elsewhere. Once approved, it is attached like any other
number; undoing that attachment makes it a claim again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from core.errors import AppError, Conflict, NotFound, TooManyRequests, Unavailable
from core.models import NumberVia, PhoneNumber
from core.settings import Settings
from gateway.numbers.accounts import Accounts
from gateway.numbers.provider import Provider, ProviderRef
from gateway.numbers.sip_objects import Listing, SipObjects
from gateway.numbers.twilio import NotThere, OwnedNumber, TwilioAccount
from gateway.store.agents import agent_not_found
from gateway.store.credentials import SipSecret
from gateway.store.database import Scope
from gateway.store.numbers import (
    MAX_PENDING,
    AgentGone,
    CredentialGone,
    NumberStore,
    NumberTaken,
    TooManyPending,
)

log = logging.getLogger(__name__)

_T = TypeVar("_T")

ATTACH_DEADLINE_S = 40.0
UNDO_DEADLINE_S = 40.0
# Longer than both deadlines together, so that the work has certainly ended by then.
_HELD_S = 120.0
_LAST_GRACE_S = 5.0
# Long, because an operator has to approve a claim first.
_RETRY_PENDING_S = 600


class Provisioner:
    """Owns the tasks of attachments in progress; call ``drain`` at the end."""

    def __init__(
        self, *, objects: SipObjects, numbers: NumberStore, accounts: Accounts, settings: Settings
    ) -> None:
        self.objects = objects
        self.numbers = numbers
        self._accounts = accounts
        self.provider = Provider(accounts, settings)
        # Two gateways on one machine have different ports.
        self._me = f"{socket.gethostname()}:{settings.gateway_port or os.getpid()}"
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def attach(
        self,
        number: PhoneNumber,
        agent_id: str | None,
        account: TwilioAccount | None = None,
        owned: OwnedNumber | None = None,
    ) -> PhoneNumber:
        """Attach a new number. With an account: its ``owned`` number, or else buy the number.

        Once started it finishes or is undone, whether or not the HTTP client waits. Raises
        Conflict ``NUMBER_ATTACHED``, ``TRUNK_CONFLICT``, ``NUMBER_UNAVAILABLE``; NotFound
        ``AGENT_NOT_FOUND``, ``CREDENTIAL_NOT_FOUND``; Unavailable; and the account's errors.
        """
        if number.via == "sip":
            # Check LiveKit before anything is stored: without it nothing could be undone either.
            await self.objects.listing()
        return await self.whole(self._attach(number, agent_id, account, owned), number.id)

    async def claim(self, number: PhoneNumber) -> PhoneNumber:
        """Store a claim on the number, which an operator must approve.

        Raises as ``attach`` does, and TooManyRequests ``PENDING_LIMIT``.
        """
        claim = number.model_copy(update={"status": "pending"})
        await self._insert(claim)
        log.info("a number waits for an operator's approval", extra={"number_id": number.id})
        return claim

    async def approve(self, number: PhoneNumber) -> PhoneNumber:
        """Attach a claimed number. Raises as ``attach`` does; the claim then remains."""
        await self.objects.listing()
        return await self.whole(self._approve(number), number.id)

    async def detach(self, number: PhoneNumber, *, release: bool) -> None:
        """Undo the attachment, and ``release`` a number that was bought through this system.

        Raises Conflict ``NUMBER_BUSY``, and Unavailable, after which the repair completes it.
        """
        if number.status == "pending" and await self.numbers.withdraw(number.id):
            return
        self.check_idle(number)
        await self.whole(self._detach(number, release), number.id)

    async def drain(self, timeout: float) -> None:
        """Wait for tasks in progress, then cancel the rest, which undoes them."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        # The second round cancels the undoing itself, which the repair completes later.
        for _ in range(2):
            if self._tasks:
                for task in self._tasks:
                    task.cancel()
                await asyncio.wait(self._tasks, timeout=_LAST_GRACE_S)

    # --- used by gateway.numbers.repair and gateway.numbers.switching

    def in_whose_hands(self, number: PhoneNumber) -> str | None:
        """Return the gateway that attaches, switches or detaches the number now, if one does."""
        if number.id in self._busy:
            return self._me
        ref = ProviderRef.of(number)
        # If it is held by this gateway but not busy, a previous process of this gateway held it.
        if ref.held_by in (None, self._me) or ref.held_until < time.time():
            return None
        return ref.held_by

    async def allowed_addresses(self, number: PhoneNumber) -> Sequence[str]:
        secret = await self._accounts.secret(number)
        return secret.allowed_addresses if isinstance(secret, SipSecret) else ()

    def check_idle(self, number: PhoneNumber) -> None:
        """Raise Conflict ``NUMBER_BUSY`` while this gateway works on it, or another switches it."""
        other = number.status == "active" and self.in_whose_hands(number) is not None
        if other or number.id in self._busy:
            raise busy()

    async def put_objects(
        self, number: PhoneNumber, there: Listing | None = None
    ) -> dict[str, Any]:
        """Create or correct the trunk and the rule, and return their columns."""
        allowed = await self.allowed_addresses(number)
        trunk_id = await self.objects.put_trunk(number, allowed, there)
        await self._note(number, trunk_id=trunk_id)
        rule_id = await self.objects.put_rule(number, trunk_id, there)
        await self._note(number, rule_id=rule_id)
        return {"trunk_id": trunk_id, "rule_id": rule_id}

    async def route(
        self,
        number: PhoneNumber,
        via: NumberVia,
        account: TwilioAccount,
        owned: OwnedNumber | None,
    ) -> ProviderRef:
        async def note(ref: ProviderRef) -> None:
            await self._note(number, provider_ref=ref.wire())

        return await self.provider.route(number, via, account, owned, note)

    def held(self, ref: ProviderRef) -> ProviderRef:
        return ref.model_copy(update={"held_by": self._me, "held_until": time.time() + _HELD_S})

    async def whole(self, work: Coroutine[Any, Any, _T], number_id: str) -> _T:
        self._busy.add(number_id)
        task = asyncio.create_task(work, name=f"number {number_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._busy.discard(number_id))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise Unavailable("The gateway is stopping; nothing was done") from None
            raise

    async def finish(self, number: PhoneNumber) -> None:
        """Undo the rest of an abandoned attachment or detachment."""
        await self.whole(self._take_down(number), number.id)

    # --- the steps

    async def _take_down(self, number: PhoneNumber) -> None:
        """Remove all objects of the number, and then its row. Idempotent."""
        claim = ProviderRef.of(number).claim
        values: dict[str, Any] = {"status": "detaching"}
        if not claim:
            values |= {"agent_id": None, "bound_at": None}
        moved = await self.numbers.move(
            Scope(None), number.id, {"attaching", "active", "detaching"}, values
        )
        if moved is None:
            return
        async with asyncio.timeout(UNDO_DEADLINE_S):
            await self.provider.give_back(moved)
            if may_have_objects(moved):
                await self.objects.remove(moved)
        if claim:
            values = {"status": "pending", "trunk_id": None, "rule_id": None, "provider_ref": {}}
            await self.numbers.move(Scope(None), moved.id, {"detaching"}, values)
        else:
            await self.numbers.delete(moved.id)

    async def _attach(
        self,
        number: PhoneNumber,
        agent_id: str | None,
        account: TwilioAccount | None,
        owned: OwnedNumber | None,
    ) -> PhoneNumber:
        ref = self.held(ProviderRef(bought=account is not None and owned is None, release=True))
        number = number.model_copy(update={"provider_ref": ref.wire()})
        await self._insert(number)
        return await self._establish(number, agent_id, account, owned)

    async def _approve(self, number: PhoneNumber) -> PhoneNumber:
        ref = self.held(ProviderRef(claim=True))
        values = {"status": "attaching", "provider_ref": ref.wire()}
        try:
            approved = await self.numbers.move(Scope(None), number.id, {"pending"}, values)
        except NumberTaken:
            raise taken() from None
        if approved is None:
            raise busy()
        return await self._establish(approved, approved.agent_id)

    async def _insert(self, number: PhoneNumber) -> None:
        try:
            await self.numbers.insert(number)
        except NumberTaken:
            raise taken() from None
        except CredentialGone:
            raise NotFound("Credential not found", code="CREDENTIAL_NOT_FOUND") from None
        except AgentGone:
            raise agent_not_found() from None
        except TooManyPending:
            raise TooManyRequests(
                f"{MAX_PENDING} numbers already wait for an operator's approval",
                code="PENDING_LIMIT",
                retry_after_s=_RETRY_PENDING_S,
            ) from None

    async def _establish(
        self,
        number: PhoneNumber,
        agent_id: str | None,
        account: TwilioAccount | None = None,
        owned: OwnedNumber | None = None,
    ) -> PhoneNumber:
        """Turn a stored row into an active number; undo everything on any error."""
        try:
            async with asyncio.timeout(ATTACH_DEADLINE_S):
                ref = ProviderRef.of(number)
                if number.via == "sip":
                    await self.put_objects(number)
                if account is not None:
                    ref = await self.route(number, number.via, account, owned)
                values = {"status": "active", "provider_ref": ref.settled(number.via).wire()}
                active = await self.numbers.bind(
                    Scope(None), number.id, agent_id, before={"attaching"}, values=values
                )
                if active is None:
                    raise agent_not_found()
        except BaseException as error:
            await self._undo(number, error)
            if isinstance(error, TimeoutError):
                raise too_slow() from None
            raise
        log.info("number attached", extra={"number_id": number.id})
        return active

    async def _note(self, number: PhoneNumber, **values: Any) -> None:
        """Store progress. Raises Conflict if another process has taken the number over."""
        noted = await self.numbers.move(
            Scope(None), number.id, {number.status}, values, since=number.provider_ref
        )
        if noted is None:
            raise Conflict("The change was abandoned in the meantime", code="NUMBER_BUSY")

    async def _undo(self, number: PhoneNumber, error: BaseException) -> None:
        facts = {"number_id": number.id, "problem": type(error).__name__}
        try:
            await self._take_down(number)
            log.info("attachment failed and was undone", extra=facts)
        except (AppError, TimeoutError, NotThere) as trouble:
            facts["trouble"] = type(trouble).__name__
            log.warning("attachment failed; the reconciler will undo it", extra=facts)

    async def _detach(self, number: PhoneNumber, release: bool) -> None:
        over = {"release": release, "claim": False}
        ref = self.held(ProviderRef.of(number).model_copy(update=over))
        values = {"status": "detaching", "provider_ref": ref.wire()}
        moved = await self.numbers.move(
            Scope(None),
            number.id,
            {"active", "detaching"},
            values,
            since=number.provider_ref,
        )
        if moved is None:
            raise busy()
        try:
            await self._take_down(moved)
        except TimeoutError:
            raise too_slow() from None
        log.info("number detached", extra={"number_id": number.id})


def may_have_objects(number: PhoneNumber) -> bool:
    """Return True if LiveKit may have a trunk or a rule for the number, which its row expects.

    A streamed number needs no SIP service. What a switch could not remove is the repair's.
    """
    noted = number.trunk_id is not None or number.rule_id is not None
    return number.via == "sip" or noted or ProviderRef.of(number).switching == "sip"


def busy() -> Conflict:
    return Conflict("The number is being attached, switched or detached", code="NUMBER_BUSY")


def taken() -> Conflict:
    return Conflict("The number is already attached", code="NUMBER_ATTACHED")


def too_slow() -> Unavailable:
    return Unavailable(
        "LiveKit or the provider took too long; the partial changes will be undone",
        code="PROVIDER_UNAVAILABLE",
        retry_after_s=5,
    )
