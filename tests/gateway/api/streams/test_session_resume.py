"""resume: a session that goes on, on another socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.events import ended
from core.models import Agent, CallEvent
from core.tokens import TokenIssuer
from gateway.keys import TIMELINE
from tests.conftest import ACME, RIVAL
from tests.support.inprocess import SECRET
from tests.support.numbers import make_agent
from tests.support.session_rig import PATIENT, Sessions, frame, say, sessions_in

pytestmark = pytest.mark.store

UPDATE = {"type": "session.update"}
MULAW = {"encoding": "audio/x-mulaw", "sampleRate": 8_000}


class Lost:
    """A session whose socket was lost."""

    def __init__(self, sessions: Sessions, agent: Agent, call_id: str, token: str) -> None:
        self.sessions = sessions
        self.agent = agent
        self.call_id = call_id
        self.token = token

    def resume(self, last_seq: int = 7, **changes: Any) -> dict[str, Any]:
        return {"type": "resume", "sessionId": self.call_id, "lastSeq": last_seq, **changes}

    async def refused(self, **options: Any) -> tuple[int | None, str | None]:
        options = {"first": self.resume(), "token": self.token, **options}
        return await self.sessions.refused(options.pop("agent", self.agent), **options)


@pytest.fixture
async def sessions(tmp_path: Path) -> AsyncIterator[Sessions]:
    async with sessions_in(tmp_path, pace=PATIENT) as sessions:
        yield sessions


@pytest.fixture
async def lost(sessions: Sessions) -> Lost:
    agent = await make_agent(sessions.gateway)
    _, minted = await sessions.mint(agent)
    async with sessions.dial(agent, minted["token"]) as client:
        await say(client, UPDATE)
        session = await sessions.worker.session()
        await client.close(code=4000)
        await session.closes.get()
    return Lost(sessions, agent, minted["sessionId"], session.attaches[0]["resumeToken"])


async def test_each_token_brings_the_next_one(sessions: Sessions, lost: Lost) -> None:
    token = lost.token
    for count in (2, 3):
        async with sessions.dial(lost.agent, token) as client:
            await say(client, lost.resume())
            session = await sessions.worker.session(count)
            await say(client, {"type": "ping"})
            assert await frame(session) == {"type": "ping"}, "resume itself is not passed on"
        attach = session.attaches[-1]
        assert (attach["resume"], attach["lastSeq"]) == (True, 7)
        assert attach["resumeToken"] != token
        token = attach["resumeToken"]


async def test_a_server_resumes_with_its_own_token(sessions: Sessions, lost: Lost) -> None:
    async with sessions.dial(lost.agent, headers=ACME) as client:
        await say(client, lost.resume())
        session = await sessions.worker.session(2)
    assert session.attaches[-1]["resume"]


async def test_after_the_end_it_is_gone(sessions: Sessions, lost: Lost) -> None:
    over = CallEvent(type="call.ended", data=ended("completed", "user_hangup"))
    await sessions.gateway.app[TIMELINE].append(lost.call_id, [over], "worker")
    assert await lost.refused() == (4404, "CALL_ENDED")


async def test_a_session_that_its_worker_lost_gets_another_agent(
    sessions: Sessions, lost: Lost
) -> None:
    """The audio formats are those of the first socket."""
    agent = await make_agent(sessions.gateway)
    _, minted = await sessions.mint(agent)
    async with sessions.dial(agent, minted["token"]) as client:
        await say(client, {**UPDATE, "input": MULAW, "output": MULAW})
        async with asyncio.timeout(10):
            while minted["sessionId"] not in sessions.worker.sessions:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        first = sessions.worker.sessions[minted["sessionId"]].attaches[0]
        await client.close(code=4000)
    sessions.worker.sessions.clear()
    async with sessions.dial(agent, first["resumeToken"]) as client:
        await say(client, lost.resume(sessionId=minted["sessionId"]))
        (attach,) = (await sessions.worker.session()).attaches
    assert (attach["epoch"], attach["resume"], attach["moved"]) == (1, False, False)
    assert (attach["input"], attach["output"]) == (MULAW, MULAW)
    assert TokenIssuer(SECRET).agent_of(attach["token"]) == (minted["sessionId"], 1)


@pytest.mark.attack
class TestHostile:
    async def test_a_token_that_was_used(self, sessions: Sessions, lost: Lost) -> None:
        async with sessions.dial(lost.agent, lost.token) as client:
            await say(client, lost.resume())
            await sessions.worker.session(2)
            assert await lost.refused() == (1008, "UNAUTHORIZED")

    async def test_a_token_that_a_newer_one_replaced(self, sessions: Sessions, lost: Lost) -> None:
        async with sessions.dial(lost.agent, headers=ACME) as client:
            await say(client, lost.resume())
            await sessions.worker.session(2)
        assert await lost.refused() == (1008, "UNAUTHORIZED")

    async def test_a_token_for_another_session(self, sessions: Sessions, lost: Lost) -> None:
        first = lost.resume(sessionId="call_000000000000000000000000")
        assert await lost.refused(first=first) == (1008, "UNAUTHORIZED")

    async def test_a_token_at_another_agent(self, sessions: Sessions, lost: Lost) -> None:
        other = await make_agent(sessions.gateway)
        assert await lost.refused(agent=other) == (1008, "UNAUTHORIZED")

    async def test_a_token_to_resume_begins_nothing(self, sessions: Sessions, lost: Lost) -> None:
        assert await lost.refused(first=UPDATE) == (1008, "UNAUTHORIZED")
        assert (await sessions.record(lost.call_id)).status == "queued", "the session goes on"

    async def test_a_token_to_begin_resumes_nothing(self, sessions: Sessions) -> None:
        agent = await make_agent(sessions.gateway)
        _, minted = await sessions.mint(agent)
        first = {"type": "resume", "sessionId": minted["sessionId"], "lastSeq": 0}
        refused = await sessions.refused(agent, token=minted["token"], first=first)
        assert refused == (4404, "CALL_ENDED")
        assert await sessions.outcome(minted["sessionId"]) == ("canceled", "canceled")

    async def test_another_tenants_session_is_like_none(
        self, sessions: Sessions, lost: Lost
    ) -> None:
        for call_id in (lost.call_id, "call_000000000000000000000000"):
            first = lost.resume(sessionId=call_id)
            refused = await lost.refused(first=first, token=None, headers=RIVAL)
            assert refused == (4404, "CALL_ENDED")

    async def test_a_call_that_is_no_session(self, sessions: Sessions) -> None:
        call = await sessions.gateway.call()
        first = {"type": "resume", "sessionId": call.id, "lastSeq": 0}
        refused = await sessions.refused("greeter", first=first, headers=ACME)
        assert refused == (4404, "CALL_ENDED")
        assert (await sessions.record(call.id)).status == "queued"
