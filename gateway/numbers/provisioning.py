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
from core.models import Model, PhoneNumber
from core.settings import Settings
from gateway.numbers.accounts import Accounts
from gateway.numbers.sip_objects import SipObjects
from gateway.numbers.twilio import NotThere, OwnedNumber, Routing, TwilioAccount
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


class ProviderRef(Model):
    """The content of ``PhoneNumber.provider_ref``."""

    sid: str | None = None
    before: Routing = Routing()
    """The number's routing before it was attached."""
    trunk_sid: str | None = None
    """The trunk in the account that this system made."""
    bought: bool = False
    release: bool = False
    """Release a bought number to the provider when it is detached."""
    claim: bool = False
    """An approved claim is being attached; if that is undone, it awaits approval again."""
    held_by: str | None = None
    """The gateway that attaches or detaches it, until ``held_until`` (s since the epoch)."""
    held_until: float = 0.0


class Provisioner:
    """Owns the tasks of attachments in progress; call ``drain`` at the end."""

    def __init__(
        self, *, objects: SipObjects, numbers: NumberStore, accounts: Accounts, settings: Settings
    ) -> None:
        self.objects = objects
        self.numbers = numbers
        self._accounts = accounts
        self._trunk_name = f"Switchroom ({settings.agent_name})"
        self._sip_url = f"sip:{settings.sip_public_address}"
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
        # Check LiveKit before anything is stored: without it nothing could be undone either.
        await self.objects.listing()
        return await self._whole(self._attach(number, agent_id, account, owned), number.id)

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
        return await self._whole(self._approve(number), number.id)

    async def detach(self, number: PhoneNumber, *, release: bool) -> None:
        """Undo the attachment, and ``release`` a number that was bought through this system.

        Raises Conflict ``NUMBER_BUSY``, and Unavailable, after which the repair completes it.
        """
        if number.status == "pending" and await self.numbers.withdraw(number.id):
            return
        if number.id in self._busy:
            raise busy()
        await self._whole(self._detach(number, release), number.id)

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

    # --- used by gateway.numbers.repair

    def in_whose_hands(self, number: PhoneNumber) -> str | None:
        """Return the gateway that attaches or detaches the number now; None if none does."""
        if number.id in self._busy:
            return self._me
        ref = ProviderRef.model_validate(number.provider_ref)
        # If it is held by this gateway but not busy, a previous process of this gateway held it.
        if ref.held_by in (None, self._me) or ref.held_until < time.time():
            return None
        return ref.held_by

    async def allowed_addresses(self, number: PhoneNumber) -> Sequence[str]:
        secret = await self._accounts.secret(number)
        return secret.allowed_addresses if isinstance(secret, SipSecret) else ()

    async def finish(self, number: PhoneNumber) -> None:
        """Undo the rest of an abandoned attachment or detachment."""
        await self._whole(self._take_down(number), number.id)

    # --- the steps

    async def _take_down(self, number: PhoneNumber) -> None:
        """Remove all objects of the number, and then its row. Idempotent."""
        claim = ProviderRef.model_validate(number.provider_ref).claim
        values: dict[str, Any] = {"status": "detaching"}
        if not claim:
            values |= {"agent_id": None, "bound_at": None}
        moved = await self.numbers.move(
            Scope(None), number.id, {"attaching", "active", "detaching"}, values
        )
        if moved is None:
            return
        async with asyncio.timeout(UNDO_DEADLINE_S):
            await self._give_back(moved)
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
        ref = self._held(ProviderRef(bought=account is not None and owned is None, release=True))
        number = number.model_copy(update={"provider_ref": ref.wire()})
        await self._insert(number)
        return await self._establish(number, agent_id, account, owned)

    async def _approve(self, number: PhoneNumber) -> PhoneNumber:
        ref = self._held(ProviderRef(claim=True))
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
        ref = ProviderRef.model_validate(number.provider_ref)
        try:
            async with asyncio.timeout(ATTACH_DEADLINE_S):
                trunk_id = await self.objects.put_trunk(
                    number, await self.allowed_addresses(number)
                )
                await self._note(number, trunk_id=trunk_id)
                await self._note(number, rule_id=await self.objects.put_rule(number, trunk_id))
                if account is not None:
                    ref = await self._route(number, ref, account, owned)
                over = {"held_by": None, "held_until": 0.0, "release": False, "claim": False}
                done = ref.model_copy(update=over)
                values = {"status": "active", "provider_ref": done.wire()}
                active = await self.numbers.bind(
                    Scope(None), number.id, agent_id, before={"attaching"}, values=values
                )
                if active is None:
                    raise agent_not_found()
        except BaseException as error:
            await self._undo(number, error)
            if isinstance(error, TimeoutError):
                raise _too_slow() from None
            raise
        log.info("number attached", extra={"number_id": number.id})
        return active

    async def _route(
        self,
        number: PhoneNumber,
        ref: ProviderRef,
        account: TwilioAccount,
        owned: OwnedNumber | None,
    ) -> ProviderRef:
        """Buy the number unless it is ``owned``, and route it to this system."""
        trunk_sid = await account.trunk(self._trunk_name, self._sip_url)
        if owned is None:
            # The name identifies the purchase if this process dies right after it.
            owned = await account.buy(number.phone_number, number.id)
        values = {"sid": owned.sid, "before": owned.routing, "trunk_sid": trunk_sid}
        ref = ref.model_copy(update=values)
        await self._note(number, provider_ref=ref.wire())
        try:
            await account.assign(owned, trunk_sid)
        except NotThere:
            raise Conflict(
                "The number or the trunk disappeared from the account", code="NUMBER_UNAVAILABLE"
            ) from None
        return ref

    async def _note(self, number: PhoneNumber, **values: Any) -> None:
        """Store progress. Raises Conflict if another process has begun to undo the attachment."""
        if await self.numbers.move(Scope(None), number.id, {"attaching"}, values) is None:
            raise Conflict("The attachment was abandoned in the meantime", code="NUMBER_BUSY")

    async def _undo(self, number: PhoneNumber, error: BaseException) -> None:
        facts = {"number_id": number.id, "problem": type(error).__name__}
        try:
            await self._take_down(number)
            log.info("attachment failed and was undone", extra=facts)
        except (AppError, TimeoutError, NotThere) as trouble:
            facts["trouble"] = type(trouble).__name__
            log.warning("attachment failed; the reconciler will undo it", extra=facts)

    async def _detach(self, number: PhoneNumber, release: bool) -> None:
        ref = ProviderRef.model_validate(number.provider_ref)
        ref = self._held(ref.model_copy(update={"release": release, "claim": False}))
        values = {"status": "detaching", "provider_ref": ref.wire()}
        moved = await self.numbers.move(Scope(None), number.id, {"active", "detaching"}, values)
        if moved is None:
            raise busy()
        try:
            await self._take_down(moved)
        except TimeoutError:
            raise _too_slow() from None
        log.info("number detached", extra={"number_id": number.id})

    async def _give_back(self, number: PhoneNumber) -> None:
        """Restore or release the number at the provider.

        If the provider refuses permanently, log it: the number must not stay attached forever.
        """
        ref = ProviderRef.model_validate(number.provider_ref)
        if ref.sid is None and not ref.bought:
            return
        try:
            account = await self._accounts.of(number)
            if account is None:
                return
            if ref.bought and ref.release:
                sid = ref.sid or await self._purchase(account, number)
                if sid is not None:
                    await account.release(sid)
            elif ref.sid is not None and ref.trunk_sid is not None:
                await account.restore(ref.sid, ref.before, ref.trunk_sid)
        except AppError as error:
            if isinstance(error, Unavailable):
                raise
            facts = {"number_id": number.id, "problem": error.code}
            log.warning("the provider did not release the number", extra=facts)

    async def _purchase(self, account: TwilioAccount, number: PhoneNumber) -> str | None:
        """Return the SID of a number that was bought for this row but not noted in it."""
        owned = await account.owned(number.phone_number)
        return owned.sid if owned is not None and owned.friendly_name == number.id else None

    def _held(self, ref: ProviderRef) -> ProviderRef:
        return ref.model_copy(update={"held_by": self._me, "held_until": time.time() + _HELD_S})

    async def _whole(self, work: Coroutine[Any, Any, _T], number_id: str) -> _T:
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


def busy() -> Conflict:
    return Conflict("The number is being attached or detached", code="NUMBER_BUSY")


def taken() -> Conflict:
    return Conflict("The number is already attached", code="NUMBER_ATTACHED")


def _too_slow() -> Unavailable:
    return Unavailable(
        "LiveKit or the provider took too long; the partial changes will be undone",
        code="PROVIDER_UNAVAILABLE",
        retry_after_s=5,
    )
