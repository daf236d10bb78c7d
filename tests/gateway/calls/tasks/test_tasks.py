"""Tasks from the request to the last attempt, against the Twilio stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from core.events import ended
from core.models import CallEvent
from dev.standins.twilio import Answer, Busy, RingOut, Unreachable
from tests.conftest import RIVAL
from tests.support.numbers import make_agent, make_number
from tests.support.task_rig import ACCOUNT, TO, TaskRig, task_rig

pytestmark = pytest.mark.store


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[TaskRig]:
    async with task_rig(tmp_path) as rig:
        yield rig


async def test_a_call_that_nobody_takes(rig: TaskRig) -> None:
    rig.twilio.callee(TO, Busy())
    answer = await rig.make(goal="Book a table", instanceId="inst_1", metadata={"lead": 882})
    assert answer.status == 202
    assert answer.body["status"] == "queued" and answer.body["id"].startswith("task_")
    task = await rig.status(answer.body["id"], "failed")
    assert (task["failure"], task["attempts"]) == ("dial_busy", 1)
    assert task["calls"] == [task["callId"]]
    call = (await rig.api.get(f"/v1/calls/{task['callId']}")).body
    assert (call["type"], call["direction"]) == ("stream", "outbound")
    assert (call["fromNumber"], call["toNumber"]) == (rig.number.phone_number, TO)
    assert call["phoneNumberId"] == rig.number.id
    assert (call["status"], call["disconnectionReason"]) == ("busy", "dial_busy")
    named = {"taskId": task["id"], "goal": "Book a table", "instanceId": "inst_1"}
    assert call["metadata"] == {"lead": 882, **named}
    assert await rig.types(call["id"]) == [
        "call.queued",
        "call.dialing",
        "call.ringing",
        "call.ended",
    ]


@pytest.mark.parametrize(
    ("callee", "status", "reason"),
    [
        (RingOut(), "no-answer", "dial_no_answer"),
        (Unreachable(), "failed", "dial_failed"),
    ],
)
async def test_other_ways_of_not_being_reached(
    rig: TaskRig, callee: Any, status: str, reason: str
) -> None:
    rig.twilio.callee(TO, callee)
    task = await rig.status(await rig.made(), "failed")
    call = (await rig.api.get(f"/v1/calls/{task['callId']}")).body
    assert (call["status"], call["disconnectionReason"]) == (status, reason)
    assert task["failure"] == reason


async def test_repeated_until_somebody_answers(rig: TaskRig) -> None:
    rig.twilio.callee(TO, Busy(), RingOut(), Answer(after_ms=None))
    task_id = await rig.made(retry={"maxAttempts": 5, "delaySeconds": 60})
    task = await rig.until(task_id, lambda task: task["failure"] == "dial_busy")
    assert (task["status"], task["attempts"]) == ("queued", 1)
    assert task["nextAttemptAt"] is not None and task["endedAt"] is None
    await rig.forward(seconds=50)
    assert (await rig.task(task_id))["attempts"] == 1
    await rig.forward(seconds=11)
    await rig.until(task_id, lambda task: task["failure"] == "dial_no_answer")
    await rig.forward(seconds=61)
    await (await rig.placed(3)).reached("ringing")
    task = await rig.status(task_id, "in-progress")
    assert (task["attempts"], len(set(task["calls"]))) == (3, 3)


async def test_failed_is_repeated_only_if_wanted(rig: TaskRig) -> None:
    rig.twilio.callee(TO, Unreachable())
    retry = {"maxAttempts": 2, "delaySeconds": 10}
    assert (await rig.status(await rig.made(retry=retry), "failed"))["attempts"] == 1
    task_id = await rig.made(retry={**retry, "on": ["failed"]})
    await rig.until(task_id, lambda task: task["failure"] == "dial_failed")
    await rig.forward(seconds=11)
    task = await rig.status(task_id, "failed")
    assert task["attempts"] == 2


async def test_no_attempt_after_until(rig: TaskRig) -> None:
    rig.twilio.callee(TO, Busy())
    until = (rig.clock() + timedelta(seconds=100)).isoformat()
    task_id = await rig.made(retry={"maxAttempts": 9, "delaySeconds": 60, "until": until})
    await rig.until(task_id, lambda task: task["failure"] == "dial_busy")
    await rig.forward(seconds=61)
    task = await rig.status(task_id, "failed")
    assert (task["attempts"], task["failure"]) == (2, "dial_busy")


async def test_canceled_while_it_rings(rig: TaskRig) -> None:
    rig.twilio.callee(TO, Answer(after_ms=None))
    task_id = await rig.made(retry={"maxAttempts": 3})
    phone = await rig.placed()
    await phone.reached("ringing")
    answer = await rig.api.request("DELETE", f"{rig.path}/{task_id}")
    assert (answer.status, answer.body["status"]) == (200, "canceled")
    assert await phone.ended() == "canceled"
    task = await rig.task(task_id)
    call = (await rig.api.get(f"/v1/calls/{task['callId']}")).body
    assert (call["status"], call["disconnectionReason"]) == ("canceled", "canceled")
    again = await rig.api.request("DELETE", f"{rig.path}/{task_id}")
    assert (again.status, again.body["error"]["code"]) == (409, "TASK_FINISHED")
    await rig.forward(hours=1)
    assert (await rig.task(task_id))["attempts"] == 1


@pytest.mark.parametrize(
    ("code", "reason"), [(21211, "invalid_destination"), (21215, "dial_failed")]
)
async def test_a_call_that_twilio_refuses(rig: TaskRig, code: int, reason: str) -> None:
    rig.twilio.fail(r"POST .*/Calls\.json", status=400, code=code)
    task = await rig.status(await rig.made(), "failed")
    call = (await rig.api.get(f"/v1/calls/{task['callId']}")).body
    assert (call["status"], call["disconnectionReason"]) == ("failed", reason)
    (over,) = [event for event in await rig.events(call["id"]) if event.type == "call.ended"]
    assert over.data["note"] == f"Twilio error {code}"
    assert not rig.twilio.calls


async def test_an_answered_call(rig: TaskRig) -> None:
    """Twilio's stream is attached to a worker, and the call is not repeated."""
    rig.twilio.callee(TO, Answer(after_ms=None))
    task_id = await rig.made(retry={"maxAttempts": 3}, goal="Book a table")
    phone = await rig.placed()
    await phone.reached("ringing")
    phone.pick_up()
    session = await rig.worker.session()
    task = await rig.task(task_id)
    assert task["status"] == "in-progress"
    call_id = task["callId"]
    attach = session.attaches[0]
    assert attach["kind"] == "twilio" and not attach["resume"]
    assert attach["twilio"]["callSid"] == phone.sid
    refused = await rig.api.request("DELETE", f"{rig.path}/{task_id}")
    assert (refused.status, refused.body["error"]["code"]) == (409, "CALL_ANSWERED")
    # Twilio's request cannot be replayed to get at the session.
    values = {"AccountSid": ACCOUNT, "CallSid": phone.sid, "CallStatus": "in-progress"}
    assert (await rig.tell(rig.callback(task, "connect"), values))[0] == 403
    over = CallEvent(type="call.ended", data=ended("completed", "agent_hangup"))
    await rig.own.store.append(call_id, [over], "worker")
    await session.close()
    assert await phone.ended() == "completed"
    await rig.forward(seconds=0)
    task = await rig.status(task_id, "completed")
    assert (task["failure"], task["attempts"]) == (None, 1)
    call = (await rig.api.get(f"/v1/calls/{call_id}")).body
    assert (call["status"], call["disconnectionReason"]) == ("completed", "agent_hangup")
    assert call["answeredAt"] is not None


