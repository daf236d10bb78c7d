"""dev.stack: its components are ready, separate from other stacks, replaceable, and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from livekit.api import CreateRoomRequest, ListRoomsRequest

from core import settings
from dev.process import ManagedProcess, ProcessFailed
from dev.providers import Control, OpenAI, Rule, Script
from dev.stack import Stack
from dev.stack.component import Component, Progress, State
from dev.stack.environment import GivenSettings, as_variables
from dev.stack.options import ROOT, StackOptions, choose_settings
from dev.stack.rundir import YOUNG_S, run_dir

pytestmark = pytest.mark.stack

LOOPBACK = "0100007F:"  # 127.0.0.1 as /proc/net/tcp writes it
LIVEKIT_ONLY = StackOptions(bridge=False, providers=False, gateway=False, worker=0)

# Starts a stack, prints its server's pid and its run folder, and waits to be killed.
OWNER = """
import asyncio
from dev.stack import Stack, StackOptions

async def main():
    options = StackOptions(bridge=False, providers=False, gateway=False, worker=0)
    async with Stack(options) as stack:
        print(stack.livekit.pid, stack.run_dir, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def rooms(stack: Stack) -> list[str]:
    async with stack.api() as api:
        return [room.name for room in (await api.room.list_rooms(ListRoomsRequest())).rooms]


async def create_room(stack: Stack, name: str) -> None:
    async with stack.api() as api:
        await api.room.create_room(CreateRoomRequest(name=name, empty_timeout=60))


def processes_in(folder: Path) -> list[int]:
    """Return the ids of all processes with an open file in this folder (logs, databases)."""
    found = set()
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if Path(os.readlink(fd)).is_relative_to(folder):
                found.add(int(fd.parts[2]))
    return sorted(found)


def listening(pid: int) -> set[str]:
    """Return the local addresses at which the process accepts connections or datagrams."""
    links = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    sockets = {link[8:-1] for link in links if link.startswith("socket:[")}
    found = set()
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{protocol}").read_text().splitlines()[1:]:
            fields = line.split()  # proc_net_tcp(5): 1 local address, 3 state, 9 inode
            # <net/tcp_states.h>: 0A is LISTEN; an unconnected UDP socket is in 07.
            if fields[9] in sockets and fields[3] in ("0A", "07"):
                found.add(fields[1])
    return found


def command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]


