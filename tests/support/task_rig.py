"""Gateways in the test's process that place calls through the Twilio stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from sqlalchemy import select

from core.models import Agent, PhoneNumber
from core.settings import Settings
from dev.standins.twilio import TwilioServer
from dev.standins.twilio.call import Call as TwilioCall
from gateway.keys import DATABASE, call_services
from gateway.store.call_status import StoredEvent
from gateway.store.streams.tables import TaskRow
from tests.conftest import ACME, Answered, Gateway
from tests.support.clock import Clock
from tests.support.inprocess import Running, running, settings_in
from tests.support.numbers import make_agent, make_number
from tests.support.stream_worker import StreamWorker, stream_worker
from tests.support.twilio_calls import signature

ACCOUNT, TOKEN = "AC" + "1" * 32, "the-auth-token"
TWILIO = {"name": "main", "provider": "twilio", "accountSid": ACCOUNT, "authToken": TOKEN}
HOST = "voice.example.test"
TO = "+15551230077"
T = TypeVar("T")


@dataclass
class TaskRig:
    own: Running
    api: Gateway
    twilio: TwilioServer
    worker: StreamWorker
    agent: Agent
    number: PhoneNumber
    clock: Clock
    settings: Settings

    @property
    def path(self) -> str:
        return f"/v1/agents/{self.agent.id}/tasks"

    async def make(self, *, headers: dict[str, str] = ACME, **fields: Any) -> Answered:
        return await self.api.post(self.path, json={"to": TO, **fields}, headers=headers)

    async def made(self, **fields: Any) -> str:
        answer = await self.make(**fields)
        assert answer.status == 202, answer.body
        return str(answer.body["id"])

    async def task(self, task_id: str) -> Any:
        answer = await self.api.get(f"{self.path}/{task_id}")
        assert answer.status == 200, answer.body
        return answer.body

    async def until(self, task_id: str, holds: Callable[[Any], object], timeout: float = 10) -> Any:
        """Wait until ``holds(task)``, and return the task."""
        task = None
        try:
            async with asyncio.timeout(timeout):
                while not holds(task := await self.task(task_id)):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"still {task}") from None
        return task

    @staticmethod
    async def eventually(ask: Callable[[], Awaitable[T | None]], timeout: float = 10) -> T:
        """Wait until ``ask`` returns something true, and return that."""
        async with asyncio.timeout(timeout):
            while not (found := await ask()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return found

    async def status(self, task_id: str, *statuses: str) -> Any:
        return await self.until(task_id, lambda task: task["status"] in statuses)

    async def placed(self, number: int = 1) -> TwilioCall:
        """Wait until Twilio has the n-th call."""
        async with asyncio.timeout(10):
            while len(self.twilio.calls) < number:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return list(self.twilio.calls.values())[number - 1]

    async def events(self, call_id: str) -> list[StoredEvent]:
        return await self.own.store.events(call_id)

    async def until_event(self, call_id: str, type: str) -> None:
        async with asyncio.timeout(10):
            while type not in await self.types(call_id):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def types(self, call_id: str) -> list[str]:
        return [event.type for event in await self.events(call_id)]

    async def forward(self, *, leased: bool = False, **by: float) -> None:
        """Move the gateway's clock, and let the runner look at once.

        First the step under way ends, unless it is ``leased`` by a gateway that has stopped. It
        would count from the new time otherwise, and what the test waits for would be due too late.
        """
        if not leased:
            await self.eventually(self._at_rest)
        self.clock.forward(timedelta(**by))
        await self.worker.beat(self.own)
        call_services(self.own.app).tasks.wake()

    async def _at_rest(self) -> bool:
        async with self.own.app[DATABASE].read() as connection:
            leases = await connection.scalars(select(TaskRow.lease))
            return not any(leases)

    # --- Twilio's requests, by hand

    def callback(self, task: Any, what: str = "status", call_id: str | None = None) -> str:
        call_id = call_id or task["callId"]
        return f"/v1/sessions/twilio/task/{task['id']}/{what}?call={call_id}"

    def signed(self, path: str, form: dict[str, str], token: str = TOKEN) -> dict[str, str]:
        return {"X-Twilio-Signature": signature(f"https://{HOST}{path}", form, token)}

    async def tell(
        self, path: str, form: dict[str, str], headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Send a request as Twilio does; return the answer's status and text."""
        headers = self.signed(path, form) if headers is None else headers
        return await told(self.own.http, path, form, headers)


async def told(
    http: aiohttp.ClientSession, path: str, form: dict[str, str], headers: dict[str, str]
) -> tuple[int, str]:
    async with http.post(path, data=form, headers=headers) as response:
        return response.status, await response.text()


@asynccontextmanager
async def task_rig(
    folder: Path, agent: dict[str, Any] | None = None, **changes: Any
) -> AsyncIterator[TaskRig]:
    async with AsyncExitStack() as stack:
        twilio = await stack.enter_async_context(TwilioServer({ACCOUNT: TOKEN}))
        settings = settings_in(
            folder,
            **{"twilio_base_url": twilio.url, "public_url": f"https://{HOST}", **changes},
        )
        own = await stack.enter_async_context(running(settings))
        twilio.hosts[HOST] = f"127.0.0.1:{own.port}"
        worker = await stack.enter_async_context(stream_worker(own))
        api = Gateway(own.http)
        credential = await api.post("/api/v1/credentials", json=TWILIO)
        assert credential.status == 201, credential.body
        made = await make_agent(own, **(agent or {}))
        number = await make_number(
            own, agent=made, provider="twilio", credential_id=credential.body["data"]["id"]
        )
        twilio.give(ACCOUNT, number.phone_number)
        yield TaskRig(own, api, twilio, worker, made, number, own.clock, settings)
