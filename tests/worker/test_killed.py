"""When the only worker's main process is killed in a call, its record says what happened."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import aiohttp
import pytest

from dev.phone import Phone
from dev.stack import Stack, StackOptions
from tests.conftest import AUTH, Gateway, write_agents
from tests.support.calls import Placed, request, told

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]


async def test_the_main_process(tmp_path: Path, phone: Phone) -> None:
    write_agents(tmp_path)
    values = {**AUTH, "agents_dir": tmp_path, "default_agent": "greeter"}
    async with (
        Stack(StackOptions(values=values)) as own,
        aiohttp.ClientSession(own.gateway_url) as session,
    ):
        gateway = Gateway(session)
        call = await Placed.place(gateway, request(phone.address))
        up = await phone.next_call(5)
        await up.answered(20)
        await told(gateway, call.call_id, "turn")
        pid = own.worker.process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await told(gateway, call.call_id, "agent.lost")
        # No other worker is there to take over, and the gateway has looked for one.
        assert await call.outcome(60) == ("failed", "agent_error", None)
        assert await call.cause() == "agent_not_replaced"
        await up.ended(60)