async def assert_ends(pid: int) -> None:
    """Check that the process ends within 10 s. A pidfd is readable from then on."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            readable, _, _ = await asyncio.to_thread(select.select, [fd], [], [], 10)
            assert readable, f"process {pid} is still there"
        finally:
            os.close(fd)


class TestLiveKit:
    async def test_it_serves_and_leaves_nothing_behind(self) -> None:
        seen: list[Progress] = []
        options = StackOptions(
            bridge=False, providers=False, gateway=False, worker=0, report=seen.append
        )
        async with Stack(options) as stack:
            await create_room(stack, "here")
            assert await rooms(stack) == ["here"]
            pid, folder = stack.livekit.pid, stack.run_dir
            assert pid in processes_in(folder)
        assert pid is not None
        await assert_ends(pid)
        assert not folder.exists()
        assert [(progress.component, progress.state) for progress in seen] == [
            ("livekit-server", state)
            for state in (State.STARTING, State.READY, State.STOPPING, State.STOPPED)
        ]

    async def test_two_at_once_are_separate(self) -> None:
        async with Stack(LIVEKIT_ONLY) as one, Stack(LIVEKIT_ONLY) as two:
            await create_room(one, "only-here")
            assert await rooms(two) == []
            assert one.settings.livekit_api_secret != two.settings.livekit_api_secret

    async def test_killed_and_started_again_it_is_at_the_same_address(self) -> None:
        async with Stack(LIVEKIT_ONLY) as stack:
            await create_room(stack, "lost")
            before = stack.livekit.pid
            await stack.livekit.kill()
            assert not stack.livekit.running
            await stack.livekit.start()
            assert stack.livekit.pid != before
            assert await rooms(stack) == []

    async def test_it_listens_on_loopback_alone(self) -> None:
        async with Stack(LIVEKIT_ONLY) as stack:
            assert stack.livekit.pid is not None
            addresses = listening(stack.livekit.pid)
        assert addresses
        assert all(address.startswith(LOOPBACK) for address in addresses), addresses

    async def test_the_owners_sigkill_ends_it(self, tmp_path: Path) -> None:
        owner = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", OWNER), cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        assert owner.stdout is not None
        try:
            line = (await asyncio.wait_for(owner.stdout.readline(), 60)).decode().split()
        finally:
            with contextlib.suppress(ProcessLookupError):
                owner.kill()
            await owner.wait()
        await assert_ends(int(line[0]))
        for guard in processes_in(Path(line[1])):
            await assert_ends(guard)


class TestProviders:
    async def test_they_are_set_and_say_what_they_did(self) -> None:
        options = StackOptions(livekit=False, bridge=False, gateway=False, worker=0)
        rules = [Rule(equals=said, reply="Hello.") for said in ("one", "two")]
        control = Control(openai=OpenAI(scripts={"default": Script(rules=rules)}))
        async with Stack(options) as stack, aiohttp.ClientSession() as http:
            await stack.set_providers(control)
            for said in ("one", "two"):
                body = {"model": "gpt", "messages": [{"role": "user", "content": said}]}
                url = f"{stack.settings.openai_base_url}/chat/completions"
                headers = {"Authorization": "Bearer local"}
                async with http.post(url, json=body | {"stream": True}, headers=headers) as answer:
                    assert "Hello." in await answer.text()
            everything = await stack.provider_log()
            first, *later = everything
            assert first["heard"] == "one" and later
            assert await stack.provider_log(first["seq"]) == later


class TestFailures:
    async def test_a_server_that_does_not_start_is_explained(self) -> None:
        options = StackOptions(
            bridge=False,
            providers=False,
            gateway=False,
            worker=0,
            livekit_config={"no_such_option": True},
        )
        stack = Stack(options)
        with pytest.raises(ProcessFailed, match=r"(?s)livekit-server ended.*no_such_option"):
            await stack.__aenter__()
        assert not stack.run_dir.exists()

    async def test_cancelled_while_starting_it_leaves_nothing(self) -> None:
        seen = asyncio.Event()

        def report(_: Progress) -> None:
            seen.set()

        options = StackOptions(
            bridge=False, providers=False, gateway=False, worker=0, report=report
        )
        stack = Stack(options)
        starting = asyncio.create_task(stack.__aenter__())
        await seen.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not stack.livekit.running
        assert not stack.run_dir.exists()

    async def test_an_unexpected_end_is_noticed_and_a_wanted_one_is_not(
        self, tmp_path: Path
    ) -> None:
        async def ready() -> bool:
            return True

        component = Component(
            ManagedProcess("part", ["sleep", "600"], log_path=tmp_path / "log"),
            ready,
            address="",
            ready_timeout_s=10,
            stop_grace_s=10,
            report=lambda _: None,
        )
        await component.start()
        noticed = asyncio.create_task(component.wait_unexpected_end())
        await component.stop()
        await component.start()
        assert not noticed.done()
        assert component.pid is not None
        os.kill(component.pid, signal.SIGKILL)
        await asyncio.wait_for(noticed, 10)


class TestSettings:
    def test_children_get_the_same_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in settings.Settings.model_fields:
            monkeypatch.delenv(name.upper(), raising=False)
        given = GivenSettings(
            auth_required=True,
            auth_jwt_secret="s" * 32,
            gateway_port=0,
            agents_dir=Path("with a space"),
            shutdown_grace_s=0.5,
        )
        for name, value in as_variables(given).items():
            monkeypatch.setenv(name, value)
        loaded = settings.load()
        assert loaded.model_dump() == given.model_dump()

    def test_our_own_environment_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "somebody's real key")
        assert GivenSettings().openai_api_key is None

    def choose(self, options: StackOptions) -> tuple[settings.Settings, int | None]:
        ports = iter(range(20000, 20100))
        return choose_settings(options, Path("run"), lambda: next(ports))

    def test_what_is_given_wins_over_what_is_chosen(self) -> None:
        user = GivenSettings(gateway_port=8080, database_url="sqlite:///mine.db")
        chosen, _ = self.choose(StackOptions(settings=user, values={"gateway_port": 8181}))
        assert chosen.gateway_port == 8181
        assert chosen.gateway_base_url == "http://127.0.0.1:8181"
        assert chosen.database_url == "sqlite:///mine.db"

    def test_livekit_is_always_our_own(self) -> None:
        far = GivenSettings(livekit_url="wss://example.livekit.cloud")
        assert self.choose(StackOptions(settings=far))[0].livekit_url.startswith("ws://127.0.0.1:")
        near = GivenSettings(livekit_url="ws://localhost:7880")
        assert self.choose(StackOptions(settings=near))[0].livekit_url == "ws://127.0.0.1:7880"

    def test_provider_servers_replace_the_real_ones_unless_all_keys_are_there(self) -> None:
        keys = {"deepgram_api_key": "d", "openai_api_key": "o", "cartesia_api_key": "c"}
        chosen, port = self.choose(StackOptions(values=keys))
        assert port is None
        assert chosen.openai_base_url == "https://api.openai.com/v1"
        del keys["openai_api_key"]
        chosen, port = self.choose(StackOptions(values=keys))
        assert chosen.openai_base_url == f"http://127.0.0.1:{port}/v1"
        assert chosen.openai_api_key is not None

    def test_every_address_is_different(self) -> None:
        chosen, port = self.choose(StackOptions())
        taken = [
            port,
            chosen.gateway_port,
            chosen.bridge_port,
            chosen.worker_http_port,
            int(chosen.livekit_url.rpartition(":")[2]),
            int(chosen.bridge_sip_listen.rpartition(":")[2]),
        ]
        assert len(set(taken)) == len(taken)


class TestRunDir:
    def test_it_goes_away_unless_kept(self, tmp_path: Path) -> None:
        with run_dir(parent=tmp_path) as folder:
            (folder / "log").touch()
        assert not folder.exists()
        with run_dir(keep=True, parent=tmp_path) as folder:
            (folder / "log").touch()
        assert folder.exists()

    def test_that_of_a_killed_run_goes_at_the_next(self, tmp_path: Path) -> None:
        with run_dir(parent=tmp_path) as living, run_dir(keep=True, parent=tmp_path) as kept:
            dead = tmp_path / living.name.replace(living.name[-4:], "dead")
            dead.mkdir()
            for folder in (living, dead, kept):
                os.utime(folder, (0, 0))
            with run_dir(parent=tmp_path):
                assert living.exists()
                assert kept.exists()
                assert not dead.exists()

    def test_a_young_one_is_left_alone(self, tmp_path: Path) -> None:
        young = tmp_path / "switchroom-run-young"
        young.mkdir()
        with run_dir(parent=tmp_path):
            assert young.exists()
        assert YOUNG_S > 0


class TestCommand:
    """``python -m dev stack`` as a user at a terminal runs it."""

    @contextlib.asynccontextmanager
    async def started(self, tmp_path: Path) -> AsyncIterator[tuple[ManagedProcess, str]]:
        process = ManagedProcess(
            "python -m dev stack",
            [sys.executable, "-m", "dev", "stack"],
            log_path=tmp_path / "log",
            env=dict(os.environ) | {"ENV_FILE": "", "TMPDIR": str(tmp_path)},
            cwd=ROOT,
        )

        async def ready() -> bool:
            return "Ctrl-C stops everything" in process.log_text()

        # As under nohup or in the background of a shell without job control, where SIGINT is
        # ignored and children inherit that.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            await process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        try:
            await process.wait_ready(ready, timeout_s=120)
            yield process, process.log_text()
        finally:
            await process.kill()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    async def test_it_serves_until_it_is_told_to_stop(
        self, tmp_path: Path, number: signal.Signals
    ) -> None:
        async with self.started(tmp_path) as (process, printed):
            (url,) = re.findall(r"(?m)^gateway +(http://\S+)  ", printed)
            async with aiohttp.ClientSession() as session, session.get(f"{url}/readyz") as answer:
                assert answer.status == 200
                assert (await answer.json())["missing"] == []
            (folder,) = re.findall(r"(?m)^logs, data +(\S+)$", printed)
            pids = processes_in(Path(folder))
            assert len(pids) >= 10  # five components, each with its guard
            process.signal(number)
            assert await asyncio.wait_for(process.wait(), 60) == 130
        for pid in pids:
            await assert_ends(pid)
        assert not await asyncio.to_thread(os.path.exists, folder)

    async def test_a_component_that_ends_ends_it_with_the_reason(self, tmp_path: Path) -> None:
        async with self.started(tmp_path) as (process, printed):
            (folder,) = re.findall(r"(?m)^logs, data +(\S+)$", printed)
            (gateway,) = [
                pid
                for pid in processes_in(Path(folder))
                if command_line(pid)[1:] == ["-m", "gateway"]
            ]
            os.kill(gateway, signal.SIGKILL)
            assert await asyncio.wait_for(process.wait(), 60) == 1
            assert "gateway ended by itself with exit code 137" in process.log_text()
