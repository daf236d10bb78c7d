"""Nothing is dialled twice: lost answers, lost callbacks, several gateways, gateways that die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dev.standins.twilio import Answer, Busy, TwilioServer
from gateway.calls.streams.reconciler import StreamReconciler
from gateway.keys import SESSIONS, STORE, TASKS, TIMELINE, call_services
from gateway.store.database import Scope
from gateway.store.streams.tasks import TaskStore
from tests.support.inprocess import running
from tests.support.task_rig import ACCOUNT, HOST, TO, TaskRig, task_rig

pytestmark = pytest.mark.store

PLACE = r"POST .*/Calls\.json$"
LIST = r"GET .*/Calls\.json"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[TaskRig]:
    async with task_rig(tmp_path) as rig:
        yield rig


def deaf(twilio: TwilioServer) -> None:
    """Let none of Twilio's requests arrive."""
    twilio.hosts[HOST] = "127.0.0.1:9"


def placed(twilio: TwilioServer) -> int:
    return sum(line.startswith("POST") and line.endswith("/Calls.json") for line in twilio.requests)


async def asked(rig: TaskRig, times: int = 1) -> None:
    async with asyncio.timeout(10):
        while placed(rig.twilio) < times:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_an_answer_that_was_lost(rig: TaskRig) -> None:
    """Twilio has the call, and its callbacks do not arrive: the list of its calls has it."""
    deaf(rig.twilio)
    rig.twilio.callee(TO, Busy())
    rig.twilio.fail(PLACE, late=True, status=503, times=1)
    task_id = await rig.made(retry={"maxAttempts": 3})
    await asked(rig)
    await rig.forward(seconds=6)
    task = await rig.until(task_id, lambda task: task["failure"])
    assert (task["failure"], task["attempts"]) == ("dial_busy", 1)
    assert len(rig.twilio.calls) == placed(rig.twilio) == 1
    rig.twilio.take_alerts()


async def test_callbacks_that_were_lost(rig: TaskRig) -> None:
    deaf(rig.twilio)
    rig.twilio.callee(TO, Busy())
    task_id = await rig.made()
    await (await rig.placed()).ended()
    await rig.forward(seconds=46)
    assert (await rig.status(task_id, "failed"))["failure"] == "dial_busy"
    rig.twilio.take_alerts()


async def test_a_request_that_never_arrived(rig: TaskRig) -> None:
    rig.twilio.fail(PLACE, status=503)
    task_id = await rig.made(retry={"maxAttempts": 3})
    await asked(rig)
    await rig.forward(seconds=30)
    await asyncio.sleep(0.3)
    assert (await rig.task(task_id))["status"] == "in-progress", "too early to know"
    await rig.forward(seconds=31)
    task = await rig.status(task_id, "failed")
    assert (task["failure"], task["attempts"], placed(rig.twilio)) == ("dial_failed", 1, 1)


async def test_while_twilio_does_not_tell_nothing_is_dialled(rig: TaskRig) -> None:
    rig.twilio.fail(PLACE, status=503)
    rig.twilio.fail(LIST, status=503)
    retry = {"maxAttempts": 3, "delaySeconds": 10, "on": ["failed"]}
    task_id = await rig.made(retry=retry)
    await asked(rig)
    for _ in range(4):
        await rig.forward(minutes=10)
        await asyncio.sleep(0.1)
    assert (await rig.task(task_id))["status"] == "in-progress"
    await rig.forward(minutes=25)
    task = await rig.status(task_id, "failed")
    assert (task["failure"], task["attempts"], placed(rig.twilio)) == ("OUTCOME_UNKNOWN", 1, 1)


async def test_canceled_while_it_is_not_known_whether_it_rings(rig: TaskRig) -> None:
    deaf(rig.twilio)
    rig.twilio.callee(TO, Answer(after_ms=None))
    rig.twilio.fail(PLACE, late=True, status=503, times=1)
    task_id = await rig.made()
    phone = await rig.placed()
    answer = await rig.api.request("DELETE", f"{rig.path}/{task_id}")
    assert answer.body["status"] == "canceled"
    await rig.forward(seconds=6)
    assert await phone.ended() == "canceled"
    rig.twilio.take_alerts()


async def test_a_phone_that_rings_for_an_attempt_that_was_given_up(rig: TaskRig) -> None:
    """A gateway was suspended between storing the attempt and asking Twilio for it."""
    rig.twilio.callee(TO, Answer(after_ms=None))
    rig.twilio.fail(PLACE, status=503, times=1)
    task_id = await rig.made()
    await asked(rig)
    await rig.forward(seconds=61)
    task = await rig.status(task_id, "failed")
    account = await call_services(rig.own.app).tasks._accounts.calls(
        Scope("acme"), rig.number.credential_id or ""
    )
    base = f"https://{HOST}"
    await account.place_call(
        to=TO,
        from_=rig.number.phone_number,
        url=base + rig.callback(task, "connect"),
        fallback_url=base + rig.callback(task, "connect"),
        status_url=base + rig.callback(task),
        ringing_s=30,
        machine_url=None,
    )
    (phone,) = rig.twilio.calls.values()
    assert await phone.ended() == "canceled"
    values = {"AccountSid": ACCOUNT, "CallSid": phone.sid, "CallStatus": "in-progress"}
    status, text = await rig.tell(rig.callback(task, "connect"), values)
    assert (status, "<Hangup" in text, "<Stream" in text) == (200, True, False)


