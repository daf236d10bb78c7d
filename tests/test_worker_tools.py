"""The agent's tools, against a real HTTP server and a room that records tones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from livekit import rtc

from core.models import CustomTool
from worker import actions, http_tools
from worker.actions import Actions, no_transfer
from worker.http_tools import MAX_RESPONSE_BYTES, ToolAnswer
from worker.tools import KeyPresses, ToolBox

pytestmark = pytest.mark.unit


class Server:
    """Answers as told; keeps what was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[tuple[str, dict[str, str], Any, dict[str, str]]] = []
        self.hang = asyncio.Event()
        self.was_asked = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        headers = {name: request.headers.get(name, "") for name in ("X-Call-Id", "X-Tool-Name")}
        self.was_asked.set()
        self.asked.append((request.method, dict(request.query), body, headers))
        match request.path:
            case "/ok":
                return web.json_response({"free": True})
            case "/empty":
                return web.Response(status=204)
            case "/error":
                return web.Response(status=500, text="secret stack trace")
            case "/long":
                return web.Response(body=b"x" * (MAX_RESPONSE_BYTES + 1))
            case "/full":
                return web.Response(body=b"x" * MAX_RESPONSE_BYTES)
            case "/moved":
                raise web.HTTPFound("/ok")
            case _:
                await self.hang.wait()
                return web.Response()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{name}", server.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    server.hang.set()
    await runner.cleanup()


async def ask(server: Server, path: str, **changes: Any) -> ToolAnswer:
    values: dict[str, Any] = {"name": "lookup", "description": "Looks up.", **changes}
    tool = CustomTool(url=server.url + path, **values)
    async with aiohttp.ClientSession() as http:
        return await http_tools.request(
            http, tool, {"day": "Friday", "people": 4, "note": None}, call_id="call_1"
        )


async def test_post_sends_the_arguments_as_json(server: Server) -> None:
    answer = await ask(server, "/ok")
    assert answer.ok
    assert json.loads(answer.text) == {"free": True}
    arguments = {"day": "Friday", "people": 4, "note": None}
    headers = {"X-Call-Id": "call_1", "X-Tool-Name": "lookup"}
    assert server.asked == [("POST", {}, arguments, headers)]


async def test_get_sends_them_as_a_query(server: Server) -> None:
    assert (await ask(server, "/ok", method="GET")).ok
    assert server.asked[0][:3] == ("GET", {"day": "Friday", "people": "4"}, None)


async def test_an_empty_answer_is_still_one(server: Server) -> None:
    assert await ask(server, "/empty") == ToolAnswer(True, "Done.")


async def test_an_error_is_told_without_its_text(server: Server) -> None:
    answer = await ask(server, "/error")
    assert not answer.ok
    assert "500" in answer.text
    assert "secret" not in answer.text


async def test_a_timeout_is_an_error(server: Server) -> None:
    answer = await ask(server, "/hang", timeout_ms=100)
    assert answer == ToolAnswer(False, "Error: the tool did not answer in time.")


async def test_redirects_are_not_followed(server: Server) -> None:
    answer = await ask(server, "/moved")
    assert not answer.ok
    assert len(server.asked) == 1


async def test_answers_are_bounded(server: Server) -> None:
    assert not (await ask(server, "/long")).ok
    assert len((await ask(server, "/full")).text) == MAX_RESPONSE_BYTES


async def test_nobody_there(server: Server) -> None:
    server.url = "http://127.0.0.1:9"
    assert await ask(server, "/ok") == ToolAnswer(False, "Error: the tool could not be reached.")


class ToneRoom:
    """As much of a room as sending tones needs."""

    def __init__(self) -> None:
        self.tones: list[tuple[int, str]] = []
        self.local_participant = self

    async def publish_dtmf(self, *, code: int, digit: str) -> None:
        self.tones.append((code, digit))


@pytest.fixture
def quick_tones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "_TONE_GAP_S", 0)


async def test_digits_have_the_codes_of_rfc_4733(quick_tones: None, box: Box) -> None:
    assert await box.box.actions.press(" 09*#aD") == "09*#AD"
    room = box.room
    assert room.tones == [(0, "0"), (9, "9"), (10, "*"), (11, "#"), (12, "A"), (15, "D")]


class Box:
    """A tool box, and what its tools did."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.room = ToneRoom()
        self.hung_up = 0
        self.box = ToolBox(
            call_id="call_1",
            http=http,
            post=self._post,
            actions=Actions(
                room=cast(rtc.Room, self.room),
                post=self._post,
                hang_up=self._hang_up,
                transfer=no_transfer,
            ),
        )

    def _post(self, type: str, data: dict[str, Any]) -> None:
        self.events.append((type, data))

    def _hang_up(self) -> None:
        self.hung_up += 1

    async def run(self, name: str, custom: list[CustomTool], **arguments: Any) -> str:
        (tool,) = [
            tool
            for tool in self.box.tools(custom)
            if getattr(tool, "info", None) is not None and cast(Any, tool).info.name == name
        ]
        return str(await cast(Any, tool)(raw_arguments=arguments, context=None))


@pytest.fixture
async def box() -> AsyncIterator[Box]:
    async with aiohttp.ClientSession() as http:
        yield Box(http)


async def test_send_dtmf(box: Box, quick_tones: None) -> None:
    assert await box.run("send_dtmf", [], digits="1 #") == "Pressed 1#."
    assert box.room.tones == [(1, "1"), (11, "#")]
    assert box.events[0] == ("dtmf.sent", {"digits": "1#"})
    assert box.events[-1][1]["ok"] is True


async def test_send_dtmf_refuses_what_no_keypad_has(box: Box) -> None:
    assert (await box.run("send_dtmf", [], digits="1x")).startswith("Error")
    assert box.room.tones == []
    assert [(type, data["ok"]) for type, data in box.events] == [("tool.called", False)]


async def test_a_custom_tool_is_on_the_timeline(box: Box, server: Server) -> None:
    lookup = CustomTool(name="lookup", description="Looks up.", url=server.url + "/ok")
    broken = CustomTool(name="broken", description="Breaks.", url=server.url + "/error")
    assert json.loads(await box.run("lookup", [lookup, broken], day="Friday")) == {"free": True}
    assert (await box.run("broken", [lookup, broken])).startswith("Error")
    assert [(type, data["name"], data["ok"]) for type, data in box.events] == [
        ("tool.called", "lookup", True),
        ("tool.called", "broken", False),
    ]
    assert all(data["durationMs"] >= 0 for _, data in box.events)


async def test_an_interrupted_tool_did_not_succeed(box: Box, server: Server) -> None:
    slow = CustomTool(name="slow", description="Is slow.", url=server.url + "/hang")
    running = asyncio.create_task(box.run("slow", [slow]))
    await server.was_asked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [data["ok"] for _, data in box.events] == [False]


async def test_keys_pressed_together_are_one_turn() -> None:
    turns: list[str] = []
    done = asyncio.Event()

    def on_digits(digits: str) -> None:
        turns.append(digits)
        done.set()

    keys = KeyPresses(on_digits, window_s=0)
    for digit in "42#":
        keys.pressed(digit)
    await done.wait()
    assert turns == ["42#"]
    done.clear()
    keys.pressed("7")
    await done.wait()
    assert turns == ["42#", "7"]


async def test_keys_pressed_at_the_end_are_forgotten() -> None:
    turns: list[str] = []
    keys = KeyPresses(turns.append, window_s=0)
    keys.pressed("1")
    keys.close()
    for _ in range(3):
        await asyncio.sleep(0)
    assert turns == []