async def test_answered_and_hung_up_before_the_stream(rig: TaskRig) -> None:
    rig.twilio.callee(TO, Answer(after_ms=None))
    task_id = await rig.made(retry={"maxAttempts": 3})
    phone = await rig.placed()
    task = await rig.until(task_id, lambda task: task["callId"])
    values = {"AccountSid": ACCOUNT, "CallSid": phone.sid, "CallStatus": "completed"}
    await rig.tell(rig.callback(task), {**values, "SequenceNumber": "3"})
    task = await rig.status(task_id, "completed")
    call = (await rig.api.get(f"/v1/calls/{task['callId']}")).body
    assert (call["status"], call["disconnectionReason"]) == ("completed", "user_hangup")
    assert call["answeredAt"] is not None
    phone.hang_up()


async def test_a_worker_that_never_reports_the_end(rig: TaskRig) -> None:
    task_id = await rig.made()
    session = await rig.worker.session()
    (phone,) = rig.twilio.calls.values()
    phone.hang_up()
    assert await phone.ended() == "completed"
    await rig.forward(seconds=46)
    task = await rig.until(task_id, lambda task: task["callId"])
    assert task["status"] == "in-progress"
    await rig.forward(seconds=61)
    task = await rig.status(task_id, "completed")
    (over,) = [e for e in await rig.events(task["callId"]) if e.type == "call.ended"]
    assert (over.source, over.data["reason"]) == ("reconciler", "user_hangup")
    assert session.attaches


