"""POST /v1/calls/{id}/recording/pause, resume and mask: who may, and when they are answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from livekit.protocol.room import SendDataRequest

from core.events import ended
from core.models import CallEvent, rfc3339
from core.recordings.command import COMMAND_TOPIC
from core.tokens import InvalidToken, TokenIssuer
from gateway.keys import TIMELINE, call_services
from gateway.store.call_status import Call
from tests.conftest import ACME, RIVAL
from tests.support.inprocess import SECRET, Running, running, settings_in
from tests.support.livekit_stub import LiveKitStub, running_with
from tests.support.twilio_calls import CONNECTED, StreamRig, Twiml, start, stream_rig

pytestmark = pytest.mark.store

UNTIL = datetime(2026, 1, 31, 12, tzinfo=UTC)
DONE = {"pause": ("paused", "paused"), "resume": ("resumed", "on"), "mask": ("masked", "masked")}


class Worker:
    """A worker of calls in rooms, at ``gateway``: it confirms the commands that it gets."""

    def __init__(self, gateway: Running, livekit: LiveKitStub) -> None:
        self.gateway = gateway
        self.commands: list[dict[str, Any]] = []
        self.told = asyncio.Event()
        self.deaf = False
        self._tokens = TokenIssuer(SECRET)
        self._tasks: set[asyncio.Task[Any]] = set()
        livekit.on_sent = self._sent

    def _sent(self, packet: SendDataRequest) -> None:
        (own, _) = packet.destination_identities
        call_id = own.removeprefix("agent-")
        assert packet.topic == COMMAND_TOPIC
        self.obey(call_id, self._tokens.command(packet.data.decode(), call_id))

    def obey(self, call_id: str, command: dict[str, Any]) -> None:
        self.commands.append(command)
        self.told.set()
        if not self.deaf:
            self._tasks.add(asyncio.create_task(self._confirm(call_id, command)))

    async def _confirm(self, call_id: str, command: dict[str, Any]) -> None:
        done, state = DONE[command["action"]]
        data = {"by": "api", "command": command["id"], "recording": state}
        if state == "masked":
            data["until"] = rfc3339(UNTIL)
        event = CallEvent(type=f"recording.{done}", data=data)
        await self.gateway.app[TIMELINE].append(call_id, [event], "worker")


@pytest.fixture
def livekit() -> LiveKitStub:
    return LiveKitStub()


@pytest.fixture
async def gateway(tmp_path: Path, livekit: LiveKitStub) -> AsyncIterator[Running]:
    async with running_with(livekit, tmp_path) as started:
        yield started


@pytest.fixture
def worker(gateway: Running, livekit: LiveKitStub) -> Worker:
    return Worker(gateway, livekit)


async def tell(gateway: Running, call: Call, *types: str, **data: Any) -> None:
    events = [CallEvent(type=type, data=data) for type in types]
    await gateway.app[TIMELINE].append(call.id, events, "worker")


async def answered(gateway: Running, **changes: Any) -> Call:
    call = await gateway.call(**changes)
    await tell(gateway, call, "agent.joined", "call.answered")
    return call


async def ask(
    gateway: Running,
    call: Call | str,
    action: str,
    body: Any = None,
    headers: Mapping[str, str] = ACME,
) -> tuple[int, Any]:
    call_id = call if isinstance(call, str) else call.id
    path = f"/v1/calls/{call_id}/recording/{action}"
    async with gateway.http.post(path, json=body, headers=headers) as response:
        return response.status, await response.json()


async def test_each_is_answered_when_the_worker_has_done_it(
    gateway: Running, worker: Worker
) -> None:
    call = await answered(gateway)
    on = {"recording": "on", "until": None}
    assert await ask(gateway, call, "pause") == (200, {"recording": "paused", "until": None})
    assert await ask(gateway, call, "pause") == (200, {"recording": "paused", "until": None})
    assert await ask(gateway, call, "resume") == (200, on)
    masked = {"recording": "masked", "until": rfc3339(UNTIL)}
    assert await ask(gateway, call, "mask", {"seconds": 20}) == (200, masked)
    told = [(command["action"], command["seconds"]) for command in worker.commands]
    assert told == [("pause", None), ("pause", None), ("resume", None), ("mask", 20)]
    assert len({command["id"] for command in worker.commands}) == 4


async def test_in_a_room_only_the_agent_of_the_call_is_told(
    gateway: Running, worker: Worker, livekit: LiveKitStub
) -> None:
    call = await answered(gateway, direction="inbound")
    assert (await ask(gateway, call, "pause"))[0] == 200
    (packet,) = livekit.sent
    assert packet.room == call.room_name
    told = set(packet.destination_identities)
    assert told == {f"agent-{call.id}", f"agent-{call.room_name}"}
    with pytest.raises(InvalidToken):
        TokenIssuer(SECRET).command(packet.data.decode(), "call_of_somebody_else")
    with pytest.raises(InvalidToken):
        TokenIssuer("another secret of more than 32 bytes").command(packet.data.decode(), call.id)


@pytest.mark.parametrize("action", ["pause", "resume", "mask"])
async def test_another_tenants_call_does_not_exist(
    gateway: Running, worker: Worker, action: str
) -> None:
    call = await answered(gateway)
    body = {"seconds": 5}
    for found in (
        await ask(gateway, call, action, body, RIVAL),
        await ask(gateway, "x", action, body),
    ):
        assert (found[0], found[1]["error"]["code"]) == (404, "CALL_NOT_FOUND")
    assert worker.commands == []


@pytest.mark.parametrize(
    "body", [{}, {"seconds": 0}, {"seconds": 301}, {"seconds": "5"}, {"seconds": 5, "x": 1}]
)
async def test_a_mask_has_a_bounded_length(gateway: Running, worker: Worker, body: Any) -> None:
    call = await answered(gateway)
    status, _ = await ask(gateway, call, "mask", body)
    assert (status, worker.commands) == (422, [])


async def test_before_the_answer_and_after_the_end(gateway: Running, worker: Worker) -> None:
    call = await gateway.call()
    status, body = await ask(gateway, call, "pause")
    assert (status, body["error"]["code"]) == (409, "CALL_NOT_ANSWERED")
    await tell(gateway, call, "call.answered")
    await tell(gateway, call, "call.ended", **ended("completed", "user_hangup"))
    status, body = await ask(gateway, call, "pause")
    assert (status, body["error"]["code"]) == (409, "CALL_ENDED")
    assert worker.commands == []


async def test_after_the_agent_has_left(gateway: Running, worker: Worker) -> None:
    call = await answered(gateway)
    await tell(gateway, call, "agent.left")
    status, body = await ask(gateway, call, "pause")
    assert (status, body["error"]["code"]) == (409, "AGENT_LEFT")
    assert worker.commands == []


async def test_a_call_that_ends_meanwhile(gateway: Running, worker: Worker) -> None:
    call = await answered(gateway)
    worker.deaf = True
    asking = asyncio.create_task(ask(gateway, call, "pause"))
    async with asyncio.timeout(5):
        await worker.told.wait()
    await tell(gateway, call, "call.ended", **ended("completed", "user_hangup"))
    status, body = await asking
    assert (status, body["error"]["code"]) == (409, "CALL_ENDED")


async def test_a_worker_that_does_not_confirm(gateway: Running, worker: Worker) -> None:
    call = await answered(gateway)
    control = call_services(gateway.app).recording_control
    control._confirmed_within_s = 0.05
    worker.deaf = True
    status, body = await ask(gateway, call, "pause")
    assert (status, body["error"]["code"]) == (503, "AGENT_UNAVAILABLE")
    worker.deaf, control._confirmed_within_s = False, 3.0
    assert (await ask(gateway, call, "pause"))[0] == 200


async def test_livekit_cannot_be_reached(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path)) as gateway:
        call = await answered(gateway)
        status, body = await ask(gateway, call, "pause")
        assert (status, body["error"]["code"]) == (503, "LIVEKIT_UNAVAILABLE")


async def test_a_repeat_with_its_key_is_not_passed_on(gateway: Running, worker: Worker) -> None:
    call = await answered(gateway)
    headers = {**ACME, "Idempotency-Key": "one"}
    first = await ask(gateway, call, "pause", headers=headers)
    assert await ask(gateway, call, "pause", headers=headers) == first
    assert len(worker.commands) == 1


class TestStream:
    @pytest.fixture
    async def rig(self, tmp_path: Path) -> AsyncIterator[StreamRig]:
        async with stream_rig(tmp_path) as rig:
            yield rig

    async def test_its_worker_is_told_by_whichever_gateway_is_asked(
        self, rig: StreamRig, tmp_path: Path
    ) -> None:
        answer = await rig.create(await rig.agent())
        call_id, twiml = answer["sessionId"], Twiml.of(answer["twiml"])
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(rig.stream(CONNECTED, start(twiml.token)))
            await rig.worker_session(call_id)
            await rig.own.app[TIMELINE].append(call_id, [CallEvent(type="call.answered")], "worker")
            worker = Worker(rig.own, LiveKitStub())
            rig.worker.on_command = worker.obey
            status, body = await ask(rig.own, call_id, "mask", {"seconds": 9})
            assert (status, body["recording"]) == (200, "masked")
            other = await stack.enter_async_context(running(settings_in(tmp_path)))
            status, body = await ask(other, call_id, "resume")
            assert (status, body["recording"]) == (200, "on")
            assert [one["action"] for one in rig.worker.commands] == ["mask", "resume"]
            rig.worker.sessions.pop(call_id).drop()
            status, body = await ask(rig.own, call_id, "pause")
            assert (status, body["error"]["code"]) == (503, "AGENT_UNAVAILABLE")
