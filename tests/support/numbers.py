"""Agents and numbers in the store of a gateway under test, and calls without a dial."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from core.jobs import Heartbeat
from core.models import Agent, AgentConfig, PhoneNumber, new_id, now
from gateway.calls.outbound import Outbound, Placed
from gateway.calls.plan import CallPlan
from gateway.keys import AGENT_STORE, NUMBERS
from gateway.store.database import Scope
from sip.dial import Joined
from tests.support.inprocess import Running

_numbers = itertools.count(5105550100)


async def make_agent(gateway: Running, tenant: str | None = "acme", **config: Any) -> Agent:
    """Store an agent that can serve a call."""
    values = {"name": "Greeter", "voice_mode": "hosted", "begin_message": "Hello.", **config}
    record = await gateway.app[AGENT_STORE].create(Scope(tenant), AgentConfig(**values))
    return record.agent


async def make_number(
    gateway: Running, tenant: str | None = "acme", agent: Agent | None = None, **changes: Any
) -> PhoneNumber:
    """Store an active number, bound to ``agent`` if given."""
    values: dict[str, Any] = {
        "id": new_id("num"),
        "auth_id": tenant,
        "phone_number": f"+1{next(_numbers)}",
        "country": "US",
        "provider": "sip",
        "direction": "both",
        "status": "active",
        "created_at": now(),
    }
    number = PhoneNumber(**{**values, **changes})
    numbers = gateway.app[NUMBERS]
    await numbers.insert(number)
    if agent is not None:
        assert await numbers.bind(Scope(tenant), number.id, agent.id)
    return number


def dial_nothing(monkeypatch: pytest.MonkeyPatch, *, places: int = 1000) -> list[CallPlan]:
    """Record calls without dialling from now on; return the list that gets their plans.

    There is a worker with so many ``places``.
    """
    plans: list[CallPlan] = []

    async def place(self: Outbound, plan: CallPlan) -> Placed:
        # Each call reserves a worker's place.
        name = self._dispatcher.agent_name
        beat = Heartbeat(worker_id="w_any", agent_name=name, capacity=places, active=0)
        await self._store.heartbeat(beat)
        await self._insert(plan, plan.agent)
        plans.append(plan)
        return Placed(plan.call_id, Joined("PA_1", "SCL_1"))

    monkeypatch.setattr(Outbound, "_place", place)
    return plans
