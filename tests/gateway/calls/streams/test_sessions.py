"""How sessions go on and end: streams that come back, workers that die, sockets that never came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from core.events import ended
from core.models import CallEvent
from gateway.calls.streams.reconciler import StreamReconciler
from gateway.keys import CLOCK, SESSIONS, TIMELINE, call_services
from gateway.store.database import Principal, Scope
from tests.gateway.calls.test_reconciler import round_of
from tests.support.clock import Clock
from tests.support.livekit_stub import LiveKitStub, running_with
from tests.support.stream_worker import stream_worker
from tests.support.twilio_calls import (
    CONNECTED,
    StreamRig,
    Twiml,
    close_code,
    form,
    start,
    stream_rig,
)

pytestmark = pytest.mark.store

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
SETTLED = timedelta(seconds=25)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def rig(tmp_path: Path, clock: Clock) -> AsyncIterator[StreamRig]:
    async with stream_rig(tmp_path, clock) as rig:
        # No test waits two seconds for a worker's last events.
        call_services(rig.own.app).stream_sessions._news_within_s = 0.05
        yield rig


async def opened(rig: StreamRig) -> tuple[str, Twiml]:
    answer = await rig.create(await rig.agent())
    return answer["sessionId"], Twiml.of(answer["twiml"])


async def over(rig: StreamRig, call_id: str) -> None:
    data = ended("completed", "user_hangup")
    await rig.own.app[TIMELINE].append(
        call_id,
        [CallEvent(type="call.answered"), CallEvent(type="call.ended", data=data)],
        "worker",
    )


class TestResume:
    async def ask(self, rig: StreamRig, twiml: Twiml) -> Twiml:
        status, text = await rig.post(twiml.resume or "", form())
        assert status == 200, text
        return Twiml.of(text)

    async def test_a_lost_stream_comes_back_to_its_worker(self, rig: StreamRig) -> None:
        call_id, twiml = await opened(rig)
        async with rig.stream(CONNECTED, start(twiml.token)) as socket:
            session = await rig.worker_session(call_id)
            await socket.close(code=4999)
        again = await self.ask(rig, twiml)
        await rig.worker.beat(rig.own, draining=True)  # it still takes its own sessions
        async with rig.stream(CONNECTED, start(again.token)) as socket:
            await rig.worker_session(call_id, sockets=2)
            assert [attach["resume"] for attach in session.attaches] == [False, True]
            await session.send(b"welcome back")
            assert await socket.receive_str() == "welcome back"

    async def test_a_stream_that_never_came(self, rig: StreamRig) -> None:
        call_id, twiml = await opened(rig)
        again = await self.ask(rig, twiml)
        async with rig.stream(CONNECTED, start(again.token)):
            session = await rig.worker_session(call_id)
            assert [attach["resume"] for attach in session.attaches] == [False]

    async def test_after_the_end_twilio_hangs_up(self, rig: StreamRig, clock: Clock) -> None:
        call_id, twiml = await opened(rig)
        await over(rig, call_id)
        assert (await self.ask(rig, twiml)).verbs == ["Hangup"]
        clock.forward(HOUR + MINUTE)
        await rig.own.app[SESSIONS].sweep()
        assert await rig.own.app[SESSIONS].find(call_id) is None
        assert (await self.ask(rig, twiml)).verbs == ["Hangup"]

    async def test_a_call_that_no_agent_took_over(self, rig: StreamRig) -> None:
        call_services(rig.own.app).stream_sessions._agents._within_s = 0.3
        call_id, twiml = await opened(rig)
        async with rig.stream(CONNECTED, start(twiml.token)) as socket:
            await rig.worker_session(call_id)
            await rig.worker.stop()
            assert await close_code(socket) == 4404
        assert (await self.ask(rig, twiml)).verbs == ["Say", "Hangup"]
        assert await rig.verdict(call_id) == ("failed", "agent_error")

    async def test_its_worker_is_gone_when_it_comes_back(self, rig: StreamRig) -> None:
        call_id, twiml = await opened(rig)
        async with rig.stream(CONNECTED, start(twiml.token)) as socket:
            await rig.worker_session(call_id)
            await socket.close(code=4999)
        await rig.worker.stop()
        async with stream_worker(rig.own) as other:
            again = await self.ask(rig, twiml)
            async with rig.stream(CONNECTED, start(again.token)):
                (attach,) = (await other.session()).attaches
        assert (attach["epoch"], attach["resume"], attach["moved"]) == (1, False, False)

    async def test_the_workers_last_events_are_waited_for(self, rig: StreamRig) -> None:
        """It has closed the stream, and its report of the end comes after Twilio's request."""
        call_services(rig.own.app).stream_sessions._news_within_s = 10
        call_id, twiml = await opened(rig)
        async with rig.stream(CONNECTED, start(twiml.token)) as socket:
            session = await rig.worker_session(call_id)
            await session.close(1000)
            assert await close_code(socket) == 1000
            del rig.worker.sessions[call_id]
            asking = asyncio.create_task(self.ask(rig, twiml))
            async with asyncio.timeout(10):
                while rig.own.app[TIMELINE].listeners(call_id) == 0:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await over(rig, call_id)
            assert (await asking).verbs == ["Hangup"]
        assert await rig.verdict(call_id) == ("completed", "user_hangup")


