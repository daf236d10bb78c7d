"""The public ``agentphone`` library for Python, unchanged, with our gateway as its base URL."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from agentphone import (  # type: ignore[import-untyped]
    AgentPhone,
    AgentPhoneError,
    AuthenticationError,
    NotFoundError,
    RateLimitError,
)
from aiohttp import web

from dev.phone import Phone, RingOut
from dev.scenario import GOODBYE, GOODBYE_ANSWER, OPENING, OPENING_ANSWER
from dev.stack import Stack
from tests.conftest import SECRETS, Gateway
from tests.support.calls import told
from tests.support.edge import served
from tests.support.inprocess import Running, running, settings_in
from tests.support.numbers import dial_nothing, make_agent, make_number
from tests.support.recordings import stored_call

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

TO = "+15551234567"
_numbers = itertools.count(5105550300)


async def do(method: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Run a blocking method of the library in a thread."""
    async with asyncio.timeout(60):
        return await asyncio.to_thread(method, *args, **options)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(stack: Stack) -> AsyncIterator[Any]:
    with closing(AgentPhone(SECRETS["acme"], base_url=stack.gateway_url)) as client:
        yield client


@dataclass(frozen=True)
class Line:
    """An agent with a number whose calls go out to a phone."""

    client: Any
    agent: Any
    number_id: str

    async def call(self, **options: Any) -> Any:
        return await do(self.client.calls.make, self.agent.id, TO, **options)

    async def over(self, call_id: str) -> Any:
        """Poll the call until it has ended, as the library's users must, and return it."""
        async with asyncio.timeout(40):
            while True:
                call = await do(self.client.calls.get, call_id)
                if call.ended_at is not None:
                    return call
                await asyncio.sleep(0.2)


async def attached(gateway: Gateway, **fields: Any) -> str:
    """Attach a trunk's number, which the library cannot do, and return its id."""
    body = {"provider": "sip", "phoneNumber": f"+1{next(_numbers)}", **fields}
    answer = await gateway.post("/api/v1/phone-numbers/attach", json=body)
    assert answer.status == 201, answer.body
    return str(answer.body["data"]["id"])


@pytest_asyncio.fixture(loop_scope="session")
async def line(gateway: Gateway, client: Any, phone: Phone) -> AsyncIterator[Line]:
    name = f"trunk-{next(_numbers)}"
    answer = await gateway.post(
        "/api/v1/credentials", json={"name": name, "provider": "sip", "address": phone.address}
    )
    assert answer.status == 201, answer.body
    number_id = await attached(gateway, credentialsRef=name)
    agent = await do(client.agents.create, "Caller", voice_mode="hosted", system_prompt="Talk.")
    await do(client.agents.attach_number, agent.id, number_id)
    yield Line(client, agent, number_id)
    await do(client.numbers.release, number_id)


class TestAgents:
    async def test_the_life_of_an_agent(self, client: Any) -> None:
        made = await do(
            client.agents.create,
            "Support",
            description="Answers.",
            voice_mode="hosted",
            model_tier="turbo",
            system_prompt="You help.",
            begin_message="Hello.",
            language="de",
            max_silence_ms=20_000,
            interruption_sensitivity=0.5,
            voice_speed=1.5,
        )
        assert (made.name, made.description, made.voice_mode) == ("Support", "Answers.", "hosted")
        assert (made.model_tier, made.begin_message, made.language) == ("turbo", "Hello.", "de")
        assert (made.max_silence_ms, made.voice_speed) == (20_000, 1.5)
        assert made.numbers == []
        assert await do(client.agents.get, made.id) == made
        changed = await do(client.agents.update, made.id, name="Sales", begin_message="Hi.")
        assert (changed.name, changed.begin_message) == ("Sales", "Hi.")
        assert (changed.system_prompt, changed.language) == ("You help.", "de")
        assert [voice["id"] for voice in await do(client.agents.list_voices)] == [made.voice]
        assert (await do(client.agents.delete, made.id))["success"]
        with pytest.raises(NotFoundError):
            await do(client.agents.get, made.id)

    async def test_what_it_can_say_and_we_do_not_serve_is_taken(self, client: Any) -> None:
        made = await do(client.agents.create, "Quiet", ambient_sound="office", stt_mode="fast")
        assert made.name == "Quiet"
        await do(client.agents.delete, made.id)

    async def test_pages(self, client: Any) -> None:
        before = (await do(client.agents.list, limit=1)).total
        made = [(await do(client.agents.create, f"Agent {n}")).id for n in range(3)]
        first = await do(client.agents.list, limit=2)
        assert [agent.id for agent in first.data] == [made[2], made[1]]
        assert (first.has_more, first.total) == (True, before + 3)
        last = await do(client.agents.list, limit=100, offset=before + 2)
        assert (len(last.data), last.has_more) == (1, False)
        for agent_id in made:
            await do(client.agents.delete, agent_id)


