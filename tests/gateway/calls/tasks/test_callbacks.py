"""Twilio's requests about a task's call: signed, forward only, once; and hostile ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from twilio.request_validator import RequestValidator  # type: ignore[import-untyped]

from dev.standins.twilio import Answer
from tests.conftest import RIVAL
from tests.support.numbers import make_agent, make_number
from tests.support.task_rig import ACCOUNT, TO, TWILIO, TaskRig, task_rig

pytestmark = [pytest.mark.store, pytest.mark.attack]

OTHER = "CA" + "f" * 32


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[TaskRig]:
    async with task_rig(tmp_path) as rig:
        rig.twilio.callee(TO, Answer(after_ms=None))
        yield rig


@pytest.fixture
async def task(rig: TaskRig) -> Any:
    """A task whose call rings."""
    task_id = await rig.made()
    await (await rig.placed()).reached("ringing")
    task = await rig.task(task_id)
    await rig.until_event(task["callId"], "call.ringing")
    return task


def form(sid: str, status: str, sequence: int, **more: str) -> dict[str, str]:
    return {
        "AccountSid": ACCOUNT,
        "CallSid": sid,
        "CallStatus": status,
        "SequenceNumber": str(sequence),
        **more,
    }


def test_the_signature_is_twilios() -> None:
    """The example of Twilio's documentation."""
    values = {
        "CallSid": "CA1234567890ABCDE",
        "Caller": "+14158675309",
        "Digits": "1234",
        "From": "+14158675309",
        "To": "+18005551212",
    }
    url = "https://mycompany.com/myapp.php?foo=1&bar=2"
    validator = RequestValidator("12345")
    assert validator.validate(url, values, "RSOYDt4T1cUTdK1PDd93/VVr8B8=")
    assert not validator.validate(url, {**values, "Digits": "1235"}, "RSOYDt4T1cUTdK1PDd93/VVr8B8=")


async def test_only_the_calls_account_is_believed(rig: TaskRig, task: Any) -> None:
    sid = (await rig.placed()).sid
    path, good = rig.callback(task), form(sid, "busy", 9)
    signed = rig.signed(path, good)
    before = await rig.types(task["callId"])
    elsewhere = rig.callback({**task, "id": "task_" + "0" * 24})
    attempts: list[tuple[str, dict[str, str], dict[str, str]]] = [
        (path, good, {}),
        (path, good, {"X-Twilio-Signature": ""}),
        (path, good, {"X-Twilio-Signature": "é" * 28}),
        (path, good, rig.signed(path, good, token="another-token")),
        (path, {**good, "CallStatus": "completed"}, signed),
        (path, {**good, "Extra": "1"}, signed),
        (f"{path}&x=1", good, signed),
        (path.replace("/status", "/connect"), good, signed),
        (elsewhere, good, rig.signed(elsewhere, good)),
        (path.partition("?")[0], good, rig.signed(path.partition("?")[0], good)),
    ]
    answers = [await rig.tell(*attempt) for attempt in attempts]
    assert {status for status, _ in answers} == {403}
    assert len({text for _, text in answers}) == 1, "they say which part was wrong"
    assert await rig.types(task["callId"]) == before


async def test_a_tenant_cannot_speak_for_anothers_call(rig: TaskRig, task: Any) -> None:
    """The rival's requests are signed, with the rival's own token."""
    account = {**TWILIO, "accountSid": "AC" + "2" * 32, "authToken": "rivals-token"}
    answer = await rig.api.post("/api/v1/credentials", json=account, headers=RIVAL)
    credential = answer.body["data"]["id"]
    agent = await make_agent(rig.own, "rival")
    await make_number(rig.own, "rival", agent, provider="twilio", credential_id=credential)
    path = f"/v1/agents/{agent.id}/tasks"
    made = await rig.api.post(path, json={"to": TO}, headers=RIVAL)
    assert made.status == 202, made.body
    sid = (await rig.placed()).sid
    before = await rig.types(task["callId"])
    for claimed in (made.body, task):
        for what in ("status", "connect"):
            path = rig.callback(claimed, what, task["callId"])
            values = {**form(sid, "completed", 9), "AccountSid": account["accountSid"]}
            headers = rig.signed(path, values, token="rivals-token")
            assert (await rig.tell(path, values, headers))[0] == 403
    assert await rig.types(task["callId"]) == before


