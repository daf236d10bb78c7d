"""Gateways of the last release and of this one serve the same calls, on this one's schema."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from core.tokens import TokenIssuer
from dev.stack.options import ROOT
from gateway.store import migrations
from gateway.store.database import Database
from tests.conftest import ACME, bearer
from tests.support.databases import OnPostgres
from tests.support.gateway_process import GatewayProcess, killable
from tests.support.inprocess import SECRET

pytestmark = pytest.mark.store

LAST_RELEASE, ITS_MIGRATION = "c5781eba22deab1f93ceb0bbd509d6f8ec23b18d", "0016"
"""To be set at each release, with the newest migration that it has."""

# ``execute`` fills what was added.
_ADDS = {"add_column", "create_table", "create_index", "execute"}


def test_migrations_since_then_only_add() -> None:
    folder = Path(migrations.__file__).parent / "versions"
    newer = [path for path in sorted(folder.glob("0*.py")) if path.name[:4] > ITS_MIGRATION]
    for path in newer:
        tree = ast.parse(path.read_text())
        (upgrade,) = [
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == "upgrade"
        ]
        does = {
            node.attr
            for node in ast.walk(upgrade)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "op"
        }
        assert does <= _ADDS, path.name


@pytest.fixture(scope="module")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the last release's code."""
    folder = tmp_path_factory.mktemp("last_release")
    found = subprocess.run(
        ["git", "-C", ROOT, "archive", LAST_RELEASE, "core", "gateway", "recordings", "sip"],
        capture_output=True,
    )
    if found.returncode:
        pytest.skip("not found: the last release's commit (a shallow clone, or no git)")
    subprocess.run(["tar", "-x", "-C", folder], input=found.stdout, check=True)
    return folder


@dataclass
class Api:
    http: aiohttp.ClientSession
    url: str

    async def ask(
        self, method: str, path: str, headers: dict[str, str] = ACME, **options: Any
    ) -> Any:
        async with self.http.request(
            method, self.url + path, headers=headers, **options
        ) as response:
            assert response.status < 300, (path, response.status, await response.text())
            return await response.json()

    async def heartbeat(self) -> None:
        """Report a stream worker, without which no session is opened."""
        beat = {
            "workerId": "wrk_1",
            "agentName": "switchroom",
            "capacity": 20,
            "active": 0,
            "address": "http://127.0.0.1:9",
        }
        token = bearer(TokenIssuer(SECRET).for_worker("wrk_1"))
        await self.ask("POST", "/internal/workers/heartbeat", token, json=beat)

    async def session(self, agent_id: str) -> str:
        """Open a session, which is a call; return its id."""
        await self.heartbeat()
        minted = await self.ask("POST", f"/v1/agents/{agent_id}/session", json={})
        return str(minted["sessionId"])

    async def report(self, call_id: str, *types: str, **data: Any) -> None:
        """Report events as the call's worker."""
        token = bearer(TokenIssuer(SECRET).for_call(call_id))
        events = [{"type": type, "data": data} for type in types]
        path = f"/internal/calls/{call_id}/events"
        await self.ask("POST", path, token, json={"events": events})


@asynccontextmanager
async def started(gateway: GatewayProcess, http: aiohttp.ClientSession) -> AsyncIterator[Api]:
    await gateway.start()
    yield Api(http, gateway.url)


class TestTwoReleases(OnPostgres):
    async def test_at_the_same_time(
        self, empty_url: str, tmp_path: Path, last_release: Path
    ) -> None:
        url = empty_url
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            http = await enter(aiohttp.ClientSession())
            former = await enter(killable(tmp_path, url, code=last_release))
            present = await enter(killable(tmp_path, url))
            old = await enter(started(former, http))
            config = {"name": "Ann", "voiceMode": "hosted"}
            agent = (await old.ask("POST", "/v1/agents", json=config))["id"]
            before = await old.session(agent)
            new = await enter(started(present, http))  # migrates

            # Each serves what the other began.
            calls = [before, await old.session(agent), await new.session(agent)]
            over = {"status": "completed", "reason": "user_hangup"}
            for call_id in calls:
                await new.report(call_id, "agent.joined", "call.answered", worker="wrk_1")
                await old.report(call_id, "dtmf.received", digit="1")
                await old.report(call_id, "call.ended", **over)
                for api in (old, new):
                    record = await api.ask("GET", f"/v1/calls/{call_id}")
                    assert (record["status"], record["disconnectionReason"]) == (
                        "completed",
                        "user_hangup",
                    )
            changed = await old.ask("PATCH", f"/v1/agents/{agent}", json={"language": "de"})
            assert changed["version"] == 2
            assert (await new.ask("GET", f"/v1/agents/{agent}"))["version"] == 2
            listed = [await api.ask("GET", "/v1/calls") for api in (old, new)]
            assert [page["total"] for page in listed] == [3, 3]

    async def test_a_schema_of_a_newer_release_is_left_as_it_is(self, url: str) -> None:
        """This release's gateway starts on it, as those of the last one will from now on."""
        await (await Database.open(url)).close()
        newer = await Database.open(url, upgrade=False)
        async with newer.write() as connection:
            await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        await newer.close()
        opened = await Database.open(url)
        await opened.touch()
        async with opened.read() as connection:
            found = await connection.exec_driver_sql("SELECT version_num FROM alembic_version")
            assert found.scalar_one() == "9999"
        await opened.close()
