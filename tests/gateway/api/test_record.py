"""The opt-ins of agent and call on every way in, down to the brief that the worker gets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import WSMsgType

from core.models import Agent, PhoneNumber, new_id
from core.tokens import TokenIssuer
from gateway.calls.dispatcher import brief_of
from gateway.calls.inbound import call_id_of
from gateway.keys import SETTINGS, call_services
from gateway.store.database import Scope
from tests.conftest import ACME
from tests.gateway.calls.test_inbound import Caller
from tests.support.inprocess import SECRET
from tests.support.numbers import dial_nothing, make_agent, make_number
from tests.support.task_rig import ACCOUNT, TO, TaskRig, task_rig

pytestmark = [pytest.mark.unit, pytest.mark.attack, pytest.mark.asyncio(loop_scope="module")]

ISSUER = TokenIssuer(SECRET)
REFUSED = "RECORDING_NOT_ENABLED"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TaskRig]:
    folder = tmp_path_factory.mktemp("gateway")
    with pytest.MonkeyPatch.context() as patch:
        async with task_rig(folder, sip_outbound_address="h", streams_max_sessions=1000) as rig:
            dial_nothing(patch)
            yield rig


Answer = tuple[int, str]
"""The status and the error's code, or an empty one."""
Way = Callable[[TaskRig, Agent, PhoneNumber, dict[str, Any]], Awaitable[Answer]]


async def post(rig: TaskRig, path: str, body: dict[str, Any]) -> Answer:
    await rig.worker.beat(rig.own, capacity=1000, active=0)
    await rig.own.worker(capacity=1000)
    answer = await rig.api.post(path, json=body)
    shapes = (answer.body.get("error"), answer.body.get("meta"), answer.body)
    found = (shape for shape in shapes if isinstance(shape, dict) and "code" in shape)
    return answer.status, next(found, {"code": ""})["code"]


async def calls(rig: TaskRig, agent: Agent, number: PhoneNumber, fields: Any) -> Answer:
    return await post(rig, "/v1/calls", {"agentId": agent.id, "toNumber": TO, **fields})


async def sip_call(rig: TaskRig, agent: Agent, number: PhoneNumber, fields: Any) -> Answer:
    names = {"disableRecording": "disable_recording"}
    body = {
        "room_name": new_id("room"),
        "participant_name": "Ann",
        "participant_identity": "ann",
        "from_phone_number": number.phone_number,
        "to_phone_number": TO,
        "agent": agent.id,
    }
    fields = {names.get(name, name): value for name, value in fields.items()}
    return await post(rig, "/sip/call", {**body, **fields})


async def web(rig: TaskRig, agent: Agent, number: PhoneNumber, fields: Any) -> Answer:
    return await post(rig, "/v1/calls/web", {"agentId": agent.id, **fields})


async def session(rig: TaskRig, agent: Agent, number: PhoneNumber, fields: Any) -> Answer:
    return await post(rig, f"/v1/agents/{agent.id}/session", fields)


async def twilio_session(rig: TaskRig, agent: Agent, number: PhoneNumber, fields: Any) -> Answer:
    body = {"agentId": agent.id, "from": TO, "to": number.phone_number}
    return await post(rig, "/v1/sessions/twilio", {**body, **fields})


async def task(rig: TaskRig, agent: Agent, number: PhoneNumber, fields: Any) -> Answer:
    answer = await post(rig, f"/v1/agents/{agent.id}/tasks", {"to": TO, **fields})
    if answer[0] == 202:
        await rig.eventually(lambda: call_ids(rig, agent))
    return answer


def dispatch(path: str) -> Way:
    async def way(rig: TaskRig, agent: Agent, number: PhoneNumber, fields: Any) -> Answer:
        body = {"agentId": agent.id, "channel": "voice", "fromNumber": number.phone_number}
        return await post(rig, path, {**body, "toNumber": TO, **fields})

    return way


