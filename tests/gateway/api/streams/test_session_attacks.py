"""WS /v1/agents/{id}/session under attack: tokens, origins, and what is said first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from gateway.keys import call_services
from gateway.store.database import Principal
from tests.conftest import ACME, SECRETS
from tests.support.inprocess import SECRET
from tests.support.numbers import make_agent
from tests.support.session_rig import Sessions, closed, frame, say, sessions_in

pytestmark = [pytest.mark.store, pytest.mark.attack]

UPDATE = {"type": "session.update"}
NOT_VALID = (1008, "UNAUTHORIZED")


@pytest.fixture
async def sessions(tmp_path: Path) -> AsyncIterator[Sessions]:
    async with sessions_in(tmp_path) as sessions:
        yield sessions


class TestTokens:
    @pytest.mark.parametrize("way", ["protocol", "message"])
    async def test_forged_and_foreign_ones(self, sessions: Sessions, way: str) -> None:
        agent = await make_agent(sessions.gateway)
        good = await sessions.token(agent)
        header, claims, signature = good.split(".")
        call_id = jwt.decode(good, options={"verify_signature": False})["sub"]
        services = call_services(sessions.gateway.app)
        forged = {
            "garbage": "x",
            "none": jwt.encode({"sub": call_id, "aud": "switchroom:session"}, "", "none"),
            "livekit's key": jwt.encode({"sub": call_id, "aud": "switchroom:session"}, SECRET),
            "a worker's": services.tokens.for_call(call_id),
            "a gateway's": services.tokens.for_stream(call_id),
            "tampered": f"{header}.{claims[:-2]}AA.{signature}",
            "cut": good[:-3],
        }
        for name, token in forged.items():
            if way == "protocol":
                refused = await sessions.refused(agent, token=token, first=UPDATE)
            else:
                refused = await sessions.refused(agent, first={"type": "auth", "token": token})
            assert refused == NOT_VALID, name
        assert not sessions.worker.asked
        async with sessions.dial(agent, good) as client:
            await say(client, UPDATE)
            await sessions.worker.session()

    async def test_an_api_token_is_no_subprotocol(self, sessions: Sessions) -> None:
        """A proxy or a browser's tools may show it there."""
        agent = await make_agent(sessions.gateway)
        assert await sessions.refused(agent, token=SECRETS["acme"]) == NOT_VALID

    async def test_one_that_has_expired(self, sessions: Sessions) -> None:
        agent = await make_agent(sessions.gateway)
        token = await sessions.token(agent)
        sessions.gateway.clock.forward(timedelta(seconds=61))
        assert await sessions.refused(agent, token=token) == NOT_VALID

    async def test_one_that_was_used(self, sessions: Sessions) -> None:
        agent = await make_agent(sessions.gateway)
        token = await sessions.token(agent)
        async with sessions.dial(agent, token) as client:
            await say(client, UPDATE)
            await sessions.worker.session()
            assert await sessions.refused(agent, token=token) == NOT_VALID

    async def test_ten_sockets_at_once_with_the_same_one(self, sessions: Sessions) -> None:
        agent = await make_agent(sessions.gateway)
        token = await sessions.token(agent)
        clients = await asyncio.gather(*(sessions.dial(agent, token) for _ in range(10)))
        session = await sessions.worker.session()
        reading = [asyncio.create_task(closed(client)) for client in clients]
        for over in asyncio.as_completed(reading, timeout=10):
            assert await over == 1008
            if sum(task.done() for task in reading) == 9:
                break
        await session.close()
        assert 1000 in await asyncio.gather(*reading)
        assert len(session.attaches) == 1

    async def test_another_agents(self, sessions: Sessions) -> None:
        agents = [await make_agent(sessions.gateway) for _ in range(2)]
        _, minted = await sessions.mint(agents[0])
        assert await sessions.refused(agents[1], token=minted["token"]) == NOT_VALID
        assert await sessions.outcome(minted["sessionId"]) == ("canceled", "canceled")

    async def test_a_twilio_sessions(self, sessions: Sessions) -> None:
        agent = await make_agent(sessions.gateway)
        _, token = await call_services(sessions.gateway.app).stream_sessions.open(
            Principal("acme"),
            agent,
            kind="twilio",
            direction="inbound",
            metadata={},
            record=False,
        )
        assert await sessions.refused(agent, token=token.text) == NOT_VALID

    @pytest.mark.parametrize("query", ["?token={}", "?access_token={}", "?a=b"])
    async def test_one_in_the_address(self, sessions: Sessions, query: str) -> None:
        agent = await make_agent(sessions.gateway)
        token = await sessions.token(agent)
        for headers in ({}, ACME):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await sessions.dial(agent, query=query.format(token), headers=headers)
            assert refused.value.status == 400

    @pytest.mark.parametrize(
        "protocols", [("token.x",), ("switchroom", "token.x", "token.y"), ("graphql-ws",)]
    )
    async def test_subprotocols_that_are_none(
        self, sessions: Sessions, protocols: tuple[str, ...]
    ) -> None:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await sessions.dial("greeter", protocols=protocols)
        assert refused.value.status == 400

    async def test_none_gets_into_a_log(
        self, sessions: Sessions, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        agent = await make_agent(sessions.gateway)
        used, unused = await sessions.token(agent), await sessions.token(agent)
        async with sessions.dial(agent, used) as client:
            await say(client, UPDATE)
            session = await sessions.worker.session()
        await sessions.refused(agent, token=used)
        await sessions.refused(agent, first={"type": "auth", "token": used})
        for options in ({"protocols": (f"token.{unused}",)}, {"query": f"?token={unused}"}):
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await sessions.dial(agent, **options)
        # The gateway has no access log (gateway.__main__).
        records = [record for record in caplog.records if record.name != "aiohttp.access"]
        shown = str([(record.getMessage(), vars(record)) for record in records])
        for token in (used, unused, session.attaches[0]["resumeToken"]):
            assert token not in shown and token.rsplit(".")[-1] not in shown


class TestOrigins:
    @pytest.mark.parametrize(
        "origin",
        [
            "https://evil.example",
            "null",
            "",
            "file://",
            "https://voice.example.com.evil.example",
            "https://voice.example.com:8443",
            "http://voice.example.com",
            "https://user@voice.example.com",
            "https://evil.example/https://voice.example.com",
            "http://[::1",
        ],
    )
    async def test_a_foreign_page(self, tmp_path: Path, origin: str) -> None:
        async with sessions_in(tmp_path, public_url="https://voice.example.com") as sessions:
            token = await sessions.token(agent := await make_agent(sessions.gateway))
            protocols = ("switchroom", f"token.{token}")
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await sessions.dial(agent, protocols=protocols, headers={"Origin": origin})
            assert refused.value.status == 403
            assert not sessions.worker.asked

    @pytest.mark.parametrize(
        ("origin", "changes"),
        [
            ("https://voice.example.com", {}),
            ("HTTPS://Voice.Example.com:443", {}),
            ("https://app.example.com", {"session_origins": "https://app.example.com/"}),
            ("https://evil.example", {"session_origins": "*"}),
            ("null", {"session_origins": "*"}),
            ("{own}", {}),
            ("https{own}", {}),
        ],
    )
    async def test_a_page_of_ours(
        self, tmp_path: Path, origin: str, changes: dict[str, Any]
    ) -> None:
        public: dict[str, Any] = {"public_url": "https://voice.example.com"}
        async with sessions_in(tmp_path, **public, **changes) as sessions:
            url = sessions.gateway.http._build_url("/")
            own = str(url.origin())
            origin = origin.replace("https{own}", own.replace("http", "https"))
            headers = {"Origin": origin.replace("{own}", own)}
            agent = await make_agent(sessions.gateway)
            protocols = ("switchroom", f"token.{await sessions.token(agent)}")
            async with sessions.dial(agent, protocols=protocols, headers=headers) as client:
                await say(client, UPDATE)
                await sessions.worker.session()


class TestFirstWords:
    @pytest.mark.parametrize(
        "first",
        [
            None,
            b"\x00\x01" * 320,
            UPDATE,
            {"type": "resume", "sessionId": "call_1", "lastSeq": 0},
            "not JSON",
            {"type": "auth", "token": "x"},
        ],
    )
    async def test_without_a_valid_token_there_is_nothing(
        self, sessions: Sessions, first: Any
    ) -> None:
        assert await sessions.refused("greeter", first=first) == NOT_VALID
        assert not sessions.worker.asked

    @pytest.mark.parametrize(
        "auth", [{}, {"token": 7}, {"token": None}, {"token": ""}, {"token": "x" * 8193}]
    )
    async def test_an_auth_that_is_none(self, sessions: Sessions, auth: Any) -> None:
        refused = await sessions.refused("greeter", first={"type": "auth", **auth})
        assert refused == (1008, "VALIDATION_ERROR")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"variables": 7},
            {"variables": {"a": 7}},
            {"variables": {"a": "x" * 5_001}},
            {"variables": {"who": "x" * 2_001}},
            {"variables": {str(n): "" for n in range(101)}},
            {"input": {"encoding": "opus"}},
            {"input": {"encoding": "pcm_s16le", "sampleRate": 8_000}},
            {"output": {"encoding": "audio/x-mulaw", "sampleRate": 16_000}},
            {"output": {"sampleRate": "16000"}},
            {"output": []},
        ],
    )
    async def test_an_update_that_is_none(self, sessions: Sessions, wrong: Any) -> None:
        agent = await make_agent(sessions.gateway, begin_message="{{who}}")
        token = await sessions.token(agent)
        refused = await sessions.refused(agent, token=token, first={**UPDATE, **wrong})
        assert refused == (1008, "VALIDATION_ERROR")
        assert not sessions.worker.asked

    @pytest.mark.parametrize(
        "wrong",
        [{"sessionId": 7}, {"sessionId": "x" * 65}, {"lastSeq": -1}, {"lastSeq": "1"}]
        + [{"lastSeq": 2**64}, {"lastSeq": 1.5}, {"lastSeq": True}],
    )
    async def test_a_resume_that_is_none(self, sessions: Sessions, wrong: Any) -> None:
        first = {"type": "resume", "sessionId": "call_1", "lastSeq": 0, **wrong}
        refused = await sessions.refused("greeter", first=first, headers=ACME)
        assert refused == (1008, "VALIDATION_ERROR")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            "null",
            "[" * 20_000,
            '{"type":' * 5_000,
            '{"type": ["auth"]}',
            '{"type": {"auth": 1}}',
            '{"type": "session.update", "variables": {"a": "\\u0000"}}',
            '{"type": "session.update", "variables": {"a": "\\ud800"}}',
            '{"type": "session.update", "x": NaN}',
            '{"type": "resume", "lastSeq": 1' + "0" * 5_000 + "}",
        ],
    )
    async def test_what_is_not_understood_is_for_the_worker(
        self, sessions: Sessions, text: str
    ) -> None:
        """It counts malformed messages, and closes with 1007 if there are too many."""
        agent = await make_agent(sessions.gateway)
        async with sessions.dial(agent, await sessions.token(agent)) as client:
            await say(client, text)
            session = await sessions.worker.session()
            assert await session.frames.get() == text.encode()

    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_a_message_of_a_megabyte(self, sessions: Sessions, when: str) -> None:
        agent = await make_agent(sessions.gateway)
        token = await sessions.token(agent) if when == "after" else None
        async with sessions.dial(agent, token) as client:
            if when == "after":
                await say(client, UPDATE)
                session = await sessions.worker.session()
            await say(client, b"x" * 2**20)
            assert await closed(client) == 1009
            if when == "after":
                assert session.frames.empty()

    async def test_an_auth_for_those_who_need_none_is_ignored(self, sessions: Sessions) -> None:
        agent = await make_agent(sessions.gateway)
        async with sessions.dial(agent, await sessions.token(agent)) as client:
            await say(client, {"type": "auth", "token": "not a token"})
            await say(client, {"type": "ping"})
            session = await sessions.worker.session()
            assert await frame(session) == {"type": "ping"}, "the token does not reach the worker"
        (call_id,) = sessions.worker.sessions
        assert (await sessions.record(call_id)).auth_id == "acme"
