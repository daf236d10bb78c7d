"""Files that our processes keep, old ones included, are readable by their owner only."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.owner_only import keep_private
from core.settings import Settings
from dev.process import ManagedProcess
from dev.stack.environment import GivenSettings, as_variables
from dev.stack.options import HOST, ROOT
from dev.stack.ports import PORTS
from tests.support.gateway_process import GatewayProcess
from tests.support.inprocess import KEY, SECRET, settings_in

pytestmark = [pytest.mark.store, pytest.mark.attack]


@pytest.fixture(autouse=True)
def careless() -> Iterator[None]:
    """Set the umask of most machines, whatever the tests' own is."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    """Return the paths in the folder, and the folder itself, that others have rights to."""
    found = [folder, *folder.rglob("*")]
    return [
        str(path.relative_to(folder))
        for path in found
        if not path.is_symlink() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    ]


def old_folder(folder: Path) -> Settings:
    """Fill the folder as an earlier version left it; return its settings."""
    data = folder / "data"
    for name in ("secrets.key", "bridge.json", "spool/worker/call_1.jsonl", "spool/worker/x.new"):
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
    database = data / "switchroom.db"
    for ending in ("", "-wal", "-shm"):
        database.with_name(database.name + ending).write_bytes(b"")
    for path in data.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o666)
    return GivenSettings(data_dir=data, database_url=f"sqlite:///{database}")


def test_old_files_are_mended_and_new_ones_made_private(tmp_path: Path) -> None:
    settings = old_folder(tmp_path)
    assert len(open_to_others(settings.data_dir)) == 10
    keep_private(settings)
    assert open_to_others(settings.data_dir) == []
    (settings.data_dir / "new").mkdir()
    (settings.data_dir / "new" / "file").write_text("x")
    assert open_to_others(settings.data_dir) == []


def test_a_database_elsewhere_is_mended_and_its_neighbours_are_not(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    for name in ("calls.db", "calls.db-wal", "theirs.txt"):
        (shared / name).write_text("x")
    keep_private(
        GivenSettings(data_dir=tmp_path / "none", database_url=f"sqlite:///{shared}/calls.db?x=1")
    )
    assert open_to_others(shared) == [".", "theirs.txt"]


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    """DATA_DIR may be a shared folder, and a link in it may lead anywhere."""
    outside = tmp_path / "outside"
    outside.write_text("theirs")
    data = tmp_path / "tmp"
    (data / "spool").mkdir(parents=True)
    data.chmod(0o1777)
    (data / "theirs.txt").write_text("x")
    (data / "spool" / "link").symlink_to(outside)
    (data / "secrets.key").symlink_to(outside)
    keep_private(GivenSettings(data_dir=data, database_url="postgresql://h/db"))
    assert stat.S_IMODE(data.stat().st_mode) == 0o1777
    assert open_to_others(data) == [".", "theirs.txt"]
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644


def test_what_cannot_be_mended_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = old_folder(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    keep_private(settings)
    assert {record.getMessage() for record in caplog.records} == {"others may read it"}


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "postgresql://u:p@h/db"])
def test_databases_without_a_file(tmp_path: Path, url: str) -> None:
    keep_private(GivenSettings(data_dir=tmp_path, database_url=url))


async def test_a_gateway_closes_the_database_it_finds(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    database = data / "switchroom.db"
    # It has a journal, like the database of a killed process.
    keeper = sqlite3.connect(database)
    keeper.execute("PRAGMA journal_mode=WAL")
    keeper.execute("CREATE TABLE theirs (x)")
    keeper.commit()
    assert len(open_to_others(data)) == 4
    port = PORTS.take(HOST)
    settings = settings_in(
        tmp_path,
        data_dir=data,
        database_url=f"sqlite:///{database}",
        gateway_host=HOST,
        gateway_port=port,
    )
    gateway = GatewayProcess(settings, tmp_path)
    try:
        await gateway.start()
        assert (data / "secrets.key").exists() and (data / "switchroom.db-wal").exists()
        assert open_to_others(data) == []
    finally:
        await gateway.process.kill()
        keeper.close()
        PORTS.give_back(port)


async def test_the_bridge_closes_what_it_keeps(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "bridge.json").write_text('{"version": 1, "inbound": [], "outbound": [], "rules": []}')
    settings = GivenSettings(
        data_dir=data,
        bridge_port=0,
        bridge_sip_listen=f"{HOST}:0",
        livekit_api_key=KEY,
        livekit_api_secret=SECRET,
    )
    log = tmp_path / "bridge.log"
    bridge = ManagedProcess(
        "bridge",
        [sys.executable, "-m", "sip.bridge"],
        env=as_variables(settings),
        cwd=ROOT,
        log_path=log,
    )

    async def ready() -> bool:
        return await asyncio.to_thread(lambda: "sip.bridge ready" in log.read_text())

    try:
        await bridge.start()
        await bridge.wait_ready(ready, timeout_s=60)
        assert open_to_others(data) == []
    finally:
        await bridge.kill()