async def test_numbers(gateway: Gateway, client: Any) -> None:
    number_id = await attached(gateway)
    number = await do(client.numbers.get, number_id)
    assert (number.id, number.country, number.status) == (number_id, "US", "active")
    assert (number.agent_id, number.inbound_calls_enabled) == (None, True)
    page = await do(client.numbers.list, limit=1)
    assert page.data == [number]
    assert page.has_more == (page.total > 1)
    agent = await do(client.agents.create, "Receptionist")
    await do(client.agents.attach_number, agent.id, number_id)
    (bound,) = (await do(client.agents.get, agent.id)).numbers
    assert (bound.id, bound.phone_number) == (number_id, number.phone_number)
    assert (await do(client.numbers.get, number_id)).agent_id == agent.id
    await do(client.agents.detach_number, agent.id, number_id)
    assert (await do(client.agents.get, agent.id)).numbers == []
    assert (await do(client.numbers.get, number_id)).agent_id is None
    await do(client.agents.attach_number, agent.id, number_id)
    await do(client.agents.delete, agent.id)
    assert (await do(client.numbers.get, number_id)).agent_id is None
    assert (await do(client.numbers.release, number_id))["success"]
    with pytest.raises(NotFoundError):
        await do(client.numbers.get, number_id)


class TestCalls:
    async def test_a_conversation(self, line: Line, phone: Phone) -> None:
        greeting = "Grüß Gott."
        placed = await line.call(initial_greeting=greeting)
        assert placed.status in {"queued", "ringing", "in-progress"}
        assert (placed.to_number, placed.direction) == (TO, "outbound")
        assert (placed.agent_id, placed.phone_number_id) == (line.agent.id, line.number_id)
        assert placed.from_number == placed.phone_number
        streamed = asyncio.create_task(do(list, line.client.calls.stream_transcript(placed.id)))
        call = await phone.next_call(10)
        await call.answered(10)
        await call.listen(20)
        await call.say(OPENING)
        await call.listen(20)
        await call.say(GOODBYE)
        await call.ended(20)

        over = await line.over(placed.id)
        assert over.status == "completed"
        assert over.duration_seconds > 0
        answers = [greeting, OPENING_ANSWER, GOODBYE_ANSWER]
        assert [turn.response for turn in over.transcripts] == answers
        assert over.last_transcript_snippet == GOODBYE_ANSWER

        connected, *turns, ended = await streamed
        assert connected["event"] == "connected"
        assert {turn["event"] for turn in turns} == {"turn"}
        newest = {turn["data"]["id"]: turn["data"]["response"] for turn in turns}
        assert list(newest.values()) == answers
        assert ended == {"event": "ended", "data": {"status": "completed"}}

        transcript = await do(line.client.calls.get_transcript, placed.id)
        assert transcript["callId"] == placed.id
        assert [turn["response"] for turn in transcript["transcripts"]] == answers
        with pytest.raises(NotFoundError):
            await do(line.client.calls.get_recording, placed.id)
        for page in (
            await do(line.client.agents.list_calls, line.agent.id),
            await do(line.client.numbers.list_calls, line.number_id),
        ):
            assert [one.id for one in page.data] == [placed.id]
            assert (page.total, page.has_more) == (1, False)
        # The record outlives its agent.
        await do(line.client.agents.delete, line.agent.id)
        assert (await do(line.client.calls.get, placed.id)).agent_id == line.agent.id

    async def test_hung_up(self, gateway: Gateway, line: Line, phone: Phone) -> None:
        phone.behave(RingOut())
        placed = await do(
            line.client.calls.make_conversation,
            line.agent.id,
            TO,
            "Ask for {{name}}.",
            from_number_id=line.number_id,
            model_tier="max",
        )
        call = await phone.next_call(10)
        await told(gateway, placed.id, "call.ringing")
        assert (await do(line.client.calls.end, placed.id))["status"] == "canceled"
        await call.ended(10)
        assert (await line.over(placed.id)).status == "canceled"
        with pytest.raises(AgentPhoneError) as refused:
            await do(line.client.calls.end, placed.id)
        assert refused.value.status == 409

    async def test_from_the_browser_and_in_pages(self, line: Line) -> None:
        made = []
        for number in range(3):
            web = await do(
                line.client.calls.create_web_call,
                line.agent.id,
                metadata={"visitor": number},
                variables={"name": "Ann"},
            )
            assert web["accessToken"]
            assert (await do(line.client.calls.end, web["callId"]))["type"] == "web"
            made.append(web["callId"])
        first = await do(line.client.agents.list_calls, line.agent.id, limit=2)
        assert [call.id for call in first.data] == [made[2], made[1]]
        assert (first.has_more, first.total) == (True, 3)
        last = await do(line.client.agents.list_calls, line.agent.id, limit=2, offset=2)
        assert [call.id for call in last.data] == [made[0]]
        assert not last.has_more
        found = await do(line.client.calls.list, type="web", status="canceled", search=made[1])
        assert [call.id for call in found.data] == [made[1]]


