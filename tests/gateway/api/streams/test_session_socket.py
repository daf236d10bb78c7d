"""WS /v1/agents/{id}/session: who gets in, what the worker is told, and how sockets end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType

from core.models import Agent
from core.streams.messages import LOST
from core.tokens import TokenIssuer
from tests.conftest import ACME, RIVAL, SECRETS, operator
from tests.support.inprocess import SECRET
from tests.support.numbers import make_agent
from tests.support.session_rig import PATIENT, Sessions, closed, frame, heard, say, sessions_in

pytestmark = pytest.mark.store

UPDATE = {"type": "session.update"}
PCM = {"encoding": "pcm_s16le", "sampleRate": 16_000}
MULAW = {"encoding": "audio/x-mulaw", "sampleRate": 8_000}


@pytest.fixture
async def sessions(tmp_path: Path) -> AsyncIterator[Sessions]:
    async with sessions_in(tmp_path, pace=PATIENT) as sessions:
        yield sessions


async def pinned(sessions: Sessions, call_id: str) -> Agent:
    found = await sessions.gateway.store.call_and_agent(call_id)
    assert found is not None and found[1] is not None
    return found[1]


class TestTokenOfABrowser:
    async def test_it_opens_its_session(self, sessions: Sessions) -> None:
        agent = await make_agent(sessions.gateway)
        _, minted = await sessions.mint(agent)
        async with sessions.dial(agent, minted["token"]) as client:
            assert client.protocol == "switchroom", "the token is not sent back"
            await say(client, UPDATE)
            session = await sessions.worker.session()
        (attach,) = session.attaches
        assert list(sessions.worker.sessions) == [minted["sessionId"]]
        resume_token = attach.pop("resumeToken")
        assert resume_token not in {"", minted["token"]}
        call_token = attach.pop("token")
        assert TokenIssuer(SECRET).verify(call_token, "switchroom:call") == minted["sessionId"]
        assert attach == {
            "kind": "socket",
            "epoch": 0,
            "input": PCM,
            "output": PCM,
            "resume": False,
            "moved": False,
            "lastSeq": 0,
        }

    async def test_frames_pass_both_ways_as_they_are(self, sessions: Sessions) -> None:
        agent = await make_agent(sessions.gateway)
        async with sessions.dial(agent, await sessions.token(agent)) as client:
            await say(client, UPDATE)
            session = await sessions.worker.session()
            for message in ({"type": "text", "text": "Grüße"}, b"\x00\xff" * 320, "not JSON"):
                await say(client, message)
                got = await frame(session)
                assert got == (message.encode() if isinstance(message, str) else message)
            await session.send(b'{"type":"pong","seq":1}')
            await session.send(b"\x01\x02", WSMsgType.BINARY)
            assert [await heard(client), await heard(client)] == [
                {"type": "pong", "seq": 1},
                b"\x01\x02",
            ]


class TestFirstMessage:
    async def test_it_names_the_formats(self, sessions: Sessions) -> None:
        agent = await make_agent(sessions.gateway)
        async with sessions.dial(agent, await sessions.token(agent)) as client:
            await say(client, {**UPDATE, "input": MULAW, "output": {"encoding": "audio/x-mulaw"}})
            session = await sessions.worker.session()
        assert (session.attaches[0]["input"], session.attaches[0]["output"]) == (MULAW, MULAW)

    async def test_its_variables_do_not_replace_those_of_the_token(
        self, sessions: Sessions
    ) -> None:
        agent = await make_agent(sessions.gateway, begin_message="{{who}}, {{what}}, {{where}}")
        _, minted = await sessions.mint(agent, {"variables": {"who": "Ann"}})
        async with sessions.dial(agent, minted["token"]) as client:
            await say(client, {**UPDATE, "variables": {"who": "Eve", "what": "tea", "x": "y"}})
            await sessions.worker.session()
        tailored = await pinned(sessions, minted["sessionId"])
        assert tailored.config.begin_message == "Ann, tea, {{where}}"

    @pytest.mark.parametrize(
        "message",
        [
            b"\x01\x02" * 320,
            {"type": "text", "text": "Hi"},
            {"type": "session.updated"},
            "not JSON",
        ],
    )
    async def test_any_other_begins_with_the_defaults_and_goes_to_the_worker(
        self, sessions: Sessions, message: Any
    ) -> None:
        agent = await make_agent(sessions.gateway)
        async with sessions.dial(agent, await sessions.token(agent)) as client:
            await say(client, message)
            session = await sessions.worker.session()
            got = await frame(session)
        assert session.attaches[0]["input"] == PCM
        assert got == (message.encode() if isinstance(message, str) else message)

    async def test_after_a_second_without_one_the_defaults_hold(self, tmp_path: Path) -> None:
        async with sessions_in(tmp_path) as sessions:
            agent = await make_agent(sessions.gateway)
            async with sessions.dial(agent, await sessions.token(agent)) as client:
                session = await sessions.worker.session()
                assert session.attaches[0]["output"] == PCM
                await say(client, UPDATE)
                assert await frame(session) == UPDATE, "it comes too late for the gateway"


class TestApiToken:
    """A server needs no session's token."""

    async def test_in_the_header_it_creates_the_call(self, sessions: Sessions) -> None:
        agent = await make_agent(sessions.gateway, begin_message="Hello {{who}}.")
        async with sessions.dial(agent, headers=ACME) as client:
            await say(client, {**UPDATE, "variables": {"who": "Ann"}})
            await sessions.worker.session()
        (call_id,) = sessions.worker.sessions
        call = await sessions.record(call_id)
        assert (call.auth_id, call.direction, call.type) == ("acme", "web", "stream")
        assert (await pinned(sessions, call_id)).config.begin_message == "Hello Ann."

    @pytest.mark.parametrize("kind", ["session", "api"])
    async def test_a_token_may_be_the_first_message(self, sessions: Sessions, kind: str) -> None:
        agent = await make_agent(sessions.gateway)
        token = SECRETS["acme"] if kind == "api" else await sessions.token(agent)
        async with sessions.dial(agent) as client:
            await say(client, {"type": "auth", "token": token})
            await say(client, {**UPDATE, "input": MULAW})
            session = await sessions.worker.session()
        assert session.attaches[0]["input"] == MULAW

    async def test_a_wrong_header_is_refused_before_the_upgrade(self, sessions: Sessions) -> None:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await sessions.dial("greeter", headers={"Authorization": "Bearer wrong"})
        assert refused.value.status == 401

    async def test_another_tenants_agent_is_like_none(self, sessions: Sessions) -> None:
        agent = await make_agent(sessions.gateway)
        for asked in (agent, "agt_000000000000000000000000"):
            refused = await sessions.refused(asked, first=UPDATE, headers=RIVAL)
            assert refused == (1008, "AGENT_NOT_FOUND")

    async def test_limits_and_missing_workers_are_for_later(self, tmp_path: Path) -> None:
        async with sessions_in(tmp_path, max_concurrent_calls=1) as sessions:
            agent = await make_agent(sessions.gateway)
            sessions.worker.refusing = 503
            refused = await sessions.refused(agent, first=UPDATE, headers=ACME)
            assert refused == (1013, "AGENT_UNAVAILABLE")
            sessions.worker.refusing = None
            async with sessions.dial(agent, headers=ACME) as client:
                await say(client, UPDATE)
                await sessions.worker.session()
                refused = await sessions.refused(agent, first=UPDATE, headers=ACME)
                assert refused == (1013, "CONCURRENCY_LIMIT")


