"""Sessions beside their calls' records, one contract on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from core.events import ended
from core.models import Agent, AgentConfig, CallEvent, new_id
from gateway.store.calls import NewCall, Store
from gateway.store.credentials import Vault
from gateway.store.database import Database, Scope
from gateway.store.streams.sessions import Session, SessionStore
from tests.support.clock import Clock
from tests.support.databases import OnPostgres, OnSqlite

pytestmark = pytest.mark.store

MINUTE, MOMENT = timedelta(minutes=1), timedelta(seconds=1)
VAULT = Vault(["2hVx0HZ4hYnqyBpTfwkvb0b8mGSFJ3U5cYxTzhDg3yA="])


def agent(words: str, **config: object) -> Agent:
    values = {"name": "Ann", "voice_mode": "hosted", "begin_message": words, **config}
    return Agent(id="agt_1", version=1, config=AgentConfig.model_validate(values))


class SessionsContract:
    @pytest.fixture
    async def database(self, url: str) -> AsyncIterator[Database]:
        database = await Database.open(url)
        yield database
        await database.close()

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def sessions(self, database: Database, clock: Clock) -> SessionStore:
        return SessionStore(database, VAULT, clock)

    @pytest.fixture
    def calls(self, database: Database, clock: Clock) -> Store:
        return Store(database, vault=VAULT, clock=clock)

    @staticmethod
    async def call(calls: Store, **config: object) -> str:
        call_id = new_id("call")
        new = NewCall(
            id=call_id,
            auth_id="acme",
            direction="inbound",
            type="stream",
            room_name=call_id,
            participant_identity="caller",
            from_number="+15105550123",
            to_number="+15551234567",
            max_duration_ms=60_000,
            agent=agent("Hello {{who}}.", **config),
            metadata={},
        )
        await calls.insert_call(new, CallEvent(type="call.queued"))
        return call_id

    @staticmethod
    async def session(
        sessions: SessionStore, clock: Clock, call_id: str | None = None, **changes: object
    ) -> Session:
        values: dict[str, object] = {
            "call_id": call_id or new_id("call"),
            "kind": "twilio",
            "token_id": new_id("tok"),
            "token_until": clock() + MINUTE,
        }
        session = Session(**{**values, **changes})  # type: ignore[arg-type]
        await sessions.add(session)
        return session

    async def test_a_token_is_redeemed_once(self, sessions: SessionStore, clock: Clock) -> None:
        made = await self.session(sessions, clock)
        assert await sessions.find(made.call_id) == made
        assert await sessions.redeem(made.call_id, made.token_id or "", "socket") is None
        redeemed = await sessions.redeem(made.call_id, made.token_id or "", "twilio")
        assert redeemed is not None
        assert (redeemed.token_id, redeemed.attached) == (None, False)
        assert await sessions.redeem(made.call_id, made.token_id or "", "twilio") is None

    async def test_of_many_at_once_one_redeems_it(
        self, sessions: SessionStore, clock: Clock, url: str
    ) -> None:
        made = await self.session(sessions, clock)
        other = await Database.open(url)  # another gateway's
        both = [sessions, SessionStore(other, VAULT, clock)] * 10
        redeemed = await asyncio.gather(
            *(each.redeem(made.call_id, made.token_id or "", "twilio") for each in both)
        )
        await other.close()
        assert len([each for each in redeemed if each is not None]) == 1

    async def test_it_expires_and_is_replaced(self, sessions: SessionStore, clock: Clock) -> None:
        made = await self.session(sessions, clock)
        clock.forward(MINUTE)
        assert await sessions.redeem(made.call_id, made.token_id or "", "twilio") is None
        fresh = await self.session(sessions, clock, made.call_id)
        assert await sessions.redeem(made.call_id, made.token_id or "", "twilio") is None
        assert await sessions.redeem(made.call_id, fresh.token_id or "", "twilio") is not None

    async def test_a_new_token_leaves_the_rest_as_it_is(
        self, sessions: SessionStore, clock: Clock
    ) -> None:
        made = await self.session(sessions, clock, account_sid="AC1", call_sid="CA1")
        assert await sessions.claim(made.call_id, 0, "w1", "http://w1", audio={"input": {}})
        fresh = await self.session(sessions, clock, made.call_id)
        kept = await sessions.find(made.call_id)
        assert kept is not None and kept.attached
        assert (kept.worker_id, kept.worker_address) == ("w1", "http://w1")
        assert (kept.agent_epoch, kept.audio) == (0, {"input": {}})
        assert (kept.account_sid, kept.call_sid) == ("AC1", "CA1")
        assert kept.token_id == fresh.token_id

    async def test_each_agent_is_claimed_for_one_worker(
        self, sessions: SessionStore, clock: Clock
    ) -> None:
        made = await self.session(sessions, clock)
        claims = [
            sessions.claim(made.call_id, 0, f"w{n}", f"http://w{n}", audio={"of": n})
            for n in range(10)
        ]
        claimed = await asyncio.gather(*claims)
        assert sum(claimed) == 1
        first = claimed.index(True)
        assert not await sessions.claim(made.call_id, 0, "w10", "http://w10", instead_of="w11")
        own = f"w{first}"
        assert await sessions.claim(made.call_id, 0, "w12", "http://w12", instead_of=own)
        assert await sessions.claim(made.call_id, 2, "w13", "http://w13")
        assert not await sessions.claim(made.call_id, 2, "w14", "http://w14")
        assert not await sessions.claim(made.call_id, 1, "w14", "http://w14", instead_of="w13")
        kept = await sessions.find(made.call_id)
        assert kept is not None
        assert (kept.worker_id, kept.worker_address, kept.agent_epoch) == ("w13", "http://w13", 2)
        assert kept.audio == {"of": first}, "as the first socket chose it"

    async def test_it_is_bound_to_one_twilio_call(
        self, sessions: SessionStore, clock: Clock
    ) -> None:
        made = await self.session(sessions, clock, account_sid="AC1")
        token = made.token_id or ""
        twilio = {"account_sid": "AC2", "call_sid": "CA1"}
        assert await sessions.redeem(made.call_id, token, "twilio", **twilio) is None
        twilio["account_sid"] = "AC1"
        redeemed = await sessions.redeem(made.call_id, token, "twilio", **twilio)
        assert redeemed is not None and redeemed.call_sid == "CA1"
        fresh = await self.session(sessions, clock, made.call_id)
        twilio["call_sid"] = "CA2"
        assert await sessions.redeem(made.call_id, fresh.token_id or "", "twilio", **twilio) is None

    async def test_a_call_that_nobody_answered_is_tailored(
        self, sessions: SessionStore, calls: Store
    ) -> None:
        headers = {"Authorization": "a-secret"}
        tool = {"name": "look", "description": "", "url": "https://example.com", "headers": headers}
        call_id = await self.call(calls, custom_tools=[tool])
        tailored = agent("Hello Ann.", custom_tools=[tool])
        assert await sessions.tailor(call_id, tailored, record=True)
        found = await calls.call_and_agent(call_id)
        assert found is not None and found[1] is not None
        assert found[0].record
        assert found[1].config.begin_message == "Hello Ann."
        assert found[1].config.custom_tools[0].headers == {"Authorization": "a-secret"}

    @pytest.mark.parametrize("event", ["call.answered", "call.ended"])
    async def test_later_it_is_not(self, sessions: SessionStore, calls: Store, event: str) -> None:
        call_id = await self.call(calls)
        data = ended("canceled", "canceled") if event == "call.ended" else {}
        await calls.append(call_id, [CallEvent(type=event, data=data)], "gateway")
        assert not await sessions.tailor(call_id, agent("Hello Ann."), record=False)

    async def test_sessions_are_swept_an_hour_after_their_calls(
        self, sessions: SessionStore, calls: Store, clock: Clock
    ) -> None:
        live, over = await self.call(calls), await self.call(calls)
        for call_id in (live, over):
            await self.session(sessions, clock, call_id)
        done = CallEvent(type="call.ended", data=ended("completed", "user_hangup"))
        await calls.append(over, [done], "gateway")
        clock.forward(timedelta(hours=1) - MINUTE)
        await sessions.sweep()
        assert await sessions.find(over) is not None
        clock.forward(MINUTE + MOMENT)
        await sessions.sweep()
        assert await sessions.find(over) is None
        assert await sessions.find(live) is not None
        assert await calls.call(Scope(None), over) is not None


class TestSqlite(OnSqlite, SessionsContract):
    pass


class TestPostgres(OnPostgres, SessionsContract):
    pass
