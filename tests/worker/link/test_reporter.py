"""Tests of worker.link.reporter: events reach the gateway in order, despite failures."""

from __future__ import annotations

import asyncio
import errno
import json
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from core.models import CallEvent
from worker.link.backoff import Backoff
from worker.link.client import Gateway, Refused, Unavailable
from worker.link.reporter import BATCH, Reporter, batch_of, sweep
from worker.link.spool import Owner, Spool, leftovers

pytestmark = pytest.mark.unit

OWNER = Owner("call_1", "token-of-call-1")


def files(directory: Path) -> list[Path]:
    return list(directory.iterdir())


class Inbox:
    """A gateway that takes events over HTTP, or fails as told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.sizes: list[int] = []
        self.tokens: set[str] = set()
        self.over = False
        self.taken = asyncio.Event()
        """Set once a request's events were taken."""
        self.answers: list[int] = []
        """Statuses for the next requests; later ones get 200."""

    async def take(self, request: web.Request) -> web.Response:
        self.tokens.add(request.headers["Authorization"])
        status = self.answers.pop(0) if self.answers else 200
        if status == 200:
            events = (await request.json())["events"]
            self.sizes.append(len(events))
            self.events += events
            self.taken.set()
        return web.json_response({"accepted": 0, "over": self.over}, status=status)

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
async def gateway(inbox: Inbox) -> AsyncIterator[Gateway]:
    app = web.Application()
    app.router.add_post("/internal/calls/call_1/events", inbox.take)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as http:
        yield Gateway(http, f"http://127.0.0.1:{runner.addresses[0][1]}")
    await runner.cleanup()


@pytest.fixture
def unreachable() -> Any:
    class Unreachable:
        async def post_events(self, *_: Any) -> None:
            raise Unavailable("ClientConnectorError")

    return Unreachable()


def impatient(gateway: Any, directory: Path) -> Reporter:
    """Return a reporter that retries at once: the order is tested, not the delay."""
    return Reporter(gateway, directory, retry_after_s=0)


def owned(gateway: Any, directory: Path) -> Reporter:
    reporter = impatient(gateway, directory)
    reporter.own(OWNER)
    return reporter


async def test_delivers_in_order_and_leaves_nothing_behind(
    tmp_path: Path, inbox: Inbox, gateway: Gateway
) -> None:
    reporter = owned(gateway, tmp_path)
    for number in range(250):
        reporter.post("turn", {"number": number})
    await reporter.aclose(5)
    assert [event["data"]["number"] for event in inbox.events] == list(range(250))
    assert max(inbox.sizes) <= BATCH
    assert inbox.tokens == {"Bearer token-of-call-1"}
    assert files(tmp_path) == []


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_retries_what_may_succeed_later(
    tmp_path: Path, inbox: Inbox, gateway: Gateway, status: int
) -> None:
    inbox.answers = [status] * 3
    reporter = owned(gateway, tmp_path)
    reporter.post("agent.joined")
    reporter.post("agent.left")
    await reporter.aclose(5)
    assert inbox.types == ["agent.joined", "agent.left"]
    assert files(tmp_path) == []


@pytest.mark.parametrize("status", [401, 404, 422])
async def test_sets_aside_what_is_refused_without_the_token(
    tmp_path: Path, inbox: Inbox, gateway: Gateway, status: int
) -> None:
    inbox.answers = [status]
    reporter = owned(gateway, tmp_path)
    refused = reporter.post("agent.joined")
    await reporter._delivered.wait()
    reporter.post("agent.left")
    await reporter.aclose(5)
    assert inbox.types == ["agent.left"]
    (kept,) = files(tmp_path)
    text = kept.read_text()
    assert kept.suffix == ".rejected"
    assert json.loads(text.splitlines()[0])["event"]["id"] == refused.id
    assert OWNER.token not in text


async def test_a_dead_workers_events_are_shipped_by_the_sweeper(
    tmp_path: Path, inbox: Inbox, gateway: Gateway, unreachable: Any
) -> None:
    reporter = owned(unreachable, tmp_path)
    posted = [reporter.post("turn", {"number": number}) for number in range(3)]
    assert await sweep(gateway, tmp_path) == 0, "its owner lives"
    await reporter.aclose(0)
    (left,) = leftovers(tmp_path)
    with left.open("ab") as file:
        file.write(b'{"id": "evt_cut off by a cra')
    assert await sweep(gateway, tmp_path) == 1
    assert [event["id"] for event in inbox.events] == [event.id for event in posted]
    assert files(tmp_path) == []


