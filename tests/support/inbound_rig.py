"""Numbers that can be called, and the records of their calls."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from dev.phone import Phone, PhoneCall
from dev.stack import Stack
from tests.conftest import ACME, RIVAL, Gateway

CALLER = "+15105550123"
TENANTS = {"acme": ACME, "rival": RIVAL}
_last = itertools.count(15105552000)


class Line:
    """A tenant's number, attached and, if it has an agent, bound."""

    def __init__(
        self, stack: Stack, gateway: Gateway, number: dict[str, Any], headers: dict[str, str]
    ) -> None:
        self.id = str(number["id"])
        self.number = str(number["phoneNumber"])
        self._stack = stack
        self._gateway = gateway
        self._headers = headers

    @classmethod
    async def attach(
        cls,
        stack: Stack,
        gateway: Gateway,
        agent_id: str | None,
        *,
        tenant: str = "acme",
        direction: str = "both",
    ) -> Line:
        body = {
            "provider": "sip",
            "phoneNumber": f"+{next(_last)}",
            "agentId": agent_id,
            "direction": direction,
        }
        headers = TENANTS[tenant]
        answer = await gateway.post("/api/v1/phone-numbers/attach", json=body, headers=headers)
        assert answer.status == 201, answer.body
        return cls(stack, gateway, answer.body["data"], headers)

    async def dial(self, phone: Phone, *, bare: bool = False, caller: str = CALLER) -> PhoneCall:
        """Call the number. ``bare``: without the +, as some carriers send it."""
        called = self.number.removeprefix("+" if bare else "")
        return await phone.dial(f"sip:{called}@{self._stack.sip_address}", caller=caller)

    async def records(self) -> list[dict[str, Any]]:
        """Return all calls of the number, oldest first."""
        path = f"/v1/numbers/{self.id}/calls?limit=100"
        listed = (await self._gateway.get(path, headers=self._headers)).body["data"]
        return list(reversed(listed))

    async def record(self, *, index: int = -1, ended: bool = True) -> dict[str, Any]:
        """Return a call's detail, by default the latest's; wait until it exists and has ended."""
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
    """Create an agent with a greeting and return its id."""
    body = {"name": "Answers", "voiceMode": "hosted", "beginMessage": "Hello there.", **changes}
    answer = await gateway.post("/v1/agents", json=body, headers=TENANTS[tenant])
    assert answer.status in {200, 201}, answer.body
    return str(answer.body["id"])
