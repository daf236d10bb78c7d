"""The requests of custom tools, to a real HTTP server."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from core.models import CustomTool
from core.url_guard import guarded_session
from tests.worker.tools.tool_server import Server
from tests.worker.tools.tool_server import server as server
from worker.privacy.secrets import Secrets
from worker.tools import http as http_tools
from worker.tools.http import MAX_RESPONSE_BYTES, ToolAnswer

pytestmark = pytest.mark.unit


async def ask(server: Server, path: str, **changes: Any) -> ToolAnswer:
    values: dict[str, Any] = {"name": "lookup", "description": "Looks up.", **changes}
    tool = CustomTool(url=server.url + path, **values)
    async with guarded_session(allow_private=True) as http:
        return await http_tools.request(
            http,
            tool,
            {"day": "Friday", "people": 4, "note": None},
            call_id="call_1",
            key="call_1:call_a",
            secrets=Secrets(),
        )


async def test_the_owners_headers_go_along(server: Server) -> None:
    given = {"Authorization": "Bearer s3cret", "User-Agent": "us"}
    assert (await ask(server, "/ok", headers=given)).ok
    sent = {name: server.headers[name] for name in (*given, "X-Call-Id", "Accept-Encoding")}
    assert sent == {**given, "X-Call-Id": "call_1", "Accept-Encoding": "identity"}


async def test_each_use_has_its_key_whatever_the_owner_set(server: Server) -> None:
    assert (await ask(server, "/ok", headers={"idempotency-key": "theirs"})).ok
    assert server.headers.getall("Idempotency-Key") == ["call_1:call_a"]
    assert server.asked[0][2] == {"day": "Friday", "people": 4, "note": None}


async def test_they_are_in_no_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    given = {"Authorization": "Bearer s3cret"}
    with caplog.at_level(logging.DEBUG):
        assert (await ask(server, "/ok", headers=given)).ok
        assert not (await ask(server, "/hang", headers=given, timeout_ms=100)).ok
        server.url = "http://127.0.0.1:9"
        assert not (await ask(server, "/ok", headers=given)).ok
    assert "tool failed" in caplog.text
    assert "s3cret" not in caplog.text + str([vars(record) for record in caplog.records])


async def test_a_private_address_is_not_asked(server: Server) -> None:
    tool = CustomTool(name="lookup", description="Looks up.", url=f"{server.url}/ok")
    async with guarded_session(allow_private=False) as http:
        answer = await http_tools.request(
            http, tool, {}, call_id="call_1", key="a", secrets=Secrets()
        )
    assert answer == ToolAnswer(False, "Error: the tool could not be reached.")
    assert server.asked == []


async def test_a_compressed_answer_is_not_unpacked(server: Server) -> None:
    assert await ask(server, "/bomb") == ToolAnswer(
        False, "Error: the tool's answer is compressed."
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