async def socket(rig: TaskRig, agent: Agent, number: PhoneNumber, fields: Any) -> Answer:
    await rig.worker.beat(rig.own, capacity=1000, active=0)
    await rig.own.worker(capacity=1000)
    path = f"/v1/agents/{agent.id}/session"
    async with rig.own.http.ws_connect(path, headers=ACME) as client:
        await client.send_json({"type": "session.update", **fields})
        known = await rig.eventually(lambda: _attached_or_closed(rig, agent, client))
        return known


async def _attached_or_closed(rig: TaskRig, agent: Agent, client: Any) -> Answer | None:
    if any(call_id in rig.worker.sessions for call_id in await call_ids(rig, agent)):
        return 101, ""
    try:
        message = await client.receive(0.02)
    except TimeoutError:
        return None
    assert message.type is WSMsgType.TEXT, message
    return 409, message.json()["code"]


WAYS: dict[str, Way] = {
    "POST /v1/calls": calls,
    "POST /sip/call": sip_call,
    "POST /v1/calls/web": web,
    "POST /v1/agents/{id}/session": session,
    "WS /v1/agents/{id}/session": socket,
    "POST /v1/sessions/twilio": twilio_session,
    "POST /v1/agents/{id}/tasks": task,
    "POST /api/v1/sessions": dispatch("/api/v1/sessions"),
    "POST /api/v1/sessions/dispatch": dispatch("/api/v1/sessions/dispatch"),
}
YES, NO = "recorded", "not recorded"
# What the request says, and the outcome with an agent whose recording is enabled, and disabled.
ASKED: list[tuple[dict[str, Any], str, str]] = [
    ({}, NO, NO),
    ({"record": None, "recording": None, "disableRecording": None}, NO, NO),
    ({"record": False}, NO, NO),
    ({"recording": {}}, NO, NO),
    ({"recording": {"enabled": False}}, NO, NO),
    ({"disableRecording": True}, NO, NO),
    ({"disableRecording": False}, NO, NO),
    ({"record": True}, YES, REFUSED),
    ({"recording": True}, YES, REFUSED),
    ({"recording": {"enabled": True}}, YES, REFUSED),
    ({"record": True, "disableRecording": False}, YES, REFUSED),
    ({"record": True, "disableRecording": True}, NO, NO),
    ({"recording": True, "disableRecording": True}, NO, NO),
    ({"record": False, "recording": True}, NO, NO),
    ({"record": True, "recording": {"enabled": False}}, NO, NO),
]


async def called(rig: TaskRig, *, enabled: bool, **number: Any) -> tuple[Agent, PhoneNumber]:
    agent = await make_agent(rig.own, recording={"enabled": enabled})
    given = await make_number(
        rig.own, agent=agent, provider="twilio", credential_id=rig.number.credential_id, **number
    )
    rig.twilio.give(ACCOUNT, given.phone_number)
    return agent, given


async def call_ids(rig: TaskRig, agent: Agent) -> list[str]:
    found = await rig.api.get(f"/v1/agents/{agent.id}/calls")
    return [call["id"] for call in found.body["data"]]


async def outcome(rig: TaskRig, agent: Agent) -> str:
    """Return whether the agent's only call is recorded, as its worker is told."""
    (call_id,) = await call_ids(rig, agent)
    found = await rig.own.store.call_and_agent(call_id)
    assert found is not None
    call, pinned = found
    assert pinned is not None
    tenant = rig.own.app[SETTINGS].tenant_recordings(call.auth_id)
    brief = brief_of(call, pinned, None, tenant)
    assert (brief.recording is not None) is (call.record and pinned.config.recording.enabled)
    return NO if brief.recording is None else YES


