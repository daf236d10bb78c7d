"""An agent is changed a thousand times while calls to its number come and go."""

from __future__ import annotations

import asyncio

import pytest

from dev.phone import Phone
from dev.stack import Stack
from tests.conftest import Gateway
from tests.support.inbound_rig import Line, make_agent, outcome

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

CHANGES, AT_ONCE, CALLS = 1000, 10, 5


async def test_no_change_and_no_call_is_lost(stack: Stack, gateway: Gateway, phone: Phone) -> None:
    agent = await make_agent(gateway)
    line = await Line.attach(stack, gateway, agent)
    numbers = iter(range(CHANGES))

    async def change() -> None:
        for number in numbers:
            body = {"description": f"Change {number}"}
            answer = await gateway.request("PATCH", f"/v1/agents/{agent}", json=body)
            assert answer.status == 200, answer.body

    async def call() -> None:
        for _ in range(CALLS):
            dialled = await line.dial(phone)
            await dialled.answered(20)
            await dialled.listen(20)
            await dialled.hangup()
            await dialled.ended(10)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(call())
        for _ in range(AT_ONCE):
            tasks.create_task(change())
    assert (await gateway.get(f"/v1/agents/{agent}")).body["version"] == CHANGES + 1
    kept: dict[int, str] = {}
    for offset in range(0, CHANGES + 1, 100):
        path = f"/v1/agents/{agent}/versions?limit=100&offset={offset}"
        page = (await gateway.get(path)).body["data"]
        kept |= {version["version"]: version["description"] for version in page}
    assert sorted(kept) == list(range(1, CHANGES + 2))
    changes = [description for description in kept.values() if description]
    assert sorted(changes) == sorted(f"Change {number}" for number in range(CHANGES))
    records = [await line.record(index=number) for number in range(CALLS)]
    assert [outcome(record) for record in records] == [("completed", "user_hangup")] * CALLS
    versions = [record["agentVersion"] for record in records]
    assert versions == sorted(versions)
    assert versions[0] < versions[-1], "calls and changes went on at the same time"
