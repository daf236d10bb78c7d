"""Limits on the calls that a tenant may begin per second, and have in progress.

Both are counted in the database, thus for all gateways together; the legs of transfers' humans
count too. An operator who names no tenant counts as one tenant.

A call with an agent gets a worker's place in the transaction that stores it, or waits, or is
refused (gateway.store.places); places are counted for all gateways together, too.

The workers' places are limited, and the first tenant must not take them all: the last ones
(FAIR_SHARE_RESERVE) are reserved for tenants that have less than their share. The operator's own
calls are not subject to shares.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence

from core.errors import TooManyRequests, Unavailable
from core.events import ended
from core.models import CallEvent
from gateway.store.call_status import Call
from gateway.store.calls import NewCall, Store
from gateway.store.gateways.rates import Rates
from gateway.store.places.fleet import Kind, NotFree, kind_of
from gateway.store.places.load import Judge, Load
from gateway.store.places.places import NoPlace, Wish

log = logging.getLogger(__name__)

_RETRY_CONCURRENCY_S = 5
_SWEEP_EVERY_S = 60.0


class CallLimits:
    def __init__(
        self,
        store: Store,
        *,
        rates: Rates | None = None,
        calls_per_second: float | None = None,
        max_concurrent: int | None = None,
        reserve: float = 0.0,
        agent_name: str = "switchroom",
        ring_while_full_s: float = 0.0,
    ) -> None:
        """None: no limit; ``calls_per_second`` needs ``rates``.

        A burst may be as large as one second's calls, and at least one call.

        ``reserve``: the fraction of all places that is reserved; 0: none, and no shares.
        ``agent_name``: AGENT_NAME of the workers. ``ring_while_full_s``: how long a call that may
        wait for a place does so; 0: not at all.
        """
        self._store = store
        self._rates = rates
        self._rate = calls_per_second
        self._max_concurrent = max_concurrent
        self._reserve = reserve
        self._agent_name = agent_name
        self._ring_while_full_s = ring_while_full_s

    async def take(self, auth_id: str | None) -> None:
        """Count one outbound call. Raises TooManyRequests ``RATE_LIMITED``, Unavailable."""
        if self._rate is None or self._rates is None:
            return
        if wait_s := await self._rates.take(auth_id, self._rate):
            raise TooManyRequests(
                f"More than {self._rate:g} calls per second",
                retry_after_s=max(1, math.ceil(wait_s)),
            )

    async def run(self) -> None:
        """Forget the owners that are not at their limit, once a minute, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            try:
                if self._rate is not None and self._rates is not None:
                    await self._rates.sweep(self._rate)
            except Unavailable:
                log.warning("full rates not swept")

    async def insert(
        self,
        new: NewCall,
        first: CallEvent,
        *more: CallEvent,
        may_wait: bool = False,
        on_record: bool = True,
    ) -> Call:
        """Insert the call (Store.insert_call) unless the tenant is at its limit.

        A call with an agent holds a worker's place then. If there is none, it may wait for one
        (gateway.calls.places), or it is refused, with a record that says why (``on_record``).
        Raises TooManyRequests ``CONCURRENCY_LIMIT``, Unavailable ``AGENT_UNAVAILABLE``,
        LiveIdentity, HeldByToken.
        """
        try:
            return await self._insert(new, first, *more, may_wait=may_wait)
        except NoPlace as none:
            if on_record:
                await self._store.insert_call(new, first, *more, _refused(note_of(new, none.why)))
            raise no_worker() from None

    async def admit(
        self, new: NewCall, events: Sequence[CallEvent], refusal: str | None, *, may_wait: bool
    ) -> tuple[Call, str | None]:
        """Insert an arriving call; return its record, and why it was rejected (None: it was not).

        ``refusal``: why it is to be rejected, if that is known already.
        """
        if refusal is None:
            try:
                return await self._insert(new, *events, may_wait=may_wait), None
            except TooManyRequests:
                refusal = "concurrency_limit"
            except NoPlace as none:
                refusal = note_of(new, none.why)
        refused = _refused(refusal)
        return await self._store.insert_call(new, *events, refused), refusal

    async def _insert(
        self, new: NewCall, first: CallEvent, *more: CallEvent, may_wait: bool
    ) -> Call:
        line_s, wish = self._ring_while_full_s, None
        if new.agent is not None:
            wish = Wish(self._agent_name, patience_s=line_s if may_wait else 0, line_s=line_s)
        judge = self._judge(new.auth_id, with_agent=new.agent is not None)
        return await self._store.insert_call(new, first, *more, judge=judge, wish=wish)

    async def check(self, auth_id: str | None, *, with_agent: bool, kind: Kind = "room") -> None:
        """Check early, before anything is prepared; only ``insert`` decides.

        Raises TooManyRequests ``CONCURRENCY_LIMIT``.
        """
        if (judge := self._judge(auth_id, with_agent=with_agent)) is not None:
            judge(await self._store.load(auth_id, self._agent_name, kind))

    async def check_place(self, kind: Kind) -> None:
        """Raises Unavailable ``AGENT_UNAVAILABLE``: no worker could take one more call."""
        if not (await self._store.places.fleet(self._agent_name, kind)).free:
            raise no_worker()

    async def check_human(self, auth_id: str | None) -> None:
        """Check the limit for the leg of a transfer's human, which the timeline already counts."""
        limit = self._max_concurrent
        if limit is not None and (await self._store.load(auth_id, self._agent_name)).legs > limit:
            raise _too_many(f"{limit} calls are under way, which is the limit")

    def _judge(self, auth_id: str | None, *, with_agent: bool) -> Judge | None:
        """Return the check for one more call; None: no limit applies."""
        limit = self._max_concurrent
        reserve = self._reserve if with_agent and auth_id is not None else 0.0

        def judge(load: Load) -> None:
            if limit is not None and load.legs >= limit:
                raise _too_many(f"{limit} calls are under way, which is the limit")
            if reserve and not fair(load, reserve):
                raise _too_many("You have your share of the agents, and nearly all are busy")

        return judge if limit is not None or reserve else None


def no_worker() -> Unavailable:
    return Unavailable("No agent worker is free", code="AGENT_UNAVAILABLE", retry_after_s=5)


def note_of(call: NewCall | Call, why: NotFree) -> str:
    """Return the note in the end of a call that found no place."""
    return "no_stream_worker" if kind_of(call.type) == "stream" else why


def _refused(why: str) -> CallEvent:
    return CallEvent(type="call.ended", data=ended("failed", "agent_unavailable", note=why))


def fair(load: Load, reserve: float) -> bool:
    """Return True if the tenant may take one more of the workers' places.

    It may while more places are free than are reserved; after that only up to its share. Shares
    are equal parts for every tenant that has calls and for one more that may still come.
    """
    if not load.places:
        return True  # there is no worker at all, which is a different error
    kept = max(1, math.ceil(load.places * reserve))
    if load.places - load.all_agents > kept:
        return True
    return load.agents < max(1, load.places // (load.tenants + 1))


def _too_many(message: str) -> TooManyRequests:
    return TooManyRequests(message, code="CONCURRENCY_LIMIT", retry_after_s=_RETRY_CONCURRENCY_S)
