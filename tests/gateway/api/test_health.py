"""Health, readiness and metrics, and the gateway as a process that does not start."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client.core import Metric
from sqlalchemy import update

from core.errors import Unavailable
from core.jobs import Heartbeat
from core.recordings.plan import RecordingPlan
from dev.stack.environment import as_variables
from dev.stack.options import ROOT
from gateway.keys import DATABASE, SETTINGS, STOPPING
from gateway.store.database import Database
from gateway.store.tables import CallRow
from recordings.spool import RecordingFile
from recordings.spool_metrics import SpoolCollector
from tests.support.edge import served
from tests.support.inprocess import Running, running, settings_in

pytestmark = pytest.mark.store


async def ready(gateway: Running) -> tuple[int, Any]:
    async with gateway.http.get("/readyz") as response:
        return response.status, await response.json()


async def test_alive_whatever_is_missing(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path)) as gateway:
        for path in ("/", "/healthz"):
            async with gateway.http.get(path) as response:
                assert response.status == 200


async def test_without_keys(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path, livekit_api_key=None)) as gateway:
        status, body = await ready(gateway)
    assert status == 503
    assert body["missing"] == ["LiveKit is not configured (LIVEKIT_API_KEY, LIVEKIT_API_SECRET)"]


async def test_livekit_away_and_stopping(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path)) as gateway:
        gateway.app[STOPPING].set()
        status, body = await ready(gateway)
    assert (status, body["status"]) == (503, "not ready")
    assert body["missing"] == [
        "LiveKit does not answer (LIVEKIT_URL)",
        "the gateway is stopping",
    ]


async def test_without_livekit_streams_and_the_api_are_served(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path)) as gateway:
        for query, wanted in (("", 503), ("?needs=database", 200), ("?needs=all", 422)):
            async with gateway.http.get(f"/readyz{query}") as response:
                assert response.status == wanted
                body = await response.json()
            if wanted == 200:
                assert body["missing"] == ["LiveKit does not answer (LIVEKIT_URL)"]
        gateway.app[STOPPING].set()
        async with gateway.http.get("/readyz?needs=database") as response:
            assert response.status == 503


@pytest.mark.parametrize(
    ("status", "text", "told"),
    [
        (401, '{"code": "unauthenticated", "msg": "s3cret"}', "refuses us (unauthenticated)"),
        (404, "<html>not LiveKit</html>", "refuses us (unknown)"),
        (200, "<html>not LiveKit</html>", "does not answer"),
        (500, "[1]", "does not answer"),
    ],
)
async def test_something_else_answers_there(
    tmp_path: Path, status: int, text: str, told: str
) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, text=text, content_type="application/json")

    other = web.Application()
    other.router.add_route("*", "/{path:.*}", answer)
    async with served(other) as edge:
        settings = settings_in(tmp_path, livekit_url=f"http://127.0.0.1:{edge.port}")
        async with running(settings) as gateway:
            code, body = await ready(gateway)
    assert code == 503
    assert told in body["missing"][0]
    assert "s3cret" not in str(body)


async def test_the_database_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ping(_database: Database) -> None:
        raise Unavailable("s3cret", code="STORE_UNAVAILABLE")

    async with running(settings_in(tmp_path)) as gateway:
        monkeypatch.setattr(Database, "ping", ping)
        status, body = await ready(gateway)
    assert status == 503
    assert body["missing"][0] == "the database does not answer (DATABASE_URL)"
    assert "s3cret" not in str(body)


async def test_the_places_of_all_workers_are_counted(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path)) as gateway:
        name = gateway.app[SETTINGS].agent_name
        beats = [
            Heartbeat(worker_id="w1", agent_name=name, capacity=5, active=3),
            Heartbeat(worker_id="w2", agent_name=name, capacity=5, active=1, draining=True),
            Heartbeat(worker_id="s1", agent_name=name, capacity=20, active=0, address="http://s1"),
        ]
        for beat in beats:
            await gateway.store.heartbeat(beat)
        waits, gone = [await gateway.call() for _ in range(2)]
        async with gateway.app[DATABASE].write() as connection:
            of = update(CallRow).values(place="wanted")
            await connection.execute(of.where(CallRow.id == waits.id))
            # On a stream worker that is gone.
            of = update(CallRow).values(place="held", place_worker="s0", type="stream")
            await connection.execute(of.where(CallRow.id == gone.id))
        await ready(gateway)
        async with gateway.http.get("/metrics") as response:
            text = await response.text()
    told = {line for line in text.splitlines() if line.startswith("switchroom_")}
    assert {
        'switchroom_workers{kind="room"} 2.0',
        'switchroom_places{kind="room",state="free"} 2.0',
        'switchroom_places{kind="room",state="taken"} 4.0',
        'switchroom_workers{kind="stream"} 1.0',
        'switchroom_places{kind="stream",state="free"} 20.0',
        'switchroom_places{kind="stream",state="taken"} 1.0',
        'switchroom_calls_waiting{kind="stream"} 0.0',
        'switchroom_calls_waiting{kind="room"} 1.0',
        'switchroom_calls_unrecovered_total{reason="nobody"} 0.0',
    } <= told


async def test_a_strangers_paths_make_no_labels(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path)) as gateway:
        for n in range(20):
            async with gateway.http.get(f"/no/such/{n}"):
                pass
            async with gateway.http.request(f"ODD{n}", f"/v1/calls/{n}"):
                pass
            async with gateway.http.get(f"/v1/calls/call_{n}?limit={n}"):
                pass
        async with gateway.http.get("/metrics") as response:
            assert response.status == 200
            text = await response.text()
    counted = [
        line
        for line in text.splitlines()
        if line.startswith("switchroom_http_request_seconds_count")
    ]
    assert 0 < len(counted) <= 3
    assert "\nswitchroom_asyncio_tasks " in text and "\nprocess_open_fds " in text
    assert not any(f"/{n}" in line or f"_{n}" in line for n in range(20) for line in counted)


async def test_spooled_recordings_are_counted_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    collect = SpoolCollector.collect

    def noted(self: SpoolCollector) -> Iterable[Metric]:
        threads.append(threading.current_thread())
        return collect(self)

    monkeypatch.setattr(SpoolCollector, "collect", noted)
    plan = RecordingPlan(key="a.wav")
    recording = RecordingFile.create(tmp_path / "spool" / "recordings", "call_1", plan)
    name = "switchroom_recordings_spooled"
    async with running(settings_in(tmp_path)) as gateway:
        async with gateway.http.get("/metrics") as response:
            text = await response.text()
        async with gateway.http.get("/metrics", params={"name[]": name + "_bytes"}) as response:
            alone = await response.text()
    recording.close()
    assert f'{name}{{state="waiting"}} 1.0' in text
    assert [line for line in alone.splitlines() if line[0] != "#"] == [f"{name}_bytes 80.0"]
    assert threads and threading.current_thread() not in threads


async def test_metrics_can_move_away(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path, metrics_port=0)) as gateway:
        async with gateway.http.get("/metrics") as response:
            assert response.status == 404


async def start(folder: Path, **variables: str) -> tuple[int, str]:
    settings = settings_in(folder, gateway_port=0)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        env={**as_variables(settings), **variables},
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        _, printed = await process.communicate()
    return process.returncode or 0, printed.decode()


@pytest.mark.parametrize(
    ("variables", "code", "told"),
    [
        ({"AUTH_REQUIRED": "yes"}, 2, "settings: AUTH_REQUIRED: "),
        ({"DEFAULT_AGENT": "nobody"}, 2, "DEFAULT_AGENT"),
        ({"DATABASE_URL": "mysql://u:s3cret@h/db"}, 2, "DATABASE_URL"),
        ({"GATEWAY_HOST": "0.0.0.0", "AUTH_REQUIRED": "false"}, 2, "ALLOW_OPEN_GATEWAY=true"),
    ],
)
async def test_a_gateway_that_does_not_start_says_why(
    tmp_path: Path, variables: dict[str, str], code: int, told: str
) -> None:
    ended, printed = await start(tmp_path, **variables)
    assert ended == code
    assert told in printed
    assert "s3cret" not in printed and "Traceback" not in printed