async def hears(_request: web.Request) -> web.Response:
    return web.json_response({"text": "Hello."})


async def test_webhooks(tmp_path: Path) -> None:
    listener = web.Application()
    listener.router.add_post("/", hears)
    async with (
        served(listener) as heard,
        running(settings_in(tmp_path, webhook_allow_private=True)) as gateway,
    ):
        agent = await make_agent(gateway)
        url = f"http://127.0.0.1:{heard.port}/"
        with closing(AgentPhone(SECRETS["acme"], base_url=await address(gateway))) as client:
            assert await do(client.webhooks.get) is None
            made = await do(client.webhooks.set, url, context_limit=5, timeout=20)
            assert (made.url, made.context_limit, made.timeout) == (url, 5, 20)
            assert made.secret.startswith("whsec_")
            assert await do(client.webhooks.get) == made
            await do(client.webhooks.test, message="Anybody there?")
            (delivery,) = await do(client.webhooks.list_deliveries)
            assert delivery.http_status == 200
            stats = await do(client.webhooks.get_delivery_stats)
            assert (stats.total, stats.success) == (1, 1)
            own = await do(client.agents.set_webhook, agent.id, url)
            assert own.id != made.id
            assert (await do(client.agents.get_webhook, agent.id)) == own
            await do(client.agents.delete_webhook, agent.id)
            assert await do(client.agents.get_webhook, agent.id) is None
            await do(client.webhooks.delete)
            assert await do(client.webhooks.get) is None


async def address(gateway: Running) -> str:
    async with gateway.http.get("/healthz") as response:
        return str(response.url.origin())


async def test_a_recording(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path)) as gateway:
        recorded = await stored_call(gateway, tmp_path)
        with closing(AgentPhone(SECRETS["acme"], base_url=await address(gateway))) as client:
            got = await do(client.calls.get_recording, recorded.call.id)
            assert (got.content, got.content_type) == (recorded.audio, "audio/wav")
            call = await do(client.calls.get, recorded.call.id)
            assert call.recording_available
            assert f"{recorded.path}?token=" in call.recording_url
            await recorded.delete()
            with pytest.raises(AgentPhoneError, match="deleted"):
                await do(client.calls.get_recording, recorded.call.id)


class TestErrors:
    """The library raises its own exceptions, with our messages."""

    async def test_they_are_raised(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        dial_nothing(monkeypatch)
        settings = settings_in(tmp_path, calls_per_second=0.001, sip_outbound_address="127.0.0.1:9")
        async with running(settings) as gateway:
            agent = await make_agent(gateway)
            await make_number(gateway, agent=agent)
            url = await address(gateway)
            with closing(AgentPhone(SECRETS["acme"], base_url=url)) as client:
                for method, words in (
                    (client.agents.get, "Agent not found"),
                    (client.agents.delete, "Agent not found"),
                    (client.numbers.get, "Phone number not found"),
                    (client.numbers.list_calls, "Phone number not found"),
                    (client.calls.get, "Call not found"),
                    (client.calls.get_recording, "Call not found"),
                ):
                    with pytest.raises(NotFoundError, match=words):
                        await do(method, "nothing")
                with pytest.raises(NotFoundError, match="Call not found"):
                    await do(list, client.calls.stream_transcript("nothing"))
                with pytest.raises(AgentPhoneError, match="limit") as refused:
                    await do(client.calls.list, limit=101)
                assert refused.value.status == 422
                await do(client.calls.make, agent.id, TO, system_prompt="Talk.")
                with pytest.raises(RateLimitError, match="calls per second"):
                    await do(client.calls.make, agent.id, TO, system_prompt="Talk.")
            with (
                closing(AgentPhone("wrong", base_url=url)) as stranger,
                pytest.raises(AuthenticationError, match="UNAUTHORIZED"),
            ):
                await do(stranger.agents.list)
