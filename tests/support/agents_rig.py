"""/v1/agents in the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from typing import Any

import jwt
import pytest

from core.models import PhoneNumber, new_id, now
from gateway.keys import NUMBERS
from gateway.store.database import Scope
from tests.conftest import JWT_SECRET, bearer
from tests.support.inprocess import Running, running, settings_in


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def code(self) -> str:
        return str(self.body["error"]["code"])

    @property
    def fields(self) -> list[str]:
        return [detail["field"] for detail in self.body["error"]["details"]]


class Api:
    """A client with a tenant of its own for each test; all share the gateway."""

    def __init__(self, gateway: Running) -> None:
        self.gateway = gateway
        self.tenant = new_id("tenant")
        claims = {"auth_id": self.tenant, "exp": now() + timedelta(hours=1)}
        self.headers = bearer(jwt.encode(claims, JWT_SECRET, algorithm="HS256"))

    @property
    def scope(self) -> Scope:
        return Scope(self.tenant)

    async def ask(
        self,
        method: str,
        path: str = "",
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        headers = self.headers if headers is None else headers
        options: dict[str, Any] = {"headers": headers}
        if isinstance(body, bytes):
            options["data"] = BytesIO(body)
            options["headers"] = {**headers, "Content-Type": "application/json"}
        elif body is not None:
            options["json"] = body
        async with self.gateway.http.request(method, f"/v1/agents{path}", **options) as response:
            return Answer(response.status, await response.json(), response.headers)

    async def made(self, **fields: Any) -> dict[str, Any]:
        answer = await self.ask("POST", body={"name": "One", **fields})
        assert answer.status == 200, answer.body
        made: dict[str, Any] = answer.body
        return made

    async def number(self, agent_id: str | None) -> PhoneNumber:
        number = PhoneNumber(
            id=new_id("num"),
            auth_id=self.tenant,
            phone_number=f"+1{int(new_id('n')[2:12], 16):012}",
            country="US",
            provider="sip",
            direction="both",
            status="active",
            agent_id=agent_id,
            bound_at=now() if agent_id else None,
            created_at=now(),
        )
        await self.gateway.app[NUMBERS].insert(number)
        return number


@pytest.fixture(scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running(settings_in(tmp_path_factory.mktemp("gateway"))) as gateway:
        yield gateway


@pytest.fixture
def api(gateway: Running) -> Api:
    return Api(gateway)