@pytest.mark.parametrize("enabled", [True, False], ids=["enabled", "disabled"])
@pytest.mark.parametrize(("fields", "on", "off"), ASKED, ids=[str(case[0]) for case in ASKED])
@pytest.mark.parametrize("way", WAYS)
async def test_agent_and_call_must_both_ask(
    rig: TaskRig, way: str, fields: dict[str, Any], on: str, off: str, enabled: bool
) -> None:
    agent, number = await called(rig, enabled=enabled)
    status, code = await WAYS[way](rig, agent, number, fields)
    expected = on if enabled else off
    if expected == REFUSED:
        assert (status, code) == (409, REFUSED)
        assert not await call_ids(rig, agent)
    else:
        assert code != REFUSED
        assert await outcome(rig, agent) == expected


HOSTILE: list[tuple[str, Any]] = [
    ("record", 1),
    ("record", "true"),
    ("record", []),
    ("record", {}),
    ("record", 10**30),
    ("record", "x" * 100_000),
    ("recording", 1),
    ("recording", "s3://bucket"),
    ("recording", [{"enabled": True}]),
    ("recording", {"enabled": "no"}),
    ("recording", {"enabled": 1}),
    ("recording", {"Enabled": True}),
    ("recording", {"enabled": True, "channels": 2}),
    ("disableRecording", "true"),
    ("disableRecording", 0),
    ("disableRecording", {"enabled": True}),
    ("disclosure", {"text": "This call is recorded."}),
    ("consent", {"mode": "opt_in"}),
    ("redaction", {"kinds": ["card"]}),
]


@pytest.mark.parametrize(("field", "value"), HOSTILE, ids=[str(case)[:50] for case in HOSTILE])
@pytest.mark.parametrize("way", [way for way in WAYS if way.startswith("POST ")])
async def test_no_request_ignores_a_value_of_another_type(
    rig: TaskRig, way: str, field: str, value: Any
) -> None:
    agent, number = await called(rig, enabled=True)
    answer = await WAYS[way](rig, agent, number, {"record": True, field: value})
    sip = way == "POST /sip/call"
    assert answer == ((400, "INVALID_REQUEST") if sip else (422, "VALIDATION_ERROR"))
    assert not await call_ids(rig, agent)


@pytest.mark.parametrize(
    ("field", "value"),
    # Its other fields are ignored, and a longer message is not read.
    [case for case in HOSTILE if "ecord" in case[0] and len(str(case)) < 1_000],
)
async def test_neither_does_a_socket(rig: TaskRig, field: str, value: Any) -> None:
    agent, number = await called(rig, enabled=True)
    refused = await socket(rig, agent, number, {"record": True, field: value})
    assert refused == (409, "VALIDATION_ERROR")
    assert not await call_ids(rig, agent)


async def test_the_other_spelling_counts_at_sip_call(rig: TaskRig) -> None:
    agent, number = await called(rig, enabled=True)
    body = {
        "room_name": new_id("room"),
        "participant_name": "Ann",
        "participant_identity": "ann",
        "from_phone_number": number.phone_number,
        "to_phone_number": TO,
        "agent": agent.id,
        "record": True,
        "disableRecording": True,
    }
    assert (await post(rig, "/sip/call", body))[0] == 200
    assert await outcome(rig, agent) == NO


async def test_without_an_agent_nobody_records(rig: TaskRig) -> None:
    agent, number = await called(rig, enabled=True)
    refused = await sip_call(rig, agent, number, {"agent": None, "record": True})
    assert refused == (409, REFUSED)