async def test_the_sweeper_keeps_what_the_gateway_cannot_take_now(
    tmp_path: Path, inbox: Inbox, gateway: Gateway, unreachable: Any
) -> None:
    reporter = owned(unreachable, tmp_path)
    reporter.post("agent.left")
    await reporter.aclose(0)
    inbox.answers = [503]
    assert await sweep(gateway, tmp_path) == 0
    assert await sweep(gateway, tmp_path) == 1
    assert inbox.types == ["agent.left"]


async def test_tells_that_the_call_is_over_elsewhere(
    tmp_path: Path, inbox: Inbox, gateway: Gateway
) -> None:
    told: list[bool] = []
    reporter = owned(gateway, tmp_path)
    reporter.on_over = lambda: told.append(True)
    reporter.post("agent.joined")
    await reporter._delivered.wait()
    assert told == []
    inbox.over = True
    reporter.post("turn")
    await reporter.aclose(5)
    assert told == [True]


async def test_what_was_delivered_is_not_left_to_the_sweeper(
    tmp_path: Path, inbox: Inbox, gateway: Gateway
) -> None:
    reporter = owned(gateway, tmp_path)
    reporter.post("agent.joined")
    await reporter._delivered.wait()
    (file,) = files(tmp_path)
    assert file.read_text().count("\n") == 1, "only the header is left"
    await reporter.aclose(5)


