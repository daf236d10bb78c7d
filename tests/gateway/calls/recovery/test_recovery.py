"""Reports of lost agents, workers that fall silent, and who is sent for by which gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from livekit.protocol.agent_dispatch import CreateAgentDispatchRequest

from core.events import ended
from core.jobs import JobMetadata, agent_identity
from core.models import CallEvent, Turn, new_id, now
from core.recovery import MOST_LOST
from core.tokens import TokenIssuer
from gateway.calls.inbound import call_id_of
from gateway.calls.timeline import Watch
from gateway.keys import TIMELINE, call_services
from gateway.store.call_status import Call
from gateway.store.database import Scope
from tests.conftest import bearer
from tests.support.inprocess import SECRET, Running
from tests.support.livekit_stub import LiveKitStub, agent, phone, running_with

pytestmark = pytest.mark.store

ISSUER = TokenIssuer(SECRET)
SOON_S = 8.0


@pytest.fixture
def rooms() -> LiveKitStub:
    return LiveKitStub()


@pytest.fixture
async def gateway(tmp_path: Path, rooms: LiveKitStub) -> AsyncIterator[Running]:
    async with running_with(rooms, tmp_path, agent_join_timeout_s=2.5) as gateway:
        yield gateway


@pytest.fixture
async def other(gateway: Running, tmp_path: Path, rooms: LiveKitStub) -> AsyncIterator[Running]:
    """Another gateway on the same database."""
    async with running_with(rooms, tmp_path, agent_join_timeout_s=2.5) as other:
        yield other


async def until(condition: Callable[[], Awaitable[Any]], within_s: float = SOON_S) -> Any:
    async with asyncio.timeout(within_s):
        while not (found := await condition()):  # noqa: ASYNC110 (rooms do not notify)
            await asyncio.sleep(0.02)
    return found


async def post(
    gateway: Running, call_id: str, what: str, body: Any, epoch: int = 0
) -> tuple[int, Any]:
    async with gateway.http.post(
        f"/internal/calls/{call_id}/{what}",
        json=body,
        headers=bearer(ISSUER.for_call(call_id, epoch)),
    ) as answer:
        return answer.status, await answer.json()


async def report(gateway: Running, call: Call, epoch: int = 0, **changes: Any) -> tuple[int, Any]:
    body = {"why": "killed", "seenAt": now().isoformat(), **changes}
    return await post(gateway, call.id, "lost", body, epoch)


async def tell(gateway: Running, call: Call, epoch: int, *events: CallEvent) -> Any:
    body = {"events": [event.wire() for event in events]}
    status, answer = await post(gateway, call.id, "events", body, epoch)
    assert status == 200, answer
    return answer


def joins(epoch: int, worker: str = "wrk_1") -> CallEvent:
    return CallEvent(type="agent.joined", data={"worker": worker, "epoch": epoch})


async def talking(gateway: Running, rooms: LiveKitStub, **changes: Any) -> Call:
    """Return an answered call whose agent is in the room, and at work in ``wrk_1``.

    Another worker has a place.
    """
    await gateway.worker()
    call = await gateway.call(**changes)
    name = call.room_name if call.direction == "inbound" else call.id
    rooms.enter(call.room_name, phone(call.participant_identity), agent(agent_identity(name)))
    answered = CallEvent(type="call.answered")
    await gateway.app[TIMELINE].append(call.id, [joins(0), answered], "worker", epoch=0)
    return call


async def record(gateway: Running, call: Call) -> Call:
    kept = await gateway.store.call(Scope(None), call.id)
    assert kept is not None
    return kept


async def types(gateway: Running, call: Call, *wanted: str) -> list[str]:
    return [event.type for event in await gateway.store.events(call.id, types=wanted)]


async def over(gateway: Running, call: Call) -> dict[str, Any]:
    """Wait until the call has ended; return the facts of its end."""

    async def end() -> Any:
        return await gateway.store.events(call.id, types=["call.ended"])

    (event,) = await until(end)
    data: dict[str, Any] = event.data
    return data


def job(dispatch: CreateAgentDispatchRequest) -> JobMetadata:
    return JobMetadata.model_validate_json(dispatch.metadata)


def hung_up(rooms: LiveKitStub) -> list[tuple[str, str]]:
    """Return who was removed besides lost agents."""
    return [(room, who) for room, who in rooms.removed if not who.startswith("agent-")]


class TestReport:
    async def test_another_agent_is_sent_for(self, gateway: Running, rooms: LiveKitStub) -> None:
        call = await talking(gateway, rooms)
        seen_at = datetime(2026, 1, 31, 12, tzinfo=UTC)
        answer = await report(gateway, call, seenAt=seen_at.isoformat(), detail="signal 9")
        assert answer == (200, {"comes": True})
        (lost,) = await gateway.store.events(call.id, types=["agent.lost"])
        assert lost.source == "gateway"
        assert lost.data == {
            "epoch": 0,
            "why": "killed",
            "seenAt": "2026-01-31T12:00:00.000Z",
            "detail": "signal 9",
        }
        kept = await record(gateway, call)
        assert (kept.agent_epoch, kept.agent_worker) == (1, None)

        async def dispatched() -> Any:
            return rooms.dispatched

        (dispatch,) = await until(dispatched)
        wanted = job(dispatch)
        assert (dispatch.room, wanted.epoch) == (call.room_name, 1)
        assert wanted.identity == agent_identity(call.id)
        assert rooms.removed == [(call.room_name, wanted.identity)]
        assert ISSUER.agent_of(wanted.token) == (call.id, 1)
        await tell(gateway, call, 1, joins(1, "wrk_2"))
        kept = await record(gateway, call)
        assert (kept.agent_epoch, kept.agent_worker, kept.status) == (1, "wrk_2", "in-progress")

    async def test_a_callers_next_agent_has_the_identity_of_the_one_of_its_rule(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        room = new_id("in")
        call = await talking(
            gateway, rooms, id=call_id_of(room), room_name=room, direction="inbound"
        )
        await report(gateway, call)

        async def dispatched() -> Any:
            return rooms.dispatched

        (dispatch,) = await until(dispatched)
        assert job(dispatch).identity == agent_identity(room)

    async def test_of_many_at_once_to_two_gateways_one_counts(
        self, gateway: Running, other: Running, rooms: LiveKitStub
    ) -> None:
        call = await talking(gateway, rooms)
        answers = await asyncio.gather(
            *(report(each, call, why=why) for each in (gateway, other) for why in WHYS)
        )
        assert all(answer == (200, {"comes": True}) for answer in answers)
        await tell(gateway, call, 1, joins(1))
        for each in (gateway, other):
            await settled(each, call)
        assert len(rooms.dispatched) == 1
        assert await types(gateway, call, "agent.lost", "agent.dispatched") == [
            "agent.lost",
            "agent.dispatched",
        ]

    async def test_one_that_comes_late_or_twice_changes_nothing(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        call = await talking(gateway, rooms)
        await report(gateway, call)
        await tell(gateway, call, 1, joins(1, "wrk_2"))
        await settled(gateway, call)
        before = await gateway.store.events(call.id)
        assert await report(gateway, call, why="vanished") == (200, {"comes": True})
        assert await gateway.store.events(call.id) == before
        assert len(rooms.dispatched) == 1
        assert (await record(gateway, call)).agent_worker == "wrk_2"

    @pytest.mark.parametrize("type", ["call.ended", "call.transferred"])
    async def test_without_need_of_an_agent_none_is_sent(
        self, gateway: Running, rooms: LiveKitStub, type: str
    ) -> None:
        """Its worker must not hang up: the phone may be another call's, or with a human."""
        call = await talking(gateway, rooms)
        data = ended("completed", "user_hangup") if type == "call.ended" else {}
        await gateway.store.append(call.id, [CallEvent(type=type, data=data)], "gateway")
        assert await report(gateway, call) == (200, {"comes": True})
        assert await types(gateway, call, "agent.lost") == []
        assert rooms.dispatched == rooms.removed == []

    async def test_what_cannot_be_understood(self, gateway: Running, rooms: LiveKitStub) -> None:
        call = await talking(gateway, rooms)
        bodies: tuple[Any, ...] = (
            {},
            [],
            "lost",
            {"why": "killed"},
            {"why": "bored", "seenAt": "2026-01-31T12:00:00Z"},
            {"why": "killed", "seenAt": "yesterday"},
            {"why": "killed", "seenAt": "2026-01-31T12:00:00"},
            {"why": "killed", "seenAt": "0001-01-01T00:00:00+14:00"},
            {"why": "killed", "seenAt": "9999-12-31T23:59:59-14:00"},
            {"why": "killed", "seenAt": "2026-01-31T12:00:00Z", "detail": "x" * 201},
            {"why": "killed", "seenAt": "2026-01-31T12:00:00Z", "detail": 7},
        )
        for body in bodies:
            status, answer = await post(gateway, call.id, "lost", body)
            assert (status, answer["code"]) == (422, "VALIDATION_ERROR"), body
        headers = bearer(ISSUER.for_call(call.id))
        path = f"/internal/calls/{call.id}/lost"
        async with gateway.http.post(path, data=b"\0{", headers=headers) as answer:
            assert 400 <= answer.status < 500
            assert set(await answer.json()) == {"error", "code"}
        assert (await record(gateway, call)).agent_epoch == 0

    async def test_its_worker_cannot_use_up_the_ids_of_what_follows(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        call = await talking(gateway, rooms)
        for name in ("lost_0", "dispatched_1_0", "unrecovered"):
            body = {"events": [CallEvent(id=f"{call.id}_{name}", type="barge_in").wire()]}
            status, answer = await post(gateway, call.id, "events", body)
            assert (status, answer["code"]) == (422, "VALIDATION_ERROR")
        await report(gateway, call)
        assert (await record(gateway, call)).agent_epoch == 1

    async def test_a_time_to_come_is_now(self, gateway: Running, rooms: LiveKitStub) -> None:
        """Clocks differ, and nobody was lost in the future."""
        call = await talking(gateway, rooms)
        await report(gateway, call, seenAt=(now() + timedelta(hours=1)).isoformat())
        (lost,) = await gateway.store.events(call.id, types=["agent.lost"])
        assert datetime.fromisoformat(lost.data["seenAt"]) <= now()

    async def test_only_the_calls_own_token_is_taken(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        call, others = await talking(gateway, rooms), await talking(gateway, rooms)
        body = {"why": "killed", "seenAt": now().isoformat()}
        for token in (
            ISSUER.for_call(others.id),
            ISSUER.for_worker(call.id),
            TokenIssuer("another secret").for_call(call.id),
            "acme-secret-0123456789",
        ):
            async with gateway.http.post(
                f"/internal/calls/{call.id}/lost", json=body, headers=bearer(token)
            ) as answer:
                assert answer.status == 401
        assert (await record(gateway, call)).agent_epoch == 0

    async def test_of_an_unknown_call(self, gateway: Running) -> None:
        body = {"why": "killed", "seenAt": now().isoformat()}
        status, answer = await post(gateway, "call_nope", "lost", body)
        assert (status, answer["code"]) == (425, "CALL_NOT_READY"), "its record may follow"


WHYS = ("killed", "hung", "stopped", "failed", "vanished")


async def settled(gateway: Running, call: Call) -> None:
    """Wait until the gateway sends for nobody any more."""
    recovery = call_services(gateway.app).recovery

    async def done() -> bool:
        return not recovery.follows(call.id)

    await until(done)


class TestFormerAgent:
    """The token of an agent that was lost opens the call's history, and nothing else."""

    async def test_it_cannot_end_answer_or_transfer_the_call(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        call = await talking(gateway, rooms)
        await report(gateway, call)
        await tell(gateway, call, 1, joins(1, "wrk_2"))
        turn = Turn(id="turn_1", transcript="Hello", start_ms=100)
        answer = await tell(
            gateway,
            call,
            0,
            CallEvent(type="turn", data=turn.wire()),
            CallEvent(type="call.ended", data=ended("completed", "agent_hangup")),
            CallEvent(type="agent.left", data={"cause": "worker_failed"}),
            joins(0, "wrk_1"),
            joins(1, "wrk_1"),
        )
        assert answer == {"accepted": 1, "over": True}
        kept = await record(gateway, call)
        assert (kept.status, kept.agent_epoch, kept.agent_worker) == ("in-progress", 1, "wrk_2")
        assert [one.transcript for one in await gateway.store.turns(call.id)] == ["Hello"]
        order = {"transferId": "trf_0123456789abcdef01234567"}
        status, body = await post(gateway, call.id, "transfer", order)
        assert (status, body["code"]) == (410, "CALL_ENDED")
        async with gateway.http.get(
            f"/internal/calls/{call.id}", headers=bearer(ISSUER.for_call(call.id))
        ) as brief:
            assert brief.status == 410
        assert hung_up(rooms) == rooms.dialled == rooms.referred == []

    async def test_the_next_one_is_told_of_the_call(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        call = await talking(gateway, rooms)
        turn = Turn(id="turn_1", transcript="Hello", start_ms=100)
        await tell(gateway, call, 0, CallEvent(type="turn", data=turn.wire()))
        await report(gateway, call)
        async with gateway.http.get(
            f"/internal/calls/{call.id}", headers=bearer(ISSUER.for_call(call.id, 1))
        ) as brief:
            so_far = (await brief.json())["recovered"]
        assert (so_far["epoch"], so_far["giveUp"]) == (1, False)
        assert [one["transcript"] for one in so_far["turns"]] == ["Hello"]


class TestNobodyComes:
    async def test_the_call_ends_and_the_phone_is_hung_up(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        call = await talking(gateway, rooms)
        rooms.enter(call.room_name, phone("guest"), agent("agent-of-another-call"))
        rooms.workers_full = True
        await report(gateway, call)
        assert await over(gateway, call) == {
            **ended("failed", "agent_error", note="no agent took over"),
            "detail": "dispatch_not_taken",
        }
        await settled(gateway, call)
        assert hung_up(rooms) == [(call.room_name, call.participant_identity)]
        assert len(rooms.dispatched) >= 2, "it was tried again"
        again = await types(gateway, call, "agent.dispatched", "agent.redispatched")
        assert again == ["agent.dispatched"] + ["agent.redispatched"] * (len(rooms.dispatched) - 1)

    async def test_one_that_is_lost_at_the_last_moment_has_a_successor(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        """Else a call would end for which the next agent is on its way."""
        rooms.workers_full = True
        call = await talking(gateway, rooms)
        await report(gateway, call)
        recovery = call_services(gateway.app).recovery
        lost = CallEvent(
            id=f"{call.id}_lost_1", type="agent.lost", data={"epoch": 1, "why": "killed"}
        )
        await gateway.store.append(call.id, [lost], "gateway")
        await recovery._end(call, 1, "nobody", note="no agent took over")
        assert await types(gateway, call, "call.ended") == []
        assert hung_up(rooms) == []

    async def test_before_the_answer_there_was_no_agent(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        call = await gateway.call()
        rooms.enter(call.room_name, phone(call.participant_identity))
        rooms.workers_full = True
        await tell(gateway, call, 0, joins(0))
        await report(gateway, call)
        assert (await over(gateway, call))["reason"] == "agent_unavailable"

    async def test_a_worker_that_is_free_later_is_found(
        self, tmp_path: Path, rooms: LiveKitStub
    ) -> None:
        async with running_with(rooms, tmp_path, agent_join_timeout_s=10) as gateway:
            await self.found(gateway, rooms)

    async def found(self, gateway: Running, rooms: LiveKitStub) -> None:
        call = await talking(gateway, rooms)
        rooms.failing[call.room_name] = "unavailable"  # LiveKit is away
        await report(gateway, call)
        assert rooms.dispatched == []
        del rooms.failing[call.room_name]

        async def dispatched() -> Any:
            return rooms.dispatched

        await until(dispatched)
        await tell(gateway, call, 1, joins(1))
        await settled(gateway, call)
        assert (await record(gateway, call)).status == "in-progress"


class TestPoison:
    async def lose(self, gateway: Running, call: Call, epoch: int, why: str = "killed") -> Any:
        status, answer = await report(gateway, call, epoch, why=why)
        assert status == 200
        if answer["comes"]:
            await tell(gateway, call, epoch + 1, joins(epoch + 1))
        return answer["comes"]

    async def test_the_fourth_gives_up_and_the_loss_of_that_one_ends_the_call(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        call = await talking(gateway, rooms)
        for epoch in range(MOST_LOST):
            assert await self.lose(gateway, call, epoch)
        async with gateway.http.get(
            f"/internal/calls/{call.id}", headers=bearer(ISSUER.for_call(call.id, MOST_LOST))
        ) as brief:
            assert (await brief.json())["recovered"]["giveUp"]
        assert await self.lose(gateway, call, MOST_LOST) is False
        assert await over(gateway, call) == ended(
            "failed", "agent_error", note="agents were lost too often"
        )
        await settled(gateway, call)
        assert hung_up(rooms) == [(call.room_name, call.participant_identity)]

    async def test_stops_of_workers_are_no_poison(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        call = await talking(gateway, rooms)
        for epoch in range(MOST_LOST + 2):
            assert await self.lose(gateway, call, epoch, "stopped")
        async with gateway.http.get(
            f"/internal/calls/{call.id}", headers=bearer(ISSUER.for_call(call.id, MOST_LOST + 2))
        ) as brief:
            assert not (await brief.json())["recovered"]["giveUp"]


class TestAnotherGatewayGoesOn:
    """The one that took the report dies before the next agent has joined."""

    @pytest.mark.parametrize("noted", [False, True])
    async def test_nothing_was_sent_yet(
        self, gateway: Running, rooms: LiveKitStub, noted: bool
    ) -> None:
        call = await talking(gateway, rooms)
        lost = CallEvent(
            id=f"{call.id}_lost_0",
            type="agent.lost",
            data={"epoch": 0, "why": "killed", "seenAt": "2026-01-31T12:00:00.000Z"},
        )
        sent = CallEvent(id=f"{call.id}_dispatched_1_0", type="agent.dispatched", data={"epoch": 1})
        await gateway.store.append(call.id, [lost, sent][: 1 + noted], "gateway")

        async def dispatched() -> Any:
            return rooms.dispatched

        await until(dispatched, 5)
        assert job(rooms.dispatched[0]).epoch == 1
        await tell(gateway, call, 1, joins(1))
        await settled(gateway, call)
        assert len(rooms.dispatched) == 1

    async def test_it_ends_what_cannot_be_saved(self, gateway: Running, rooms: LiveKitStub) -> None:
        rooms.workers_full = True
        call = await talking(gateway, rooms)
        lost = CallEvent(
            id=f"{call.id}_lost_0", type="agent.lost", data={"epoch": 0, "why": "killed"}
        )
        await gateway.store.append(call.id, [lost], "gateway")
        assert (await over(gateway, call))["note"] == "no agent took over"

    async def test_while_the_first_one_lives_each_dispatch_is_sent_once(
        self, gateway: Running, other: Running, rooms: LiveKitStub
    ) -> None:
        rooms.workers_full = True
        call = await talking(gateway, rooms)
        await report(gateway, call)
        await over(gateway, call)
        for each in (gateway, other):
            await settled(each, call)
        told = await gateway.store.events(call.id, types=["agent.dispatched", "agent.redispatched"])
        assert len(told) == len(rooms.dispatched)

    async def test_an_agent_that_has_left_by_itself_is_not_sent_for(
        self, gateway: Running, other: Running, rooms: LiveKitStub
    ) -> None:
        call, witness = await talking(gateway, rooms), await talking(gateway, rooms)
        await report(gateway, call)
        left = CallEvent(type="agent.left", data={"cause": "agent_removed"})
        await tell(gateway, call, 1, joins(1), left)
        await settled(gateway, call)
        await report(gateway, witness)  # and this one is lost later, and found later

        async def second() -> Any:
            return len(rooms.dispatched) > 1

        await until(second)
        await over(gateway, witness)
        assert [job(one).call_id for one in rooms.dispatched].count(call.id) == 1


class TestBesides:
    async def test_who_waits_for_the_first_agent_leaves_the_rest_to_the_recovery(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        """Arrival would send another first agent, who would greet again."""
        from gateway.calls.dispatcher import Arrival, Dispatcher
        from gateway.calls.timeline import Journal
        from gateway.http.metrics import Metrics

        call = await gateway.call()
        timeline, livekit = gateway.app[TIMELINE], call_services(gateway.app).livekit
        arrival = Arrival(
            call.id,
            call.room_name,
            watch=Watch(call.id, gateway.store, timeline),
            journal=Journal(timeline, Metrics()),
            dispatcher=Dispatcher(livekit, ISSUER, gateway.store.places, "switchroom"),
            timeout_s=SOON_S,
        )
        waiting = asyncio.create_task(arrival.seen())
        await report(gateway, call)
        assert await asyncio.wait_for(waiting, SOON_S / 2)
        assert all(job(dispatch).epoch == 1 for dispatch in rooms.dispatched)

    async def test_the_wait_for_a_calls_end_does_not_wait_for_a_lost_agent(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        call = await talking(gateway, rooms)
        rooms.workers_full = True
        await report(gateway, call)
        await over(gateway, call)
        async with gateway.app[TIMELINE].listen(call.id) as news:
            assert (await news.look(after=0)).agent_gone

    async def test_they_are_counted(self, gateway: Running, rooms: LiveKitStub) -> None:
        call = await talking(gateway, rooms)
        await report(gateway, call, why="hung")
        resumed = CallEvent(
            type="agent.resumed", data={"epoch": 1, "lostMs": 2400, "unanswered": False}
        )
        await tell(gateway, call, 1, joins(1), resumed)
        await tell(gateway, call, 1, resumed)
        async with gateway.http.get("/metrics") as answer:
            shown = await answer.text()
        assert 'switchroom_agents_lost_total{why="hung"} 1.0' in shown
        assert 'switchroom_agent_recovery_seconds_count{why="hung"} 1.0' in shown
        assert 'switchroom_agent_recovery_seconds_sum{why="hung"} 2.4' in shown