async def test_ended_by_the_api_while_it_rings(rig: TaskRig) -> None:
    rig.twilio.callee(TO, Answer(after_ms=None))
    task_id = await rig.made(retry={"maxAttempts": 3})
    phone = await rig.placed()
    await phone.reached("ringing")
    call_id = (await rig.task(task_id))["callId"]
    answer = await rig.api.post(f"/v1/calls/{call_id}/end")
    assert answer.status == 200, answer.body
    assert await phone.ended() == "canceled"
    assert (await rig.status(task_id, "canceled"))["attempts"] == 1


async def test_twilios_opinion_on_who_answered(tmp_path: Path) -> None:
    async with task_rig(tmp_path, {"voicemail_message": "Call us back."}) as rig:
        rig.twilio.callee(TO, Answer(by="machine"))
        task_id = await rig.made()
        await rig.worker.session()
        task = await rig.task(task_id)
        await rig.until_event(task["callId"], "call.answered_by")
        (told,) = [e for e in await rig.events(task["callId"]) if e.type == "call.answered_by"]
        assert told.data == {"answeredBy": "machine_start", "afterMs": 20}


async def test_nobody_is_dialled_while_no_worker_is_free(rig: TaskRig) -> None:
    await rig.worker.beat(rig.own, capacity=1, active=1)
    task_id = await rig.made()
    task = await rig.until(task_id, lambda task: task["failure"])
    assert (task["status"], task["failure"]) == ("queued", "AGENT_UNAVAILABLE")
    assert (task["attempts"], rig.twilio.calls) == (0, {})
    rig.twilio.callee(TO, Busy())
    await rig.forward(seconds=6)
    assert (await rig.status(task_id, "failed"))["attempts"] == 1


async def test_the_limits_of_calls_hold(tmp_path: Path) -> None:
    async with task_rig(tmp_path, max_concurrent_calls=1) as rig:
        rig.twilio.callee(TO, Answer(after_ms=None))
        first = await rig.made()
        phone = await rig.placed()
        await rig.status(first, "in-progress")
        second = await rig.made()
        task = await rig.until(second, lambda task: task["failure"])
        assert (task["failure"], task["attempts"]) == ("CONCURRENCY_LIMIT", 0)
        phone.hang_up()
        await rig.status(first, "canceled")
        await rig.forward(seconds=6)
        await (await rig.placed(2)).reached("ringing")


async def test_what_changed_since_the_request_counts(rig: TaskRig) -> None:
    """The next attempt is not made from a number that was detached, or by a disabled agent."""
    rig.twilio.callee(TO, Busy())
    retry = {"maxAttempts": 3, "delaySeconds": 10}
    task_id = await rig.made(retry=retry)
    await rig.until(task_id, lambda task: task["failure"] == "dial_busy")
    answer = await rig.api.request("PATCH", f"/v1/agents/{rig.agent.id}", json={"enabled": False})
    assert answer.status == 200, answer.body
    await rig.forward(seconds=11)
    task = await rig.status(task_id, "failed")
    assert (task["failure"], task["attempts"]) == ("AGENT_DISABLED", 1)