class TestWithoutAuthentication:
    async def test_nobody_is_asked_for_a_token(self, tmp_path: Path) -> None:
        async with sessions_in(tmp_path, PATIENT, auth_required=False) as sessions:
            async with sessions.dial("greeter") as client:
                await say(client, UPDATE)
                await sessions.worker.session()
            (call_id,) = sessions.worker.sessions
            assert (await sessions.record(call_id)).auth_id is None

    async def test_a_token_may_be_given(self, tmp_path: Path) -> None:
        async with sessions_in(tmp_path, PATIENT, auth_required=False) as sessions:
            async with sessions.dial("greeter") as client:
                await say(client, {"type": "auth", "token": SECRETS["acme"]})
                await say(client, UPDATE)
                await sessions.worker.session()
            (call_id,) = sessions.worker.sessions
            assert (await sessions.record(call_id)).auth_id == "acme"

    @pytest.mark.attack
    async def test_a_name_that_leads_here_by_rebinding_is_refused(self, tmp_path: Path) -> None:
        async with sessions_in(tmp_path, PATIENT, auth_required=False) as sessions:
            page = {"Host": "evil.example", "Origin": "http://evil.example"}
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await sessions.dial("greeter", headers=page)
            assert refused.value.status == 403


class TestEnds:
    @pytest.mark.parametrize(
        ("by_client", "at_worker"), [(1000, 1000), (1001, 1000), (4711, LOST), (None, LOST)]
    )
    async def test_the_worker_learns_how_the_client_left(
        self, sessions: Sessions, by_client: int | None, at_worker: int
    ) -> None:
        agent = await make_agent(sessions.gateway)
        async with sessions.dial(agent, await sessions.token(agent)) as client:
            await say(client, UPDATE)
            session = await sessions.worker.session()
            if by_client is None:
                client._response.connection.transport.abort()
            else:
                await client.close(code=by_client)
            assert await asyncio.wait_for(session.closes.get(), 10) == at_worker

    @pytest.mark.parametrize("code", [1000, 1007, 1013])
    async def test_the_client_gets_the_workers_code(self, sessions: Sessions, code: int) -> None:
        agent = await make_agent(sessions.gateway)
        async with sessions.dial(agent, await sessions.token(agent)) as client:
            await say(client, UPDATE)
            await (await sessions.worker.session()).close(code)
            assert await closed(client) == code

    @pytest.mark.parametrize("first", [None, {**UPDATE, "input": {"encoding": "opus"}}])
    async def test_a_call_that_did_not_begin_is_over(self, tmp_path: Path, first: Any) -> None:
        async with sessions_in(tmp_path, PATIENT) as sessions:
            agent = await make_agent(sessions.gateway)
            _, minted = await sessions.mint(agent)
            async with sessions.dial(agent, minted["token"]) as client:
                if first is not None:
                    await say(client, first)
                    assert (await heard(client))["code"] == "VALIDATION_ERROR"
                    assert await closed(client) == 1008
            path = f"/v1/calls/{minted['sessionId']}?wait=true&timeout=10"
            async with sessions.gateway.http.get(path, headers=operator()) as response:
                assert (await response.json())["status"] == "canceled"

    async def test_a_call_that_no_worker_took_says_so(self, sessions: Sessions) -> None:
        agent = await make_agent(sessions.gateway)
        _, minted = await sessions.mint(agent)
        sessions.worker.refusing = 503
        refused = await sessions.refused(agent, token=minted["token"], first=UPDATE)
        assert refused == (1013, "AGENT_UNAVAILABLE")
        assert await sessions.outcome(minted["sessionId"]) == ("failed", "agent_unavailable")