async def test_two_gateways_share_the_tasks(rig: TaskRig, tmp_path: Path) -> None:
    rig.twilio.callee(TO, Busy())
    async with running(rig.settings, clock=rig.clock) as other:
        ids = [await rig.made() for _ in range(12)]
        for _ in ids:
            call_services(other.app).tasks.wake()
        for task_id in ids:
            assert (await rig.status(task_id, "failed"))["attempts"] == 1
    assert placed(rig.twilio) == 12


async def test_a_callback_reaches_another_gateway(rig: TaskRig) -> None:
    rig.twilio.callee(TO, Answer(after_ms=None))
    async with running(rig.settings, clock=rig.clock) as other:
        rig.twilio.hosts[HOST] = f"127.0.0.1:{other.port}"
        task_id = await rig.made()
        phone = await rig.placed()
        await phone.reached("ringing")
        phone.hang_up()
        assert (await rig.status(task_id, "canceled"))["attempts"] == 1


async def test_concurrent_posts_with_one_key(rig: TaskRig) -> None:
    rig.twilio.callee(TO, Busy())
    headers = {**rig.api.headers, "Idempotency-Key": "order-1"}
    answers = await asyncio.gather(*(rig.make(headers=headers, goal="g") for _ in range(10)))
    assert {answer.status for answer in answers} == {202}
    assert len({answer.body["id"] for answer in answers}) == 1
    other = await rig.make(headers=headers, goal="another")
    assert (other.status, other.body["error"]["code"]) == (409, "IDEMPOTENCY_KEY_REUSED")
    await rig.status(answers[0].body["id"], "failed")
    assert placed(rig.twilio) == 1
    plain = await asyncio.gather(*(rig.make() for _ in range(3)))
    assert len({answer.body["id"] for answer in plain}) == 3


async def test_a_gateway_stops_between_the_steps(rig: TaskRig, tmp_path: Path) -> None:
    """It has stored the attempt, but not yet the call's record."""
    rig.twilio.callee(TO, Busy())
    tasks = rig.own.app[TASKS]
    rig.twilio.fail(PLACE, status=503)  # nothing may be placed before
    runner = call_services(rig.own.app).tasks._runner

    async def nothing(*_: Any) -> tuple[str, list[Any]]:
        return "", []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "claim", nothing)
        task_id = await rig.made()
        patch.undo()
        lease, (task,) = await tasks.claim(1)
        assert await tasks.begin(task, lease, "call_" + "0" * 24) is not None
    rig.twilio.faults.clear()
    await asyncio.sleep(0.1)
    assert (await rig.task(task_id))["attempts"] == 1
    await rig.forward(leased=True, seconds=16)
    runner.bell.set()
    done = await rig.status(task_id, "failed")
    assert (done["failure"], done["attempts"], len(done["calls"])) == ("dial_busy", 1, 1)
    assert placed(rig.twilio) == 1


async def test_a_suspended_gateway_does_not_ask_too_late(
    rig: TaskRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another gateway may have concluded that there was no call."""
    begin = TaskStore.begin

    async def suspended(store: TaskStore, *args: Any) -> Any:
        begun = await begin(store, *args)
        rig.clock.forward(timedelta(seconds=11))
        await rig.worker.beat(rig.own)
        return begun

    monkeypatch.setattr(TaskStore, "begin", suspended)
    task_id = await rig.made(retry={"maxAttempts": 3})
    await rig.until(task_id, lambda task: task["attempts"] == 1)
    await rig.forward(seconds=50)
    task = await rig.status(task_id, "failed")
    assert (task["failure"], task["attempts"], placed(rig.twilio)) == ("dial_failed", 1, 0)


async def test_the_reconciler_of_sessions_leaves_ringing_phones_alone(rig: TaskRig) -> None:
    rig.twilio.callee(TO, Answer(after_ms=None))
    task_id = await rig.made()
    await (await rig.placed()).reached("ringing")
    rig.clock.forward(timedelta(minutes=3))
    app = rig.own.app
    reconciler = StreamReconciler(
        store=app[STORE],
        sessions=app[SESSIONS],
        workers=call_services(app).stream_workers,
        timeline=app[TIMELINE],
        lost=call_services(app).recovery.lost,
        comes_within_s=10,
        clock=rig.clock,
        second_look_s=0,
    )
    assert await reconciler.round() == 0
    assert (await rig.task(task_id))["status"] == "in-progress"
