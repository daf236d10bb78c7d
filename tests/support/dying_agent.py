"""An agent in a process of its own, on a scripted line, for a test to kill.

``python -m tests.support.dying_agent JSON``, with the fields of ``Orders``.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from livekit.agents.utils import http_context
from pydantic import BaseModel

from core.jobs import JobMetadata
from dev.stack.environment import GivenSettings
from tests.support.scripted_line import ScriptedLine
from worker.call import Call
from worker.job import Seat, placed
from worker.link.client import Gateway
from worker.link.reporter import Reporter
from worker.link.spool import Owner
from worker.pulse.standstill import Standstill
from worker.voice.providers import build_llm_client


class Orders(BaseModel):
    """The call, its gateway, its providers, and what the far end says to the agent."""

    call_id: str
    token: str
    gateway_url: str
    spool: Path
    settings: dict[str, Any]
    words: str


async def serve(orders: Orders) -> None:
    settings = GivenSettings(**orders.settings)
    line = ScriptedLine()
    async with (
        http_context.open(),
        aiohttp.ClientSession() as http,
        build_llm_client(settings) as model,
    ):
        gateway = Gateway(http, orders.gateway_url)
        reporter = Reporter(gateway, orders.spool)
        reporter.own(Owner(orders.call_id, orders.token))
        job = JobMetadata(call_id=orders.call_id, token=orders.token)
        call = Call(
            line,
            partial(placed, job, gateway),
            settings,
            seat=Seat("wrk_1"),
            llm_client=model,
            gateway=gateway,
            reporter=reporter,
            standstill=Standstill(),
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(call.run())
            await line.answers()
            line.says(orders.words)


if __name__ == "__main__":
    asyncio.run(serve(Orders.model_validate_json(sys.argv[1])))
