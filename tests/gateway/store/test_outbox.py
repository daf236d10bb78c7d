"""The outbox: no event is lost, a call's events stay in order, no endpoint delays another."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from cryptography.fernet import Fernet

from core.events import ended
from core.models import Agent, AgentConfig, CallEvent, Turn, new_id
from core.url_guard import guarded_session
from gateway.store.call_status import Call
from gateway.store.calls import NewCall, Store
from gateway.store.credentials import Vault
from gateway.store.database import Database
from gateway.store.deliveries import Deliveries, Delivery
from gateway.store.outbox import KEPT, LEASE, MAX_ATTEMPTS, Outbox, Outcome
from gateway.store.webhooks import PROJECT, WebhookStore
from gateway.webhooks.payload import render
from gateway.webhooks.sender import SLOTS_PER_ENDPOINT, Sender, backoff
from tests.support.clock import Clock
from tests.support.databases import OnPostgres, OnSqlite
from tests.support.receiver import Received, Receiver, receiving

pytestmark = pytest.mark.store

VAULT = Vault([Fernet.generate_key().decode()])
KINDS = ["call.started", "call.ringing", "call.answered", "agent.call_ended"]


class Rig:
    """A gateway's outbox, without the gateway."""

    def __init__(self, database: Database, *, leased_for: timedelta = LEASE) -> None:
        self.database, self.clock = database, Clock()
        self.outbox = Outbox(database, render, clock=self.clock, leased_for=leased_for)
        self.store = Store(database, self.outbox)
        self.webhooks = WebhookStore(database, VAULT)

    async def hook(self, url: str, owner: str = "acme", timeout_s: int = 30) -> str:
        endpoint = await self.webhooks.put(
            owner, PROJECT, url=url, context_limit=10, timeout_s=timeout_s
        )
        return endpoint.id

    async def call(self, owner: str = "acme", *more: CallEvent) -> str:
        new = NewCall(
            id=new_id("call"),
            auth_id=owner or None,
            direction="outbound",
            room_name=new_id("room"),
            participant_identity="caller",
            from_number="+15105550123",
            to_number="+15551234567",
            max_duration_ms=60_000,
            agent=Agent(id="greeter", version=1, config=AgentConfig(name="Greeter")),
            metadata={},
        )
        return (await self.store.insert_call(new, CallEvent(type="call.queued"), *more)).id

    async def whole_call(self, owner: str = "acme") -> str:
        """Store a call with four events; return its id."""
        call_id = await self.call(owner)
        for event in rest_of_call():
            await self.store.append(call_id, [event], "worker")
        return call_id

    async def deliveries(self, owner: str = "acme") -> list[Delivery]:
        """Return the owner's deliveries, oldest first."""
        found, _ = await Deliveries(self.database).page(owner, limit=100_000, offset=0)
        return found[::-1]

    async def over(self, owner: str = "acme", timeout: float = 30) -> list[Delivery]:
        """Return the deliveries, once none is pending."""
        async with asyncio.timeout(timeout):
            while True:
                found = await self.deliveries(owner)
                if all(delivery.status != "pending" for delivery in found):
                    return found
                await asyncio.sleep(0.05)

    async def attempted(self, owner: str = "acme") -> None:
        """Wait until the first delivery's first attempt has an outcome."""
        async with asyncio.timeout(10):
            while not (await self.deliveries(owner))[0].attempts:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def sending(
        self, retry_s: float = 0.05, grace_s: float = 5, allow_private: bool = True
    ) -> AsyncIterator[Sender]:
        async with guarded_session(allow_private=allow_private) as session:
            sender = Sender(
                self.outbox,
                self.webhooks,
                session,
                retry_in=lambda _attempts: timedelta(seconds=retry_s),
            )
            task = asyncio.create_task(sender.run())
            try:
                yield sender
            finally:
                task.cancel()
                await asyncio.wait({task})
                await sender.aclose(grace_s)


def rest_of_call() -> list[CallEvent]:
    return [
        CallEvent(type="call.ringing"),
        CallEvent(type="call.answered"),
        CallEvent(type="call.ended", data=ended("completed", "user_hangup")),
    ]