async def test_the_spool_is_readable_by_its_owner_only(tmp_path: Path, gateway: Gateway) -> None:
    directory = tmp_path / "spool" / "worker"
    reporter = owned(gateway, directory)
    await reporter._keeper.settled()
    (file,) = files(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    await reporter.aclose(5)


async def test_events_wait_for_their_call(tmp_path: Path, inbox: Inbox, gateway: Gateway) -> None:
    reporter = impatient(gateway, tmp_path)
    reporter.post("agent.joined")
    assert not files(tmp_path) and not inbox.types
    reporter.own(OWNER)
    reporter.post("agent.left")
    await reporter.aclose(5)
    assert inbox.types == ["agent.joined", "agent.left"]
    assert files(tmp_path) == []


async def test_events_of_no_call_go_nowhere(tmp_path: Path, inbox: Inbox, gateway: Gateway) -> None:
    reporter = impatient(gateway, tmp_path)
    reporter.post("agent.joined")
    await reporter.aclose(5)
    assert not files(tmp_path) and not inbox.types


async def test_without_a_spool_events_are_kept_in_memory(
    tmp_path: Path, inbox: Inbox, gateway: Gateway
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    inbox.answers = [503]
    reporter = owned(gateway, blocked)
    reporter.post("agent.joined")
    await reporter.aclose(5)
    assert inbox.types == ["agent.joined"]


async def test_a_full_disk_does_not_stop_the_call(
    tmp_path: Path, inbox: Inbox, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Spool, event: CallEvent) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Spool, "append", full)
    reporter = owned(gateway, tmp_path)
    reporter.post("agent.joined")
    reporter.post("agent.left")
    await reporter.aclose(5)
    assert inbox.types == ["agent.joined", "agent.left"]


async def test_a_disk_that_hangs_holds_up_no_call(
    tmp_path: Path, inbox: Inbox, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    append = Spool.append

    def slow(self: Spool, event: CallEvent) -> None:
        assert go_on.wait(30)
        append(self, event)

    monkeypatch.setattr(Spool, "append", slow)
    reporter = owned(gateway, tmp_path)
    reporter.post("agent.joined")
    async with asyncio.timeout(30):
        await inbox.taken.wait()
    go_on.set()
    await reporter.aclose(5)
    assert inbox.types == ["agent.joined"] and files(tmp_path) == []


async def test_a_file_without_a_header_is_set_aside(tmp_path: Path, gateway: Gateway) -> None:
    (tmp_path / "call_x.jsonl").write_text("garbage\n")
    assert await sweep(gateway, tmp_path) == 0
    assert [path.name for path in files(tmp_path)] == ["call_x.rejected"]


async def test_failures_of_the_gateway_are_told_apart(inbox: Inbox, gateway: Gateway) -> None:
    event = CallEvent(type="agent.joined")
    inbox.answers = [500, 404]
    with pytest.raises(Unavailable):
        await gateway.post_events("call_1", "t", [event])
    with pytest.raises(Refused):
        await gateway.post_events("call_1", "t", [event])
    async with aiohttp.ClientSession() as http:
        with pytest.raises(Unavailable):
            await Gateway(http, "http://127.0.0.1:9").post_events("call_1", "t", [event])


async def test_backoff_doubles_up_to_its_limit() -> None:
    waited: list[float] = []

    async def sleep(delay: float) -> None:
        waited.append(delay)

    backoff = Backoff(0.5, 5.0, sleep=sleep)
    assert not backoff.failing
    for _ in range(6):
        await backoff.wait()
    longest = [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert all(0.75 * most <= delay <= most for delay, most in zip(waited, longest, strict=True))
    assert backoff.failing
    backoff.reset()
    assert not backoff.failing


@pytest.mark.attack
@pytest.mark.parametrize("busy", [False, True])
async def test_what_is_posted_by_a_dying_job_arrives(
    tmp_path: Path, inbox: Inbox, gateway: Gateway, busy: bool
) -> None:
    """When a worker's main process is killed, asyncio.run cancels every task of the job."""
    reporter = impatient(gateway, tmp_path)
    reporter.own(OWNER)
    reporter.post("agent.joined")
    if not busy:
        await reporter.delivered()
    await asyncio.sleep(0)
    mine = asyncio.current_task()
    shipping = [task for task in asyncio.all_tasks() if task.get_name() == "reporter"]
    assert shipping and mine not in shipping
    for task in shipping:
        task.cancel()
    reporter.post("call.ended")
    async with asyncio.timeout(10):
        await reporter.delivered()
    await reporter.aclose(1)
    assert list(dict.fromkeys(inbox.types)) == ["agent.joined", "call.ended"]
    assert files(tmp_path) == []


@pytest.mark.attack
@pytest.mark.parametrize("steps", [0, 1, 5])
async def test_what_was_cut_off_is_sent_at_the_end(
    tmp_path: Path, inbox: Inbox, gateway: Gateway, steps: int
) -> None:
    """The delivery is cancelled before it begins, or in the middle."""
    reporter = impatient(gateway, tmp_path)
    reporter.own(OWNER)
    reporter.post("call.ended")
    for _ in range(steps):
        await asyncio.sleep(0)
    for task in asyncio.all_tasks():
        if task.get_name() == "reporter":
            task.cancel()
    await reporter.aclose(5)
    assert set(inbox.types) == {"call.ended"}
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("sizes", "first"),
    [([], 0), ([10] * 3, 3), ([10] * 101, 100), ([400_000, 400_000], 1), ([900_000, 10], 1)],
)
def test_a_request_has_as_many_events_as_the_gateway_takes(sizes: list[int], first: int) -> None:
    events = [CallEvent(type="turn", data={"transcript": "x" * size}) for size in sizes]
    assert batch_of(events) == events[:first]


class TestSecured:
    """A tool runs once the gateway knows of it, or the disk does."""

    async def test_the_gateway_has_it(self, tmp_path: Path, inbox: Inbox, gateway: Gateway) -> None:
        reporter = owned(gateway, tmp_path)
        for number in range(BATCH + 1):
            reporter.post("turn", {"number": number})
        reporter.post("memory.tool_called")
        assert await reporter.secured(10)
        assert inbox.types[-1] == "memory.tool_called"
        assert await reporter.secured(0)
        await reporter.aclose(5)

    async def test_another_agent_has_taken_over(
        self, tmp_path: Path, inbox: Inbox, gateway: Gateway
    ) -> None:
        inbox.over = True
        reporter = owned(gateway, tmp_path)
        reporter.post("memory.tool_called")
        assert not await reporter.secured(10)
        await reporter.aclose(5)

    async def test_the_gateway_is_away(self, tmp_path: Path, unreachable: Any) -> None:
        reporter = Reporter(unreachable, tmp_path, retry_after_s=60)
        reporter.own(OWNER)
        for type in ("memory.tool_called", "memory.tool_answered"):
            reporter.post(type)
            # The first time it waits for the gateway, then it knows better.
            assert await reporter.secured(0.05 if type.endswith("called") else 60)
            (file,) = files(tmp_path)
            assert type in file.read_text()
        reporter._pending.clear()
        await reporter.aclose(5)


async def test_what_is_remembered_of_tools_is_not_set_aside(
    tmp_path: Path, inbox: Inbox, gateway: Gateway
) -> None:
    inbox.answers = [422, 422]
    reporter = owned(gateway, tmp_path)
    reporter.post("memory.tool_called", {"arguments": {"name": "Anna"}})
    await reporter.delivered()
    reporter.post("memory.tool_called", {"arguments": {"name": "Anna"}})
    reporter.post("agent.ready")
    await reporter.aclose(5)
    text = "".join(file.read_text() for file in files(tmp_path))
    assert "agent.ready" in text and "Anna" not in text
