"""A stream worker's endpoints: whom it takes, whom it refuses, and how a session ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from core.models import AgentConfig, new_id
from core.streams.messages import LEAVES, SocketAttach, TwilioAttach
from core.tokens import Audience, TokenIssuer
from tests.support.stream_rig import StreamWorker
from tests.support.worker_gateway import KeptCall
from tests.worker.streams.hostile import not_objects, replaced
from tests.worker.test_call import CONTROL
from worker.streams import server

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]

QUIET = AgentConfig(name="Quiet", voice_mode="hosted")
GRACE_S = 1.0
CAPACITY = 2
REPLACED, GONE, PROTOCOL_ERROR, TOO_BIG, TRY_AGAIN_LATER = 4409, 4404, 1002, 1009, 1013


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def worker() -> AsyncIterator[StreamWorker]:
    control = CONTROL.model_copy(deep=True)
    async with StreamWorker.run(control, grace_s=GRACE_S, streams_max_sessions=CAPACITY) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session", autouse=True)
async def no_session_left(worker: StreamWorker) -> AsyncIterator[None]:
    yield
    await emptied(worker)


class ExpiredTokens(TokenIssuer):
    def _sign(self, audience: Audience, subject: str, ttl: timedelta, **more: Any) -> str:
        return super()._sign(audience, subject, -timedelta(seconds=1))


def attach(worker: StreamWorker, call_id: str, **changes: Any) -> SocketAttach:
    token = worker.tokens.for_call(call_id)
    return SocketAttach(token=token, resume_token="for-the-client", **changes)


async def refused(worker: StreamWorker, call_id: str, **options: str) -> int:
    """Return the status with which the worker refuses to upgrade."""
    with pytest.raises(aiohttp.WSServerHandshakeError) as error:
        await worker.connect(call_id, None, **options)
    return error.value.status


async def closed(socket: aiohttp.ClientWebSocketResponse, within_s: float = 10) -> int | None:
    """Return the code with which the worker closes the socket."""
    async with asyncio.timeout(within_s):
        async for _ in socket:
            pass
    return socket.close_code


async def asked(worker: StreamWorker, method: str, call_id: str, token: str | None = None) -> int:
    """Return the status of a request about the session."""
    token = worker.tokens.for_stream(call_id) if token is None else token
    url = f"{worker.worker_url}/sessions/{call_id}"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with worker.http.request(method, url, headers=headers) as response:
        return response.status


async def outcome(call: KeptCall) -> tuple[str, str, str]:
    await call.event("agent.left")
    (end,) = call.of("call.ended")
    return end.data["status"], end.data["reason"], end.data["cause"]


async def emptied(worker: StreamWorker) -> None:
    """Wait until no session is left."""
    await worker.server.drain(10)
    worker.server.draining = False


@asynccontextmanager
async def sessions(worker: StreamWorker, count: int) -> AsyncIterator[list[KeptCall]]:
    """Have so many sessions."""
    sockets = []
    calls = [await worker.record(QUIET, direction="web") for _ in range(count)]
    for call in calls:
        sockets.append(await worker.connect(call.id, attach(worker, call.id)))
        await sockets[-1].receive()
    try:
        yield calls
    finally:
        for socket in sockets:
            await socket.close()


@pytest.mark.attack
async def test_only_the_gateway_may_ask_and_only_for_the_tokens_session(
    worker: StreamWorker,
) -> None:
    tokens, call_id = worker.tokens, new_id("call")
    wrong = [
        tokens.for_stream(new_id("call")),
        tokens.for_call(call_id),
        tokens.for_worker(call_id),
        TokenIssuer("another secret").for_stream(call_id),
        tokens.for_stream(call_id)[:-4] + "AAAA",
        "x",
    ]
    expired = ExpiredTokens("x")
    expired._key = tokens._key
    for token in [*wrong, expired.for_stream(call_id)]:
        assert await refused(worker, call_id, token=token) == HTTPStatus.UNAUTHORIZED
        for method in ("GET", "DELETE", "POST"):
            assert await asked(worker, method, call_id, token) == HTTPStatus.UNAUTHORIZED
    assert await asked(worker, "GET", call_id, "") == HTTPStatus.UNAUTHORIZED
    assert await asked(worker, "GET", call_id) == HTTPStatus.NOT_FOUND
    assert worker.server.heartbeat().active == 0


async def until_ready(socket: Any) -> None:
    """Wait for ``ready``, which follows what a socket that resumes has missed."""
    while (await socket.receive_json())["type"] != "ready":
        pass


async def test_a_full_worker_takes_no_new_session_but_lets_one_resume(
    worker: StreamWorker,
) -> None:
    async with sessions(worker, CAPACITY) as (call, _):
        assert worker.server.heartbeat().active == CAPACITY
        assert await refused(worker, new_id("call")) == HTTPStatus.SERVICE_UNAVAILABLE
        again = await worker.connect(call.id, attach(worker, call.id, resume=True))
        await until_ready(again)
        await again.close()


async def test_sockets_that_come_at_once_do_not_overfill_it(worker: StreamWorker) -> None:
    async with sessions(worker, CAPACITY - 1):
        call = await worker.record(QUIET)
        socket = await worker.connect(call.id, None)  # holds the last place, without a word
        assert await refused(worker, new_id("call")) == HTTPStatus.SERVICE_UNAVAILABLE
        await socket.send_str(attach(worker, call.id).model_dump_json(by_alias=True))
        assert (await socket.receive_json())["type"] == "ready"
        assert worker.server.heartbeat().active == CAPACITY
        await socket.close()


async def test_a_draining_worker_takes_no_new_session_but_lets_one_resume(
    worker: StreamWorker,
) -> None:
    async with sessions(worker, 1) as (call,):
        late = await worker.connect(new_id("call"), None)
        worker.server.draining = True
        assert await refused(worker, new_id("call")) == HTTPStatus.SERVICE_UNAVAILABLE
        await late.send_str(attach(worker, "x").model_dump_json(by_alias=True))
        assert await closed(late) == LEAVES, "the gateway looks for another worker"
        again = await worker.connect(call.id, attach(worker, call.id, resume=True))
        await until_ready(again)
        await again.close()


async def test_the_newer_of_two_sockets_wins(worker: StreamWorker) -> None:
    call = await worker.record(QUIET, direction="web")
    older = await worker.connect(call.id, attach(worker, call.id))
    await call.event("call.answered")
    newer = await worker.connect(call.id, attach(worker, call.id, resume=True))
    assert await closed(older) == REPLACED
    await until_ready(newer)
    await asyncio.sleep(GRACE_S + 0.2)  # the older one's end is no loss
    assert await asked(worker, "GET", call.id) == HTTPStatus.OK
    await newer.close()
    assert await outcome(call) == ("completed", "user_hangup", "caller_hung_up")
    assert len(call.of("call.answered")) == 1


async def test_a_session_that_is_gone_is_not_resumed(worker: StreamWorker) -> None:
    call_id = new_id("call")
    assert await refused(worker, call_id, query="?resume=true") == HTTPStatus.NOT_FOUND
    socket = await worker.connect(call_id, attach(worker, call_id, resume=True))
    assert await closed(socket) == GONE
    assert worker.server.heartbeat().active == 0


@pytest.mark.attack
async def test_the_first_message_must_be_an_attach(worker: StreamWorker) -> None:
    call_id = new_id("call")
    valid = TwilioAttach(token="token", stream_sid="MZ1").wire()
    bad = [*not_objects(), *replaced(valid, ("kind",)), *replaced(valid, ("token",))]
    for text in [text for text in bad if '"kind": "twilio"' not in text or "null" in text]:
        socket = await worker.connect(call_id, text)
        assert await closed(socket) == PROTOCOL_ERROR, text
    binary = await worker.connect(call_id, None)
    await binary.send_bytes(attach(worker, call_id).model_dump_json().encode())
    assert await closed(binary) == PROTOCOL_ERROR
    long = await worker.connect(call_id, '{"kind":"' + "x" * 70_000 + '"}')
    assert await closed(long) in {PROTOCOL_ERROR, TOO_BIG}
    assert worker.server.heartbeat().active == 0


async def test_the_first_message_must_come_in_time(
    worker: StreamWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_ATTACH_WITHIN_S", 0.05)
    assert await closed(await worker.connect(new_id("call"), None)) == PROTOCOL_ERROR


async def test_the_api_hangs_up(worker: StreamWorker) -> None:
    async with worker.session(QUIET) as (call, far):
        assert await asked(worker, "DELETE", call.id) == HTTPStatus.NO_CONTENT
        assert await far.closed() == 1000
    assert await outcome(call) == ("completed", "agent_hangup", "removed")
    assert far.events[-1]["type"] == "ended"
    await emptied(worker)
    for method in ("GET", "DELETE"):
        assert await asked(worker, method, call.id) == HTTPStatus.NOT_FOUND


async def test_the_api_commands(worker: StreamWorker) -> None:
    async def command(call_id: str, token: str, body: Any) -> int:
        url = f"{worker.worker_url}/sessions/{call_id}"
        headers = {"Authorization": f"Bearer {token}"}
        async with worker.http.post(url, json=body, headers=headers) as response:
            return response.status

    pause = {"id": "cmd_1", "action": "pause"}
    async with sessions(worker, 1) as (call,):
        await call.event("call.answered")
        token = worker.tokens.for_stream(call.id)
        assert await command(call.id, worker.tokens.for_call(call.id), pause) == 401
        assert await command(call.id, token, {"id": "cmd_1", "action": "record"}) == 400
        assert call.of("recording.paused") == []
        assert await command(call.id, token, pause) == 204
        paused = await call.event("recording.paused")
        assert paused.data == {"by": "api", "command": "cmd_1", "recording": "paused"}
    other = new_id("call")
    assert await command(other, worker.tokens.for_stream(other), pause) == 404


async def test_a_caller_who_hangs_up_before_the_agent_is_there(worker: StreamWorker) -> None:
    for text in ('{"type":"end"}', None):
        call = await worker.record(QUIET, direction="web")
        socket = await worker.connect(call.id, attach(worker, call.id))
        if text is None:
            await socket.close()
        else:
            await socket.send_str(text)
        assert await outcome(call) == ("canceled", "user_hangup", "caller_gave_up")


async def test_a_session_that_the_api_ends_before_the_agent_is_there(worker: StreamWorker) -> None:
    call = await worker.record(QUIET, direction="web")
    socket = await worker.connect(call.id, attach(worker, call.id))
    await socket.receive()
    assert await asked(worker, "DELETE", call.id) == HTTPStatus.NO_CONTENT
    assert await closed(socket) == 1000
    assert await outcome(call) == ("canceled", "canceled", "ring_removed")


async def test_a_socket_that_does_not_come_back(worker: StreamWorker) -> None:
    async with worker.session(QUIET) as (call, far):
        await far.lose()
        assert await asked(worker, "GET", call.id) == HTTPStatus.OK
        assert await outcome(call) == ("failed", "agent_error", "leg_lost")


async def test_a_call_that_is_over_already(worker: StreamWorker) -> None:
    call = await worker.record(QUIET, direction="web")
    await worker.gateway.end(call)
    socket = await worker.connect(call.id, attach(worker, call.id))
    assert await closed(socket) == LEAVES, "the gateway knows how the call has ended"
    await emptied(worker)
    assert call.of("call.ended") == call.of("call.answered") == []


async def test_a_session_whose_brief_is_refused(worker: StreamWorker) -> None:
    call = await worker.record(QUIET, direction="web")
    of_another = attach(worker, new_id("call"))
    socket = await worker.connect(call.id, of_another)
    assert await closed(socket) == 1000
    await emptied(worker)
    assert call.events == []


async def test_health_and_metrics(worker: StreamWorker) -> None:
    async def got(path: str) -> tuple[int, str]:
        async with worker.http.get(worker.worker_url + path) as response:
            return response.status, await response.text()

    assert (await got("/healthz"))[0] == HTTPStatus.OK
    worker.server.known(False)
    assert (await got("/readyz"))[0] == HTTPStatus.SERVICE_UNAVAILABLE
    worker.server.known(True)
    assert (await got("/readyz"))[0] == HTTPStatus.OK
    async with sessions(worker, 1):
        worker.server.draining = True
        status, body = await got("/readyz")
        assert status == HTTPStatus.SERVICE_UNAVAILABLE
        assert '"draining": true, "sessions": 1' in body
        metrics = (await got("/metrics"))[1].splitlines()
        assert "switchroom_stream_sessions 1.0" in metrics
        assert f"switchroom_stream_capacity {CAPACITY:.1f}" in metrics
        outcomes = {line.split()[0] for line in metrics if line.startswith("switchroom_stream_so")}
        for name in ("new", "resumed", "full", "gone", "unauthorized"):
            assert f'switchroom_stream_sockets_total{{outcome="{name}"}}' in outcomes


async def test_a_far_end_that_plays_no_more(worker: StreamWorker) -> None:
    """It does not echo its marks, and sends nothing either: half open, or a slow reader."""
    call = await worker.record(QUIET.model_copy(update={"begin_message": "Hello. " * 5}))
    token = worker.tokens.for_call(call.id)
    socket = await worker.connect(call.id, TwilioAttach(token=token, stream_sid="MZ1"))
    assert await closed(socket) == TRY_AGAIN_LATER
    assert await outcome(call) == ("failed", "agent_error", "leg_lost")
    heard = call.turns[0].response.split()
    assert len(heard) <= 2 and set(heard) <= {"Hello."}, "it was sent 300 ms of five words"
