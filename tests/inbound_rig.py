"""Numbers that can be called, and what became of the calls."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from core.database import Database
from core.models import PhoneNumber, new_id, now
from core.numbers import NumberStore
from dev.phone import Phone, PhoneCall
from dev.stack import Stack
from sip.dispatch import dispatch_rule
from sip.trunks import inbound_trunk
from tests.conftest import ACME, RIVAL, Gateway

CALLER = "+15105550123"
TENANTS = {"acme": ACME, "rival": RIVAL}
_last = itertools.count(15105552000)


class Line:
    """A number of a tenant's, attached and bound."""

    def __init__(self, stack: Stack, gateway: Gateway, number: PhoneNumber) -> None:
        self.number = number
        self._stack = stack
        self._gateway = gateway
        self._headers = TENANTS[number.auth_id or ""]

    @classmethod
    async def attach(
        cls, stack: Stack, gateway: Gateway, agent_id: str | None, **changes: Any
    ) -> Line:
        """Its trunk and rule in LiveKit, its row in the database."""
        moment = now()
        number = PhoneNumber(
            **{
                "id": new_id("num"),
                "auth_id": "acme",
                "phone_number": f"+{next(_last)}",
                "country": "US",
                "provider": "sip",
                "direction": "both",
                "status": "active",
                "agent_id": agent_id,
                "bound_at": moment,
                "created_at": moment,
                **changes,
            }
        )
        database = await Database.open(stack.settings.database_url)
        sip, agent_name = stack.sip_api(), stack.settings.agent_name
        try:
            await NumberStore(database).insert(number)
            trunk = await sip.sip.create_inbound_trunk(inbound_trunk(number, agent_name=agent_name))
            await sip.sip.create_dispatch_rule(
                dispatch_rule(number, trunk.sip_trunk_id, agent_name=agent_name)
            )
        finally:
            await sip.aclose()
            await database.close()
        return cls(stack, gateway, number)

    async def dial(self, phone: Phone, *, bare: bool = False, caller: str = CALLER) -> PhoneCall:
        """``bare``: without the +, as some carriers send it."""
        called = self.number.phone_number.removeprefix("+" if bare else "")
        return await phone.dial(f"sip:{called}@{self._stack.sip_address}", caller=caller)

    async def records(self) -> list[dict[str, Any]]:
        """Of all calls to the number, oldest first."""
        path = "/v1/calls?limit=100&direction=inbound"
        listed = (await self._gateway.get(path, headers=self._headers)).body["data"]
        return [call for call in reversed(listed) if call["phoneNumberId"] == self.number.id]

    async def record(self, *, index: int = -1, ended: bool = True) -> dict[str, Any]:
        """The latest call's detail, once there is one, and once it has ended."""
        async with asyncio.timeout(40):
            while True:
                found = await self.records()
                if found and not (ended and found[index]["endedAt"] is None):
                    break
                await asyncio.sleep(0.05)
        call_id = found[index]["id"]
        return dict((await self._gateway.get(f"/v1/calls/{call_id}", headers=self._headers)).body)

    async def timeline(self, call_id: str) -> str:
        async with self._gateway.session.get(
            f"/v1/calls/{call_id}/events", headers=self._headers
        ) as events:
            return await events.text()


def outcome(record: dict[str, Any]) -> tuple[str, str]:
    return record["status"], record["disconnectionReason"]


async def make_agent(gateway: Gateway, tenant: str = "acme", **changes: Any) -> str:
    """The id of a new agent that greets."""
    body = {"name": "Answers", "voiceMode": "hosted", "beginMessage": "Hello there.", **changes}
    answer = await gateway.post("/v1/agents", json=body, headers=TENANTS[tenant])
    assert answer.status in {200, 201}, answer.body
    return str(answer.body["id"])
