"""Failures made to happen in whole calls with a real stream worker, and their diagnoses.

The plugins are the real ones, the providers are stand-ins that fail on demand; the calls are on
sockets, beside which nothing else can break.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from core.models import AgentConfig, CustomTool, McpServer
from core.recordings.config import Recording
from dev.providers import Control, Fault
from tests.support.diagnosis import diagnosis_of
from tests.support.receiver import Answer, Received, receiving
from tests.support.stream_rig import StreamWorker
from tests.support.worker_gateway import KeptCall
from tests.worker.test_call import CONTROL

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]

HOURS = "What are your opening hours?"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def worker() -> AsyncIterator[StreamWorker]:
    async with StreamWorker.run(CONTROL.model_copy(deep=True), grace_s=2.0) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session", autouse=True)
async def control(worker: StreamWorker) -> AsyncIterator[Control]:
    yield worker.providers.control
    await worker.providers.set_control(CONTROL.model_copy(deep=True))


def agent(**changes: Any) -> AgentConfig:
    values: dict[str, Any] = {"name": "Test", "voice_mode": "hosted", "begin_message": "Hello."}
    return AgentConfig(**(values | changes))


async def diagnosed(worker: StreamWorker, call: KeptCall) -> dict[str, Any]:
    """Return the diagnosis once the worker has left the call."""
    await call.event("agent.left", within_s=60)
    return await diagnosis_of(worker.http, call.id, gateway_url=worker.gateway.url)


async def test_a_good_call(worker: StreamWorker) -> None:
    async with worker.session(agent()) as (call, far):
        await far.send("text", text=HOURS)
        await call.until(lambda told: told.turns[1:] and told.turns[1].response, "an answer")
        await far.send("end")
    found = await diagnosed(worker, call)
    assert (found["verdict"], found["code"], found["others"]) == ("good", None, [])
    ready = next(line for line in found["timeline"] if line["type"] == "agent.ready")
    assert "deepgram/nova-3" in ready["what"] and "cartesia/sonic-3" in ready["what"]


class TestProviders:
    @pytest.mark.parametrize("stage", ["stt", "tts"])
    async def test_a_wrong_key_of_what_is_needed_at_once(
        self, worker: StreamWorker, control: Control, stage: str
    ) -> None:
        provider = control.deepgram if stage == "stt" else control.cartesia
        provider.faults = [Fault(kind="status", status=401, times=None)]
        call = await worker.record(agent(), direction="web")
        far = worker.far_end(call)
        await far.attach()
        found = await diagnosed(worker, call)
        await far.close()
        assert found["code"] == f"{stage}_key_wrong"
        name = {"stt": "deepgram/nova-3", "tts": "cartesia/sonic-3"}[stage]
        assert name in found["cause"]

    async def test_models(self, worker: StreamWorker, control: Control) -> None:
        """At the same time, because most of it is waiting for time-outs."""
        faults = {
            "llm_key_wrong": Fault(kind="status", status=401, times=None),
            "llm_quota": Fault(kind="rate_limit", times=None),
            "llm_timeout": Fault(kind="hang", times=None),
            "llm_unreachable": Fault(kind="drop", times=None),
            "llm_failed": Fault(kind="status", status=500, times=None),
        }
        control.openai.faults = [
            fault.model_copy(update={"model": code}) for code, fault in faults.items()
        ]
        first = ["openai/llm_key_wrong", "openai/llm_failed"]
        both, *each = await asyncio.gather(
            self.asked(worker, first), *(self.asked(worker, f"openai/{code}") for code in faults)
        )
        assert [found["code"] for found in each] == list(faults)
        assert all(f"openai/{found['code']}:" in found["cause"] for found in each)
        assert both["code"] == "llm_all_failed"
        assert "openai/llm_key_wrong: it refused the key" in both["cause"]

    async def asked(self, worker: StreamWorker, model: str | list[str]) -> dict[str, Any]:
        # There is no apology in Swedish, which would take seconds.
        async with worker.session(agent(model=model, language="sv")) as (call, far):
            await far.send("text", text=HOURS)
            return await diagnosed(worker, call)

    async def test_a_fallback(self, worker: StreamWorker, control: Control) -> None:
        control.openai.faults = [Fault(kind="status", times=None, model="a")]
        async with worker.session(agent(model=["openai/a", "openai/b"])) as (call, far):
            await far.send("text", text=HOURS)
            await call.until(lambda told: told.turns[1:] and told.turns[1].response, "an answer")
            await far.send("end")
        found = await diagnosed(worker, call)
        assert found["code"] == "provider_switched" and "openai/a" in found["cause"]

    async def test_a_slow_model(self, worker: StreamWorker, control: Control) -> None:
        control.openai.first_token_ms = 3300
        async with worker.session(agent()) as (call, far):
            await far.say("what are your opening hours")
            await call.until(lambda told: told.turns[1:] and told.turns[1].latency, "an answer")
            await far.send("end")
        found = await diagnosed(worker, call)
        assert found["code"] == "llm_slow" and "openai/gpt-4.1-mini" in found["cause"]


async def status_500(_: Received) -> web.StreamResponse:
    return web.Response(status=500)


async def status_404(_: Received) -> web.StreamResponse:
    return web.Response(status=404)


async def nonsense(_: Received) -> web.StreamResponse:
    return web.Response(text="{}", headers={"Content-Encoding": "br"})


async def never(_: Received) -> web.StreamResponse:
    await asyncio.sleep(5)
    return web.Response()


async def late(_: Received) -> web.StreamResponse:
    await asyncio.sleep(3.2)
    return web.json_response({"text": "Here I am."})


class TestWebhook:
    @pytest.mark.parametrize(
        ("answer", "code"),
        [
            (status_500, "webhook_server_error"),
            (status_404, "webhook_refused"),
            (nonsense, "webhook_broken"),
            (never, "webhook_timeout"),
            (late, "webhook_slow"),
            (None, "webhook_unreachable"),
        ],
    )
    async def test_that_answers(
        self, worker: StreamWorker, answer: Answer | None, code: str
    ) -> None:
        async with receiving() as receiver:
            url = "http://127.0.0.1:9/"
            if answer is not None:
                receiver.answers["/"] = answer
                url = f"{receiver.url}/"
            found = await self.asked_by(worker, url, timeout_s=2 if answer is never else 20)
        assert (found["code"], found["others"]) == (code, [])

    async def test_on_a_private_address(self) -> None:
        async with StreamWorker.run(webhook_allow_private=False) as strict:
            found = await self.asked_by(strict, "http://127.0.0.1:9/")
        assert found["code"] == "webhook_address_refused"

    async def asked_by(self, worker: StreamWorker, url: str, timeout_s: int = 20) -> dict[str, Any]:
        await worker.gateway.answer_by(url, timeout_s)
        async with worker.session(agent(voice_mode="webhook")) as (call, far):
            await far.send("text", text=HOURS)
            outcomes = ("webhook.failed", "webhook.replied")
            await call.until(lambda told: [e for e in told.events if e.type in outcomes], "a reply")
            await far.send("end")
        return await diagnosed(worker, call)


class TestAroundIt:
    async def test_a_tool_that_cannot_be_reached(self, worker: StreamWorker) -> None:
        tool = CustomTool(
            name="find_table",
            description="Finds a free table.",
            url="http://127.0.0.1:9/",
            parameters={"type": "object", "properties": {"day": {"type": "string"}}},
        )
        async with worker.session(agent(custom_tools=[tool])) as (call, far):
            await far.send("text", text="Is there a table for tonight?")
            await call.event("tool.called")
            await far.send("end")
        found = await diagnosed(worker, call)
        assert found["code"] == "tool_failed" and "find_table" in found["cause"]

    async def test_an_mcp_server_that_cannot_be_reached(self, worker: StreamWorker) -> None:
        server = McpServer(url="http://127.0.0.1:9/mcp")
        async with worker.session(agent(mcp_servers=[server])) as (call, far):
            await call.event("mcp.failed")
            await far.send("end")
        assert (await diagnosed(worker, call))["code"] == "mcp_failed"

    async def test_a_recording_without_a_place(self, tmp_path: Path) -> None:
        spool = tmp_path / "worker" / "spool"
        async with StreamWorker.run(CONTROL.model_copy(deep=True), folder=tmp_path) as own:
            spool.mkdir(exist_ok=True)
            (spool / "recordings").write_text("not a folder")
            config = agent(recording=Recording(enabled=True))
            async with own.session(config, record=True) as (call, far):
                await call.event("recording.failed")
                await far.send("end")
            found = await diagnosed(own, call)
        assert found["code"] == "recording_failed"

    async def test_a_socket_that_breaks(self, worker: StreamWorker) -> None:
        async with worker.session(agent()) as (call, far):
            await far.lose()
            found = await diagnosed(worker, call)
        assert found["code"] == "stream_lost"
        assert [gap["owed"] for gap in found["gaps"]] == ["the client's socket"]

    async def test_a_socket_that_comes_back(self, worker: StreamWorker) -> None:
        async with worker.session(agent()) as (call, far):
            await far.lose()
            await call.event("stream.lost")
            await far.attach(resume=True, last_seq=far.events[-1]["seq"])
            await far.send("end")
        assert (await diagnosed(worker, call))["code"] == "stream_interrupted"

    async def test_the_longest_duration(self, worker: StreamWorker) -> None:
        async with worker.session(agent(), max_duration_ms=1500) as (call, _):
            found = await diagnosed(worker, call)
        assert found["code"] == "max_duration"

    async def test_silence_and_no_sound(self, worker: StreamWorker) -> None:
        """One client sends no audio at all; the other's microphone works, but nobody speaks."""

        async def call(*, sound: bool) -> dict[str, Any]:
            async with worker.session(agent(max_silence_ms=10_000)) as (call, far):
                if sound:
                    await far.say("no wait I meant tomorrow")
                return await diagnosed(worker, call)

        silent, quiet = await asyncio.gather(call(sound=False), call(sound=True))
        assert silent["code"] == "one_way_audio"
        assert [other["code"] for other in silent["others"]] == ["silence"]
        assert (quiet["code"], quiet["others"]) == ("silence", [])

    async def test_a_worker_that_is_stopped(self) -> None:
        async with (
            StreamWorker.run(CONTROL.model_copy(deep=True)) as own,
            own.session(agent()) as (call, _),
        ):
            # Without a gateway, no other agent can be sent for.
            own.gateway.failing_with = 503
            closing = asyncio.create_task(own.server.aclose())
            await asyncio.sleep(3.5)
            own.gateway.failing_with = None
            await closing
            found = await diagnosed(own, call)
        assert found["code"] == "worker_stopped"