async def test_which_number_calls(rig: TaskRig) -> None:
    rig.twilio.callee(TO, Busy())
    own = rig.number.phone_number
    chosen: dict[str, Any] = {"from": own}
    answer = await rig.make(**chosen)
    assert (answer.status, answer.body["from"]) == (202, own)
    sip = await make_number(rig.own)
    inbound = await make_number(
        rig.own, provider="twilio", credential_id=rig.number.credential_id, direction="inbound"
    )
    rivals = await make_number(rig.own, "rival", provider="twilio")
    for number in (sip.phone_number, inbound.phone_number, rivals.phone_number, "+15105559999"):
        chosen = {"from": number}
        answer = await rig.make(**chosen)
        assert (answer.status, answer.body["error"]["code"]) == (403, "FROM_NUMBER_NOT_ALLOWED")
    other = await make_agent(rig.own)
    answer = await rig.api.post(f"/v1/agents/{other.id}/tasks", json={"to": TO})
    assert (answer.status, answer.body["error"]["code"]) == (409, "NO_NUMBER")


async def test_another_tenant_sees_nothing(rig: TaskRig) -> None:
    rig.twilio.callee(TO, Answer(after_ms=None))
    task_id = await rig.made()
    for method, path in (
        ("GET", f"{rig.path}/{task_id}"),
        ("DELETE", f"{rig.path}/{task_id}"),
        ("GET", rig.path),
        ("POST", rig.path),
    ):
        body = {"json": {"to": TO}} if method == "POST" else {}
        answer = await rig.api.request(method, path, headers=RIVAL, **body)
        assert answer.status == 404, (method, path)
    listed = await rig.api.get(f"{rig.path}?status=queued")
    assert listed.status == 200
    listed = await rig.api.get(rig.path)
    assert ([task["id"] for task in listed.body["data"]], listed.body["total"]) == ([task_id], 1)
    other = await make_agent(rig.own)
    assert (await rig.api.get(f"/v1/agents/{other.id}/tasks/{task_id}")).status == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"to": "5551230077"},
        {"from": "x"},
        {"retry": {"maxAttempts": 0}},
        {"retry": {"maxAttempts": 11}},
        {"retry": {"delaySeconds": 1}},
        {"retry": {"on": ["completed"]}},
        {"retry": {"on": []}},
        {"retry": {"until": "2020-01-01T00:00:00Z"}},
        {"retry": {"until": "2030-01-01T00:00:00"}},
        {"goal": ""},
        {"metadata": {"x": "y" * 20_000}},
        {"surprise": 1},
    ],
)
async def test_requests_that_are_refused(rig: TaskRig, fields: dict[str, Any]) -> None:
    answer = await rig.make(**fields)
    assert (answer.status, answer.body["error"]["code"]) == (422, "VALIDATION_ERROR")
    assert (await rig.api.get(rig.path)).body["total"] == 0


async def test_goal_and_instance_fill_the_agents_texts(tmp_path: Path) -> None:
    words = {"begin_message": "Hello {{name}}, {{goal}} for {{instanceId}}?"}
    async with task_rig(tmp_path, words) as rig:
        rig.twilio.callee(TO, Busy())
        task_id = await rig.made(
            goal="a table", instanceId="inst_1", variables={"name": "Ann", "goal": "nothing"}
        )
        task = await rig.status(task_id, "failed")
        found = await rig.own.store.call_and_agent(task["callId"])
        assert found is not None and found[1] is not None
        assert found[1].config.begin_message == "Hello Ann, a table for inst_1?"


async def test_a_person_who_was_reached_is_not_called_again(rig: TaskRig) -> None:
    """The agent failed after the answer."""
    retry = {"maxAttempts": 3, "on": ["failed"]}
    task_id = await rig.made(retry=retry)
    session = await rig.worker.session()
    call_id = (await rig.task(task_id))["callId"]
    await rig.until_event(call_id, "call.answered")
    over = CallEvent(type="call.ended", data=ended("failed", "agent_error"))
    await rig.own.store.append(call_id, [over], "worker")
    await session.close()
    await rig.forward(seconds=0)
    task = await rig.status(task_id, "failed")
    assert (task["failure"], task["attempts"]) == ("agent_error", 1)


async def test_twilio_is_not_asked_about_machines_that_the_agent_does_not_mind(
    rig: TaskRig,
) -> None:
    rig.twilio.callee(TO, Answer(by="machine", detection_ms=0))
    task_id = await rig.made()
    await rig.worker.session()
    (phone,) = rig.twilio.calls.values()
    phone.hang_up()
    assert await phone.ended() == "completed"
    task = await rig.task(task_id)
    assert "call.answered_by" not in await rig.types(task["callId"])