class TestNobodyComes:
    async def test_an_expired_session_is_canceled(self, rig: StreamRig, clock: Clock) -> None:
        streams = call_services(rig.own.app).stream_sessions
        call_id, twiml = await opened(rig)
        clock.forward(MINUTE)
        await streams._follow(call_id, clock() - MINUTE)
        assert await rig.verdict(call_id) == ("canceled", "canceled")
        events = await rig.own.store.events(call_id, types=["call.ended"])
        assert [event.data["note"] for event in events] == ["nobody came"]
        _, text = await rig.post(twiml.resume or "", form())
        assert Twiml.of(text).verbs == ["Hangup"]

    async def test_one_whose_socket_came_is_left_alone(self, rig: StreamRig, clock: Clock) -> None:
        streams = call_services(rig.own.app).stream_sessions
        call_id, twiml = await opened(rig)
        async with rig.stream(CONNECTED, start(twiml.token)):
            await rig.worker_session(call_id)
            clock.forward(HOUR)
            await streams._follow(call_id, clock() - MINUTE)
            assert (await rig.record(call_id)).status == "queued"


class TestReconciler:
    @staticmethod
    async def round(rig: StreamRig, second_look_s: float = 0) -> int:
        app = rig.own.app
        return await StreamReconciler(
            store=rig.own.store,
            sessions=app[SESSIONS],
            workers=call_services(app).stream_workers,
            timeline=app[TIMELINE],
            lost=call_services(app).recovery.lost,
            comes_within_s=10,
            clock=app[CLOCK],
            second_look_s=second_look_s,
        ).round()

    async def test_nobody_came_and_nobody_followed(self, rig: StreamRig, clock: Clock) -> None:
        call_id, _ = await opened(rig)
        clock.forward(MINUTE)
        assert await self.round(rig) == 0
        clock.forward(MINUTE)
        assert await self.round(rig) == 1
        assert await rig.verdict(call_id) == ("canceled", "canceled")
        assert await self.round(rig) == 0

    async def test_a_gateway_that_died_before_a_worker_had_the_client(
        self, rig: StreamRig, clock: Clock
    ) -> None:
        """The client's token for coming back, which is valid for a day, was made by then."""
        agent = await rig.agent()
        sessions = call_services(rig.own.app).stream_sessions
        call, _ = await sessions.open(
            Principal(None), agent, kind="socket", direction="web", metadata={}, record=False
        )
        await sessions.renew(call, "socket", ttl=25 * HOUR)
        clock.forward(2 * MINUTE)
        assert await self.round(rig) == 0
        clock.forward(2 * MINUTE)
        assert await self.round(rig) == 1
        assert await rig.verdict(call.id) == ("canceled", "canceled")

    async def test_a_served_session_is_left_alone(self, rig: StreamRig, clock: Clock) -> None:
        """Even if the gateway has heard no heartbeat: it may have been down itself."""
        call_id, twiml = await opened(rig)
        async with rig.stream(CONNECTED, start(twiml.token)):
            await rig.worker_session(call_id)
            clock.forward(HOUR)
            assert await self.round(rig) == 0

    async def test_a_worker_that_forgot_it(self, rig: StreamRig, clock: Clock) -> None:
        """Its client gets another agent if it comes back; else the call ends."""
        call_id, twiml = await opened(rig)
        async with rig.stream(CONNECTED, start(twiml.token)) as socket:
            await rig.worker_session(call_id)
            await socket.close(code=4999)
        del rig.worker.sessions[call_id]
        clock.forward(SETTLED)
        await rig.worker.beat(rig.own)
        assert await self.round(rig) == 0
        assert (await rig.record(call_id)).agent_epoch == 1
        assert await self.round(rig) == 0
        clock.forward(2 * MINUTE)
        await rig.worker.beat(rig.own)
        assert await self.round(rig) == 1
        assert await rig.verdict(call_id) == ("failed", "agent_error")

    async def test_a_worker_that_is_gone(self, rig: StreamRig, clock: Clock) -> None:
        call_id, twiml = await opened(rig)
        async with rig.stream(CONNECTED, start(twiml.token)) as socket:
            await rig.worker_session(call_id)
            await socket.close(code=4999)
        await rig.worker.stop()
        clock.forward(SETTLED)
        await rig.worker.beat(rig.own)
        assert await self.round(rig) == 0, "it may be unreachable for this gateway only"
        assert (await rig.record(call_id)).agent_epoch == 0
        clock.forward(SETTLED)
        assert await self.round(rig) == 0
        assert (await rig.record(call_id)).agent_epoch == 1
        clock.forward(2 * MINUTE)
        assert await self.round(rig) == 1
        assert await rig.verdict(call_id) == ("failed", "agent_error")

    async def test_rooms_are_not_asked_for_it(self, tmp_path: Path) -> None:
        livekit = LiveKitStub()
        async with running_with(livekit, tmp_path) as gateway:
            queued = CallEvent(type="call.queued", at=gateway.clock() - HOUR)
            call = await gateway.call(type="stream", direction="inbound", queued=queued)
            assert await round_of(gateway) == 0
            kept = await gateway.store.call(Scope(None), call.id)
            assert kept is not None and kept.status == "queued"