class TestNumbers:
    """A number's opt-in stands, whichever agent it is bound to."""

    @pytest.mark.parametrize("enabled", [True, False], ids=["enabled", "disabled"])
    @pytest.mark.parametrize("record", [True, False])
    async def test_by_sip(self, rig: TaskRig, enabled: bool, record: bool) -> None:
        agent, number = await called(rig, enabled=enabled, record=record)
        caller = Caller(number.id)
        inbound = call_services(rig.own.app).inbound
        call = await inbound.admit(caller.room, caller.participant)
        assert call.id == call_id_of(caller.room)
        assert await outcome(rig, agent) == (YES if enabled and record else NO)

    @pytest.mark.parametrize("enabled", [True, False], ids=["enabled", "disabled"])
    @pytest.mark.parametrize("record", [True, False])
    async def test_by_stream(self, rig: TaskRig, enabled: bool, record: bool) -> None:
        agent, number = await called(rig, enabled=enabled, record=record)
        await rig.worker.beat(rig.own, capacity=1000, active=0)
        form = {"AccountSid": ACCOUNT, "CallSid": f"CA{new_id('x')[2:]}"}
        form |= {"From": TO, "To": number.phone_number}
        status, _ = await rig.tell("/v1/sessions/twilio", form)
        assert status == 200
        assert await outcome(rig, agent) == (YES if enabled and record else NO)

    async def test_a_number_of_nobody(self, rig: TaskRig) -> None:
        """A caller of an unknown number has a record, too; there is nothing to ask for."""
        caller = Caller("num_unknown")
        call = await call_services(rig.own.app).inbound.admit(caller.room, caller.participant)
        assert (call.record, call.status) == (False, "failed")


class TestMinted:
    """A browser has a session's token: it may forbid the recording, and not ask for one."""

    async def minted(self, rig: TaskRig, agent: Agent, **body: Any) -> tuple[str, str]:
        await rig.worker.beat(rig.own, capacity=1000, active=0)
        answer = await rig.api.post(f"/v1/agents/{agent.id}/session", json=body)
        assert answer.status == 201, answer.body
        return answer.body["sessionId"], answer.body["token"]

    @pytest.mark.parametrize(
        ("minted", "said", "expected"),
        [
            (True, {}, YES),
            (True, {"record": True}, YES),
            (True, {"record": False}, NO),
            (True, {"disableRecording": True}, NO),
            (True, {"recording": False, "variables": {"who": "Ann"}}, NO),
            (False, {}, NO),
            (False, {"record": False}, NO),
            (False, {"record": True}, REFUSED),
            (False, {"recording": {"enabled": True}}, REFUSED),
            (False, {"record": True, "disableRecording": True}, NO),
        ],
    )
    async def test_what_its_first_message_says(
        self, rig: TaskRig, minted: bool, said: dict[str, Any], expected: str
    ) -> None:
        agent, _ = await called(rig, enabled=True)
        call_id, token = await self.minted(rig, agent, record=minted)
        path, protocols = f"/v1/agents/{agent.id}/session", ("switchroom", f"token.{token}")
        async with rig.own.http.ws_connect(path, protocols=protocols) as client:
            await client.send_json({"type": "session.update", **said})
            answer = await rig.eventually(lambda: _attached_or_closed(rig, agent, client))
        if expected == REFUSED:
            assert answer == (409, REFUSED)
            call = await rig.own.store.call(Scope(None), call_id)
            assert call is not None and (call.record, call.status) == (False, "canceled")
        else:
            assert answer == (101, "")
            assert await outcome(rig, agent) == expected


async def test_a_task_whose_agent_changes_is_not_dialled_unrecorded(rig: TaskRig) -> None:
    """Its caller relies on the recording, so the task fails, as with a disabled agent."""
    rig.twilio.calls.clear()
    agent, number = await called(rig, enabled=True)
    await rig.worker.beat(rig.own, draining=True)  # the task waits
    path = f"/v1/agents/{agent.id}/tasks"
    made = await rig.api.post(path, json={"to": TO, "record": True})
    assert made.status == 202, made.body
    off = await rig.api.request("PATCH", f"/v1/agents/{agent.id}", json={"recording": False})
    assert off.status == 200, off.body
    await rig.forward(seconds=60)

    async def failed() -> bool:
        task = (await rig.api.get(f"{path}/{made.body['id']}")).body
        return bool(task["status"] == "failed" and task["failure"] == REFUSED)

    await rig.eventually(failed)
    assert not await call_ids(rig, agent)
