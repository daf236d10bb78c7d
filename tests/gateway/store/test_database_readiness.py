"""The readiness probe, and a gateway whose database is locked or whose disk is full."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from livekit.protocol.sip import CreateSIPParticipantRequest

from core.errors import Unavailable
from gateway.keys import DATABASE
from gateway.store.call_status import Call
from gateway.store.database import Database
from gateway.store.write_probe import WriteProbe
from tests.conftest import ACME
from tests.gateway.store.test_database_faults import DIAL, TAKES_NO_WRITES, causes, locked
from tests.support.edge import served
from tests.support.gateway_process import killable
from tests.support.inprocess import Running
from tests.support.livekit_stub import LiveKitStub, phone, running_with

pytestmark = [pytest.mark.store, pytest.mark.attack]


class Touched(Database):
    """Counts the writes; each waits for ``go_on``, and then fails if ``broken``."""

    def __init__(self) -> None:
        self.times, self.go_on, self.broken = 0, asyncio.Event(), False

    async def touch(self) -> None:
        self.times += 1
        await self.go_on.wait()
        if self.broken:
            raise Unavailable("no", code="STORE_UNAVAILABLE")


class TestProbe:
    def rig(self, deadline_s: float = 2) -> tuple[Touched, WriteProbe]:
        self.time = 0.0
        database = Touched()
        probe = WriteProbe(database, lambda: self.time, every_s=2, deadline_s=deadline_s)
        return database, probe

    async def test_many_who_ask_write_once(self) -> None:
        database, probe = self.rig()
        asked = asyncio.gather(*(probe.ok() for _ in range(50)))
        await asyncio.sleep(0)
        database.go_on.set()
        assert all(await asked)
        assert await probe.ok()
        assert database.times == 1

    @pytest.mark.parametrize("broken", [True, False])
    async def test_what_was_found_counts_for_two_seconds(self, broken: bool) -> None:
        database, probe = self.rig()
        database.broken = broken
        database.go_on.set()
        assert await probe.ok() is not broken
        database.broken = not broken
        self.time += 2 - 0.001
        assert await probe.ok() is not broken
        self.time += 0.001
        assert await probe.ok() is broken
        assert database.times == 2

    async def test_one_that_hangs_is_a_no_and_is_not_repeated(self) -> None:
        database, probe = self.rig(deadline_s=0.01)
        for _ in range(5):
            assert not await probe.ok()
            self.time += 60
        assert database.times == 1
        database.go_on.set()
        await probe.aclose()
        assert await probe.ok()


# --- the gateway


async def readiness(http: aiohttp.ClientSession) -> tuple[int, list[str]]:
    async with http.get("/readyz") as response:
        return response.status, (await response.json())["missing"]


async def until(asked: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while True:
            if await asked():
                return
            await asyncio.sleep(0.1)


class Ringing(LiveKitStub):
    """A phone that rings in its room until ``go_on``, and then answers."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    def app(self) -> web.Application:
        @web.middleware
        async def ring(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path.endswith("/CreateSIPParticipant"):
                asked = CreateSIPParticipantRequest.FromString(await request.read())
                self.enter(
                    asked.room_name, phone(asked.participant_identity, **{"sip.callID": "SCL_1"})
                )
                await self.go_on.wait()
            return await handler(request)

        app = super().app()
        app.middlewares.append(ring)
        return app


async def test_a_gateway_whose_database_is_locked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The gateway reports not ready, refuses calls, keeps those it has, and recovers by itself."""
    livekit = Ringing()
    async with running_with(livekit, tmp_path, sip_allow_private=True) as gateway:

        async def ready() -> bool:
            return (await readiness(gateway.http))[0] == 200

        async def not_ready() -> bool:
            return not await ready()

        gateway.app[DATABASE].write_wait_s = 0.5
        assert await readiness(gateway.http) == (200, [])
        answer = await post(gateway, DIAL)
        call_id = answer[1]["call_id"]
        async with locked(str(tmp_path / "test.db")):
            await until(not_ready)
            [missing] = (await readiness(gateway.http))[1]
            assert missing.startswith(TAKES_NO_WRITES)
            status, body = await post(gateway, {**DIAL, "room_name": "other"})
            assert (status, body["code"]) == (503, "STORE_UNAVAILABLE")
            livekit.go_on.set()  # answered, but the answer cannot be recorded

            async def not_written() -> bool:
                return "verdict not written yet" in caplog.messages

            await until(not_written)
            assert (await show(gateway, call_id)).status == "queued"
        assert "OperationalError: database is locked" in causes(caplog)

        async def answered() -> bool:
            return (await show(gateway, call_id)).status == "in-progress"

        await until(ready)
        await until(answered)


async def post(gateway: Running, body: dict[str, Any]) -> tuple[int, Any]:
    async with gateway.http.post("/sip/call", json=body, headers=ACME) as response:
        return response.status, await response.json()


async def show(gateway: Running, call_id: str) -> Call:
    async with gateway.http.get(f"/v1/calls/{call_id}", headers=ACME) as response:
        return Call.model_validate(await response.json(), extra="ignore")


async def test_a_gateway_whose_disk_is_full(tmp_path: Path) -> None:
    """A limit on file sizes makes SQLite's writes fail where they would on a full disk."""
    url = f"sqlite:///{tmp_path}/test.db"
    async with served(LiveKitStub().app()) as edge:
        livekit = f"http://127.0.0.1:{edge.port}"
        async with killable(tmp_path, url, livekit_url=livekit) as gateway:
            # The gateway creates a new database, which makes its journal longer than its log.
            (tmp_path / "test.db").unlink()
            await gateway.start()
            async with aiohttp.ClientSession(gateway.url) as http:
                assert await readiness(http) == (200, [])
                written = (tmp_path / "test.db-wal").stat().st_size
                assert written > 2 * (tmp_path / "gateway.log").stat().st_size + 8192
                pid = gateway.process.pid
                assert pid is not None
                usual = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (written, usual[1]))

                async def refused() -> bool:
                    return (await readiness(http))[0] == 503

                await until(refused)
                [missing] = (await readiness(http))[1]
                assert missing.startswith(TAKES_NO_WRITES)
                async with http.post("/sip/call", json=DIAL, headers=ACME) as response:
                    assert response.status == 503
                    assert (await response.json())["code"] == "STORE_UNAVAILABLE"
                    assert "Retry-After" in response.headers
                assert "OperationalError: disk I/O error" in gateway.process.log_text()
                resource.prlimit(pid, resource.RLIMIT_FSIZE, usual)

                async def ready() -> bool:
                    return (await readiness(http))[0] == 200

                await until(ready)
                async with http.post("/sip/call", json=DIAL, headers=ACME) as response:
                    assert response.status == 200