def by_call(received: list[Received]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for each in received:
        found[each.body["data"]["callId"]].append(each.body["event"])
    return found


def status_of(status: int) -> Any:
    async def answer(_received: Received) -> web.StreamResponse:
        return web.Response(status=status)

    return answer


def all_room(_endpoint_id: str) -> int:
    return 1_000


class Contract:
    @pytest.fixture
    async def database(self, url: str) -> AsyncIterator[Database]:
        database = await Database.open(url)
        yield database
        await database.close()

    @pytest.fixture
    def rig(self, database: Database) -> Rig:
        return Rig(database)

    @pytest.fixture
    async def receiver(self) -> AsyncIterator[Receiver]:
        async with receiving() as receiver:
            yield receiver

    async def test_nothing_is_kept_without_a_webhook(self, rig: Rig) -> None:
        await rig.whole_call()
        assert await rig.deliveries() == []

    async def test_moves_of_the_status_and_nothing_else(self, rig: Rig) -> None:
        await rig.hook("http://127.0.0.1:9/")
        call_id = await rig.call()
        ringing, answered, over = rest_of_call()
        turn = CallEvent(type="turn", data={"id": "t1"})
        transferred = CallEvent(type="call.transferred", data={"to": "+15105550100"})
        await rig.store.append(call_id, [ringing, turn, answered, transferred], "worker")
        await rig.store.append(call_id, [ringing, answered], "gateway")  # a second time
        await rig.store.append(call_id, [over], "worker")
        await rig.store.append(
            call_id,
            [
                # Late, or with another reason: the end is already reported.
                CallEvent(type="call.answered"),
                CallEvent(type="call.ended", data=ended("completed", "agent_hangup")),
            ],
            "gateway",
        )
        told = [delivery.event for delivery in await rig.deliveries()]
        assert told == [*KINDS[:3], "call.transferred", KINDS[3]]

    async def test_kept_with_the_event_or_not_at_all(self, rig: Rig, database: Database) -> None:
        await rig.hook("http://127.0.0.1:9/")
        call_id = await rig.call()

        def broken(
            event: str, at: datetime, call: Call, turns: Sequence[Turn], context_limit: int
        ) -> str:
            raise RuntimeError

        store = Store(database, Outbox(database, broken))
        with pytest.raises(RuntimeError):
            await store.append(call_id, rest_of_call(), "worker")
        assert [event.type for event in await rig.store.events(call_id)] == ["call.queued"]
        assert [delivery.event for delivery in await rig.deliveries()] == ["call.started"]

    async def test_a_call_that_begins_with_its_end(self, rig: Rig) -> None:
        await rig.hook("http://127.0.0.1:9/")
        await rig.call("acme", rest_of_call()[2])
        told = [delivery.event for delivery in await rig.deliveries()]
        assert told == ["call.started", "agent.call_ended"]

    async def test_order_is_kept_within_a_call(self, rig: Rig, receiver: Receiver) -> None:
        """Every event is refused once; none overtakes the one before it."""
        seen: set[str] = set()

        async def second_time(received: Received) -> web.StreamResponse:
            first = received.id not in seen
            seen.add(received.id)
            return web.Response(status=503 if first else 204)

        receiver.answers["/"] = second_time
        await rig.hook(receiver.url)
        async with rig.sending():
            calls = await asyncio.gather(*(rig.whole_call() for _ in range(6)))
            await rig.over()
        order = by_call(receiver.received)
        assert set(order) == set(calls)
        assert all(
            events == [kind for kind in KINDS for _ in range(2)] for events in order.values()
        )
        for delivery in await rig.deliveries():
            assert (delivery.status, delivery.attempts) == ("success", 2)

    async def test_six_attempts_with_one_id_then_the_next(
        self, rig: Rig, receiver: Receiver
    ) -> None:
        async def refuse_first(received: Received) -> web.StreamResponse:
            refused = received.body["event"] == "call.started"
            return web.Response(status=500 if refused else 200)

        receiver.answers["/"] = refuse_first
        await rig.hook(receiver.url)
        await rig.whole_call()
        async with rig.sending(retry_s=0.01):
            found = await rig.over()
        assert [(each.status, each.attempts) for each in found] == [
            ("failed", MAX_ATTEMPTS),
            *[("success", 1)] * 3,
        ]
        first = [each.id for each in receiver.received[:MAX_ATTEMPTS]]
        assert set(first) == {found[0].id}
        assert [each.body["event"] for each in receiver.received[MAX_ATTEMPTS:]] == KINDS[1:]
        assert len({each.raw for each in receiver.received[:MAX_ATTEMPTS]}) == 1
        assert (found[0].http_status, found[0].next_attempt_at) == (500, None)

    async def test_a_dead_endpoint_holds_up_nobody(self, rig: Rig, receiver: Receiver) -> None:
        released = asyncio.Event()

        async def hang(_received: Received) -> web.StreamResponse:
            await released.wait()
            return web.Response()

        receiver.answers["/dead"] = hang
        await rig.hook(f"{receiver.url}/dead", "acme")
        await rig.hook(f"{receiver.url}/live", "rival")
        for _ in range(30):
            await rig.call("acme")
        async with rig.sending():
            await receiver.until(lambda: len(receiver.at("/dead")) == SLOTS_PER_ENDPOINT)
            for _ in range(30):
                await rig.call("rival")
            done = await rig.over("rival")
            assert [each.status for each in done] == ["success"] * 30
            assert len(receiver.at("/dead")) == SLOTS_PER_ENDPOINT
            released.set()
            await rig.over("acme")
        assert len(receiver.at("/dead")) == 30

    async def test_one_that_fails_gets_one_slot(self, rig: Rig, receiver: Receiver) -> None:
        running, most = 0, 0

        async def slow_failure(_received: Received) -> web.StreamResponse:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1
            return web.Response(status=500)

        receiver.answers["/"] = slow_failure
        await rig.hook(receiver.url)
        first = await rig.call()
        async with rig.sending(retry_s=600):
            await receiver.until(lambda: len(receiver.received) == 1)
            await rig.attempted()
            for _ in range(5):
                await rig.call()
            await receiver.until(lambda: len(receiver.received) == 6)
        assert (most, first) == (1, receiver.received[0].body["data"]["id"])

    async def test_several_gateways_share_the_work(
        self, rig: Rig, url: str, receiver: Receiver
    ) -> None:
        await rig.hook(receiver.url)
        others = [await Database.open(url) for _ in range(2)]
        calls = [await rig.whole_call() for _ in range(25)]
        rigs = [rig, *map(Rig, others)]
        try:
            async with rigs[0].sending(), rigs[1].sending(), rigs[2].sending():
                await rig.over()
        finally:
            for other in others:
                await other.close()
        assert len(receiver.received) == 100
        assert by_call(receiver.received) == dict.fromkeys(calls, KINDS)

    async def test_concurrent_claims_share_nothing(self, rig: Rig) -> None:
        await rig.hook("http://127.0.0.1:9/")
        for _ in range(20):
            await rig.whole_call()
        claims = await asyncio.gather(
            *(rig.outbox.claim(f"gw_{n}", all_room, 100, most=100) for n in range(8))
        )
        got = [delivery.id for claimed in claims for delivery in claimed]
        assert len(got) == len(set(got)) == 20  # the first of each call

    async def test_a_claim_leaves_room(self, rig: Rig) -> None:
        one, two = await rig.hook("http://127.0.0.1:9/"), await rig.hook("http://a.b/", "rival")
        for _ in range(5):
            await rig.call("acme")
            await rig.call("rival")
        room = {one: 3, two: 0}
        claimed = await rig.outbox.claim("gw", room.__getitem__, 100)
        assert [delivery.endpoint_id for delivery in claimed] == [one] * 3
        room[two] = 5
        room[one] = 2
        assert len(await rig.outbox.claim("gw", room.__getitem__, 4)) == 4

    async def test_a_killed_gateways_work_is_taken_up(self, rig: Rig) -> None:
        lease, moment = timedelta(hours=1), timedelta(minutes=1)
        rig = Rig(rig.database, leased_for=lease)
        await rig.hook("http://127.0.0.1:9/")
        await rig.call()
        [lost] = await rig.outbox.claim("killed", all_room, 9)
        rig.clock.forward(lease - moment)
        assert await rig.outbox.claim("other", all_room, 9) == []
        await rig.outbox.renew("killed", [lost.seq])
        rig.clock.forward(lease - moment)
        assert await rig.outbox.claim("other", all_room, 9) == []
        rig.clock.forward(2 * moment)
        [taken] = await rig.outbox.claim("other", all_room, 9)
        assert taken.id == lost.id
        # The first gateway was only slow: its late outcome is ignored.
        assert await rig.outbox.finish(lost, "killed", Outcome(200), timedelta()) is None
        done = await rig.outbox.finish(taken, "other", Outcome(200), timedelta())
        assert done is not None
        assert (done.status, done.attempts) == ("success", 1)

    async def test_a_lease_is_renewed_while_an_answer_is_awaited(
        self, rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rig = Rig(rig.database, leased_for=timedelta(seconds=0.6))
        released = asyncio.Event()

        async def hang(_received: Received) -> web.StreamResponse:
            await released.wait()
            return web.Response()

        receiver.answers["/"] = hang
        await rig.hook(receiver.url)
        await rig.call()
        async with rig.sending():
            await receiver.until(lambda: len(receiver.received) == 1)
            renewed = asyncio.Event()
            renew = rig.outbox.renew

            async def noted(*arguments: Any) -> None:
                await renew(*arguments)
                renewed.set()

            monkeypatch.setattr(rig.outbox, "renew", noted)
            for _ in range(4):
                renewed.clear()
                await asyncio.wait_for(renewed.wait(), 10)
            released.set()
            [done] = await rig.over()
        assert (done.status, done.attempts) == ("success", 1)
        assert len(receiver.received) == 1

    async def test_a_stop_lets_answers_arrive(self, rig: Rig, receiver: Receiver) -> None:
        stopping = asyncio.Event()

        async def late(_received: Received) -> web.StreamResponse:
            await stopping.wait()
            return web.Response()

        receiver.answers["/"] = late
        await rig.hook(receiver.url)
        await rig.whole_call()
        async with rig.sending():
            await receiver.until(lambda: len(receiver.received) == 1)
            asyncio.get_running_loop().call_later(0.1, stopping.set)
        assert [each.status for each in await rig.deliveries()] == ["success", *["pending"] * 3]

    async def test_what_a_stop_cuts_off_is_free_at_once(self, rig: Rig, receiver: Receiver) -> None:
        released = asyncio.Event()

        async def hang(_received: Received) -> web.StreamResponse:
            await released.wait()
            return web.Response()

        receiver.answers["/"] = hang
        await rig.hook(receiver.url)
        await rig.call()
        async with rig.sending(grace_s=0):
            await receiver.until(lambda: len(receiver.received) == 1)
        released.set()
        [free] = await rig.outbox.claim("next", all_room, 9)
        assert (free.status, free.attempts) == ("pending", 0)

    async def test_what_a_removed_webhook_was_owed_fails(
        self, rig: Rig, receiver: Receiver
    ) -> None:
        await rig.hook(receiver.url)
        await rig.whole_call()
        await rig.webhooks.delete("acme", PROJECT)
        async with rig.sending():
            found = await rig.over()
        assert [(each.status, each.error) for each in found] == [
            ("failed", "The webhook was removed")
        ] * 4
        assert receiver.received == []

    async def test_a_changed_webhook_gets_what_the_old_one_was_owed(
        self, rig: Rig, receiver: Receiver
    ) -> None:
        await rig.hook(f"{receiver.url}/old")
        await rig.whole_call()
        await rig.hook(f"{receiver.url}/new")
        async with rig.sending():
            await rig.over()
        assert len(receiver.at("/new")) == len(receiver.received) == 4

    async def test_a_private_address_is_refused_at_the_connection(
        self, rig: Rig, receiver: Receiver
    ) -> None:
        await rig.hook(receiver.url)
        await rig.call()
        async with rig.sending(retry_s=0.01, allow_private=False):
            [refused] = await rig.over()
        assert (refused.status, refused.error) == ("failed", "The address is not public")
        assert receiver.received == []

    async def test_only_what_is_over_is_dropped(self, rig: Rig, receiver: Receiver) -> None:
        await rig.hook(receiver.url)
        await rig.call()
        async with rig.sending():
            await rig.over()
        await rig.call()
        await rig.outbox.sweep()
        assert len(await rig.deliveries()) == 2
        rig.clock.forward(KEPT + timedelta(minutes=1))
        await rig.outbox.sweep()
        assert [each.status for each in await rig.deliveries()] == ["pending"]


class TestSqlite(OnSqlite, Contract):
    pass


class TestPostgres(OnPostgres, Contract):
    pass


def test_the_backoff_grows_and_is_spread() -> None:
    for attempts, seconds in enumerate([5, 20, 80, 320, 1280], start=1):
        waits = {backoff(attempts).total_seconds() for _ in range(200)}
        assert seconds * 0.8 <= min(waits) < max(waits) <= seconds * 1.2
        assert len(waits) > 100
