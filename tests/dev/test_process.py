"""dev.process and dev.guard: children are watched, stopped, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
from pathlib import Path

import pytest

from dev.process import ManagedProcess, ProcessFailed
from dev.stack.options import ROOT

pytestmark = pytest.mark.stack

# Prints its own process id and that of a daemon: a grandchild in a session of its own whose
# parent has ended, which no signal to a process group reaches.
WITH_DAEMON = """
import os, sys, time
print("command", os.getpid(), flush=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("daemon", os.getpid(), flush=True)
        print("up", flush=True)
        time.sleep(600)
    os._exit(0)
os.wait()
time.sleep(600)
"""

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""

POLITE = """
import signal, sys, time
def stop(*_):
    print("stopped in order", flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
time.sleep(600)
"""

# Starts the given program as a child, and prints the child's output once it is up.
CALLER = """
import asyncio, sys
from pathlib import Path
from dev.process import ManagedProcess

async def main():
    command = [sys.executable, "-c", sys.argv[1]]
    process = ManagedProcess("child", command, log_path=Path(sys.argv[2]))

    async def up():
        return "up\\n" in process.log_text()

    await process.start()
    await process.wait_ready(up, timeout_s=20)
    print(process.log_text(), end="", flush=True)
    await process.wait()

asyncio.run(main())
"""


def child(tmp_path: Path, program: str) -> ManagedProcess:
    return ManagedProcess("child", [sys.executable, "-c", program], log_path=tmp_path / "child.log")


async def up(process: ManagedProcess) -> None:
    async def said_so() -> bool:
        return "up\n" in process.log_text()

    await process.wait_ready(said_so, timeout_s=20)


def printed_pids(log: str) -> dict[str, int]:
    pairs = [line.split() for line in log.splitlines()]
    return {words[0]: int(words[1]) for words in pairs if len(words) == 2}


async def assert_ends(pid: int) -> None:
    """Check that the process ends within 10 s. A pidfd is readable from then on."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        readable, _, _ = await asyncio.to_thread(select.select, [fd], [], [], 10)
        assert readable, f"process {pid} is still there"
    finally:
        os.close(fd)


async def test_exit_code_and_output_are_kept(tmp_path: Path) -> None:
    process = child(tmp_path, "import sys; print('out'); print('err', file=sys.stderr); exit(3)")
    await process.start()
    assert await process.wait() == 3
    assert process.returncode == 3
    assert not process.running
    assert sorted(process.log_text().split()) == ["err", "out"]


async def test_the_pid_is_the_commands_own(tmp_path: Path) -> None:
    process = child(tmp_path, WITH_DAEMON)
    await process.start()
    try:
        await up(process)
        assert process.pid == printed_pids(process.log_text())["command"]
    finally:
        await process.kill()
    assert process.pid is None


async def test_an_early_end_is_reported_at_once_with_the_log(tmp_path: Path) -> None:
    process = child(tmp_path, "print('no such database'); exit(2)")
    await process.start()
    with pytest.raises(ProcessFailed, match=r"(?s)exit code 2 while starting.*no such database"):
        await up(process)


async def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    process = ManagedProcess("child", ["/nonexistent/command"], log_path=tmp_path / "log")
    await process.start()
    with pytest.raises(ProcessFailed, match="cannot run /nonexistent/command"):
        await up(process)


async def test_not_ready_in_time(tmp_path: Path) -> None:
    process = child(tmp_path, "import time; time.sleep(600)")
    await process.start()

    async def never() -> bool:
        return False

    try:
        with pytest.raises(ProcessFailed, match=r"within 0.2 s; it logged nothing"):
            await process.wait_ready(never, timeout_s=0.2)
    finally:
        await process.kill()


async def test_stop_lets_the_command_finish(tmp_path: Path) -> None:
    process = child(tmp_path, POLITE)
    await process.start()
    await up(process)
    assert await process.stop(grace_s=20) == 7
    assert process.log_text().endswith("stopped in order\n")


async def test_stop_kills_after_the_grace_time(tmp_path: Path) -> None:
    process = child(tmp_path, STUBBORN)
    await process.start()
    await up(process)
    assert await process.stop(grace_s=0.1) == 128 + signal.SIGKILL


async def test_stop_kills_when_cancelled(tmp_path: Path) -> None:
    process = child(tmp_path, STUBBORN)
    await process.start()
    await up(process)
    pid = process.pid
    assert pid is not None
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await process.stop(grace_s=600)
    await assert_ends(pid)
    await process.wait()


async def test_kill_reaches_a_daemon(tmp_path: Path) -> None:
    process = child(tmp_path, WITH_DAEMON)
    await process.start()
    await up(process)
    pids = printed_pids(process.log_text())
    await process.kill()
    for pid in pids.values():
        await assert_ends(pid)


async def test_a_daemon_does_not_survive_the_commands_own_end(tmp_path: Path) -> None:
    process = child(tmp_path, WITH_DAEMON)
    await process.start()
    await up(process)
    pids = printed_pids(process.log_text())
    os.kill(pids["command"], signal.SIGKILL)
    assert await process.wait() == 128 + signal.SIGKILL
    await assert_ends(pids["daemon"])


async def test_nothing_survives_the_callers_sigkill(tmp_path: Path) -> None:
    caller = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CALLER, WITH_DAEMON, str(tmp_path / "child.log")),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert caller.stdout is not None
    try:
        printed = await asyncio.wait_for(caller.stdout.readuntil(b"up\n"), 30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            caller.kill()
        await caller.wait()
    pids = printed_pids(printed.decode())
    assert set(pids) == {"command", "daemon"}
    for pid in pids.values():
        await assert_ends(pid)


async def test_start_again_appends_to_the_log(tmp_path: Path) -> None:
    process = child(tmp_path, "print('once')")
    for _ in range(2):
        await process.start()
        assert await process.wait() == 0
    assert process.log_text() == "once\nonce\n"
    assert process.log_text(this_run=True) == "once\n"


async def test_start_twice_is_refused(tmp_path: Path) -> None:
    process = child(tmp_path, STUBBORN)
    await process.start()
    try:
        with pytest.raises(RuntimeError, match="running already"):
            await process.start()
    finally:
        await process.kill()