async def test_repeated_and_late_callbacks_change_nothing(rig: TaskRig, task: Any) -> None:
    sid, path = (await rig.placed()).sid, rig.callback(task)
    for sequence, status in ((1, "ringing"), (0, "initiated"), (1, "completed")):
        assert (await rig.tell(path, form(sid, status, sequence)))[0] == 204
    assert await rig.types(task["callId"]) == ["call.queued", "call.dialing", "call.ringing"]
    verdict = form(sid, "busy", 3, SipResponseCode="486")
    told = await asyncio.gather(*(rig.tell(path, verdict) for _ in range(20)))
    assert {status for status, _ in told} == {204}
    assert await rig.tell(path, form(sid, "in-progress", 2)) == (204, "")
    assert (await rig.types(task["callId"])).count("call.ended") == 1
    assert "call.answered" not in await rig.types(task["callId"])
    call = (await rig.api.get(f"/v1/calls/{task['callId']}")).body
    assert (call["status"], call["sipStatusCode"]) == ("busy", 486)


@pytest.mark.parametrize(
    "values",
    [
        {"CallStatus": "busy"},  # no number
        {"CallStatus": "busy", "SequenceNumber": "-1"},
        {"CallStatus": "busy", "SequenceNumber": "٣"},
        {"CallStatus": "busy", "SequenceNumber": "9" * 40},
        {"CallStatus": "exploded", "SequenceNumber": "7"},
        {"SequenceNumber": "8"},
        {"CallStatus": "busy", "SequenceNumber": "9", "CallSid": OTHER},
    ],
)
async def test_what_makes_no_sense_is_ignored(
    rig: TaskRig, task: Any, values: dict[str, str]
) -> None:
    path = rig.callback(task)
    values = {"AccountSid": ACCOUNT, "CallSid": (await rig.placed()).sid, **values}
    assert (await rig.tell(path, values))[0] == 204
    assert await rig.types(task["callId"]) == ["call.queued", "call.dialing", "call.ringing"]


async def test_the_first_callback_tells_the_calls_id(rig: TaskRig) -> None:
    """Twilio has placed the call, but its answer was lost."""
    rig.twilio.fail(r"POST .*/Calls\.json", late=True, status=503, times=1)
    task_id = await rig.made()
    task = await rig.until(task_id, lambda task: task["callId"])
    await rig.until_event(task["callId"], "call.ringing")
    (phone,) = rig.twilio.calls.values()
    assert (await rig.tell(rig.callback(task), form(OTHER, "busy", 9)))[0] == 204
    assert (await rig.task(task_id))["status"] == "in-progress"
    phone.hang_up()
    assert (await rig.status(task_id, "canceled"))["attempts"] == 1
    assert len(rig.twilio.calls) == 1


async def test_who_answered_is_on_the_record(tmp_path: Path) -> None:
    async with task_rig(tmp_path, {"voicemail_message": "Call us back."}) as rig:
        rig.twilio.callee(TO, Answer(after_ms=None))
        task_id = await rig.made()
        phone = await rig.placed()
        task = await rig.until(task_id, lambda task: task["callId"])
        values = form(phone.sid, "in-progress", 0, AnsweredBy="machine_start")
        del values["SequenceNumber"]
        values["MachineDetectionDuration"] = "3200"
        for _ in range(2):
            assert (await rig.tell(rig.callback(task), values))[0] == 204
        events = await rig.events(task["callId"])
        (told,) = [event for event in events if event.type == "call.answered_by"]
        assert told.data == {"answeredBy": "machine_start", "afterMs": 3200}
        assert "call.answered" not in {event.type for event in events}
