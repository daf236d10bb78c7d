"""Places a call in a test and reads its outcome."""

from __future__ import annotations

import asyncio
from typing import Any

from core.models import new_id
from tests.conftest import ACME, Gateway
from tests.support.diagnosis import diagnosis_of


def request(address: str, **changes: Any) -> dict[str, Any]:
    """Return a request for a call to ``address`` with the greeter agent."""
    values: dict[str, Any] = {
        "room_name": new_id("room"),
        "participant_name": "John Doe",
        "participant_identity": "caller",
        "from_phone_number": "+15105550123",
        "to_phone_number": "+15551234567",
        "sip": {"outbound_address": address},
        "agent": "greeter",
    }
    return {**values, **changes}


async def told(gateway: Gateway, call_id: str, event: str) -> None:
    """Wait until the timeline has the event, also if its stream has ended before."""
    path, wanted = f"/v1/calls/{call_id}/events", f"event: {event}\n".encode()
    async with asyncio.timeout(20):
        while True:
            async with gateway.session.get(path, headers=ACME) as events:
                async for line in events.content:
                    if line == wanted:
                        return
            await asyncio.sleep(0.2)


class Placed:
    """One call under test."""

    def __init__(self, gateway: Gateway, body: dict[str, Any], call_id: str) -> None:
        self._gateway = gateway
        self.room = str(body["room_name"])
        self.call_id = call_id

    @classmethod
    async def place(cls, gateway: Gateway, body: dict[str, Any]) -> Placed:
        answer = await gateway.post("/sip/call", json=body)
        assert answer.status == 200, answer.body
        return cls(gateway, body, answer.body["call_id"])

    async def record(self, timeout: float = 40) -> dict[str, Any]:
        """Return the record, once the timeline has ended."""
        async with (
            asyncio.timeout(timeout),
            self._gateway.session.get(f"/v1/calls/{self.call_id}/events", headers=ACME) as events,
        ):
            assert "event: ended" in await events.text()
        return dict((await self._gateway.get(f"/v1/calls/{self.call_id}")).body)

    async def cause(self, timeout: float = 40) -> str | None:
        """Return the code of the diagnosis, once the timeline has ended; None: no cause."""
        await self.record(timeout)
        found = await diagnosis_of(self._gateway.session, self.call_id)
        code: str | None = found["code"]
        assert (code is None) == (found["verdict"] == "good"), found
        return code

    async def outcome(self, timeout: float = 40) -> tuple[str, str, int | None]:
        record = await self.record(timeout)
        return record["status"], record["disconnectionReason"], record["sipStatusCode"]
