"""Failures made to happen with a stand-in for Twilio, and their diagnoses."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dev.standins.twilio import Busy
from dev.standins.twilio.callees import RingOut, Unreachable
from gateway.calls.streams.reconciler import StreamReconciler
from gateway.keys import CLOCK, SESSIONS, TIMELINE, call_services
from tests.conftest import Gateway
from tests.support.clock import Clock
from tests.support.diagnosis import diagnosis_of
from tests.support.task_rig import TO, task_rig
from tests.support.twilio_calls import CONNECTED, StreamRig, Twiml, start, stream_rig

pytestmark = pytest.mark.store

MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("callee", "code"),
    [(Busy(), "callee_busy"), (RingOut(), "no_answer"), (Unreachable(), None)],
)
async def test_a_phone_that_twilio_does_not_reach(
    tmp_path: Path, callee: Any, code: str | None
) -> None:
    async with task_rig(tmp_path) as rig:
        rig.twilio.callee(TO, callee)
        task = await rig.status(await rig.made(), "failed")
        found = await diagnosis_of(rig.own.http, task["callId"])
    assert found["code"] == code
    assert found["verdict"] == ("fault" if code else "unknown"), "Twilio does not say why"


async def test_a_call_that_twilio_refuses(tmp_path: Path) -> None:
    async with task_rig(tmp_path) as rig:
        rig.twilio.fail(r"POST .*/Calls\.json", status=400, code=21215)
        task = await rig.status(await rig.made(), "failed")
        found = await diagnosis_of(rig.own.http, task["callId"])
    assert found["code"] == "twilio_refused" and "21215" in found["cause"]


async def opened(rig: StreamRig) -> tuple[str, Twiml]:
    answer = await rig.create(await rig.agent())
    return answer["sessionId"], Twiml.of(answer["twiml"])


async def reconcile(rig: StreamRig) -> None:
    app = rig.own.app
    await StreamReconciler(
        store=rig.own.store,
        sessions=app[SESSIONS],
        workers=call_services(app).stream_workers,
        timeline=app[TIMELINE],
        lost=call_services(app).recovery.lost,
        comes_within_s=10,
        clock=app[CLOCK],
        second_look_s=0,
    ).round()


async def test_a_stream_that_never_comes(tmp_path: Path) -> None:
    clock = Clock()
    async with stream_rig(tmp_path, clock) as rig:
        call_id, _ = await opened(rig)
        clock.forward(2 * MINUTE)
        await reconcile(rig)
        found = await diagnosis_of(rig.own.http, call_id)
    assert found["code"] == "stream_never_connected" and found["unknown"]


async def test_a_stream_worker_that_is_killed(tmp_path: Path) -> None:
    clock = Clock()
    async with stream_rig(tmp_path, clock) as rig:
        call_id, twiml = await opened(rig)
        async with rig.stream(CONNECTED, start(twiml.token)) as socket:
            await rig.worker_session(call_id)
            await rig.worker.stop()
            await socket.close(code=4999)
        clock.forward(2 * MINUTE)
        await reconcile(rig)
        found = await diagnosis_of(rig.own.http, call_id)
    assert found["code"] == "agent_lost"


async def test_no_stream_worker_is_free(tmp_path: Path) -> None:
    async with stream_rig(tmp_path, Clock()) as rig:
        agent = await rig.agent()
        await rig.worker.beat(rig.own, draining=True)
        api = Gateway(rig.own.http)
        refused = await api.post(f"/v1/agents/{agent.id}/session", json={})
        assert refused.status == 503, refused.body
        (call,) = (await api.get("/v1/calls?limit=1")).body["data"]
        assert (await diagnosis_of(rig.own.http, call["id"]))["code"] == "no_stream_worker"
