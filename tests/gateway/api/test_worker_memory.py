"""What workers report of tools is for the call's next agent, and for nobody else."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.models import CallEvent, Turn
from tests.conftest import ACME, RIVAL, bearer, operator
from tests.gateway.api.test_calls import over, types
from tests.gateway.api.test_worker import ISSUER, ask, tell
from tests.gateway.store.test_call_memory import PATIENT, RESULT, answered, called
from tests.support.inprocess import Running, running, settings_in

pytestmark = [pytest.mark.store, pytest.mark.attack]


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_in(tmp_path)) as started:
        yield started


async def brief(gateway: Running, call_id: str, epoch: int = 0) -> Any:
    headers = bearer(ISSUER.for_call(call_id, epoch=epoch))
    status, body = await ask(gateway, "GET", f"/internal/calls/{call_id}", headers)
    assert status == 200, body
    return body


async def test_the_next_agent_is_told_what_ran(gateway: Running) -> None:
    call = await gateway.call()
    first = await brief(gateway, call.id)
    assert (first["remembers"], first["recovered"]) == (True, None)
    turn = Turn(id="turn_1", transcript="do I have an appointment")
    asked = CallEvent(type="turn", data=turn.wire())
    batch = [each.wire() for each in (asked, called(), answered(), called("call_2", name="book"))]
    assert await tell(gateway, call.id, *batch) == (200, {"accepted": 1, "over": False})
    lost = CallEvent(type="agent.lost", data={"epoch": 0, "why": "killed"})
    await gateway.store.append(call.id, [lost], "gateway")
    tools = (await brief(gateway, call.id, epoch=1))["recovered"]["tools"]
    assert tools == [
        {"called": called().data, "answered": answered().data},
        {"called": called("call_2", name="book").data, "answered": None},
    ]
    # Of the lost agent's last events some may come later.
    status, answer = await tell(gateway, call.id, answered("call_2").wire())
    assert (status, answer) == (200, {"accepted": 0, "over": True})
    tools = (await brief(gateway, call.id, epoch=1))["recovered"]["tools"]
    assert tools[1]["answered"] == answered("call_2").data


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("test.db*"))


async def test_nobody_else_sees_it(
    gateway: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    call = await gateway.call()
    await tell(gateway, call.id, called().wire(), answered().wire())
    disk = on_disk(tmp_path)
    await tell(gateway, call.id, over().wire())
    seen = ""
    for headers in (ACME, RIVAL, operator()):
        for path in ("", "/events", "/diagnosis", "/transcript", "/transcript/stream"):
            url = f"/v1/calls/{call.id}{path}"
            async with gateway.http.get(url, headers=headers) as response:
                text = await response.text()
            seen += text
            if path == "/events" and headers is ACME:
                assert types(text) == ["call.queued", "call.ended", "ended"]
    for word in (PATIENT, RESULT, "find_patient", "memory."):
        assert word not in seen
        assert word not in caplog.text
    for word in (PATIENT, RESULT, "find_patient"):
        assert word.encode() not in disk
    assert b"call_memory" in disk


@pytest.mark.parametrize(
    "bad",
    [
        called(id="x" * 129),
        called(arguments={"name": PATIENT * 1000}),
        called(arguments=[PATIENT]),
        answered(result=PATIENT * 2000),
        CallEvent(type="memory.of_nothing", data={"id": PATIENT}),
    ],
    ids=range(5),
)
async def test_what_is_no_memory_is_refused_and_not_quoted(
    gateway: Running, bad: CallEvent
) -> None:
    call = await gateway.call()
    status, answer = await tell(gateway, call.id, bad.wire())
    assert status == 422
    assert PATIENT not in str(answer)
    assert await gateway.store.tools(call.id) == []


async def test_a_token_of_an_agent_to_come_writes_nothing(gateway: Running) -> None:
    call = await gateway.call()
    headers = bearer(ISSUER.for_call(call.id, epoch=1))
    body = {"events": [called().wire()]}
    status, _ = await ask(gateway, "POST", f"/internal/calls/{call.id}/events", headers, json=body)
    assert (status, await gateway.store.tools(call.id)) == (200, [])
