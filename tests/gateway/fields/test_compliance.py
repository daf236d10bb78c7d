"""A field about recording or consent is never ignored: it is refused if it asks for anything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from gateway.fields import compliance
from gateway.lookup.agent_files import AgentFiles, BadAgentFile
from tests.conftest import ACME
from tests.support.inprocess import Running, running, settings_in
from tests.support.numbers import dial_nothing, make_agent, make_number

pytestmark = [pytest.mark.unit, pytest.mark.attack, pytest.mark.asyncio(loop_scope="module")]

NOTHING: list[tuple[str, Any]] = [
    ("record", False),
    ("record", None),
    ("recording", False),
    ("recording", {}),
    ("recording", {"enabled": False}),
    ("recording", {"enabled": None}),
    ("recording", {"enabled": False, "retentionDays": 30}),
    ("disableRecording", True),
    ("disableRecording", False),
    ("disclosure", None),
    ("disclosure", {"text": ""}),
    ("consent", {"mode": "none"}),
    ("consent", {}),
]
SOMETHING: list[tuple[str, Any]] = [
    ("record", True),
    ("record", 1),
    ("record", "false"),
    ("record", {}),
    ("recording", True),
    ("recording", {"enabled": True}),
    ("recording", {"enabled": "no"}),
    ("recording", {"enabled": 0}),
    ("recording", {"enabled": 1}),
    ("recording", {"Enabled": True}),
    ("recording", {"enabled": None, "channels": 2}),
    ("recording", [{"enabled": False}]),
    ("recording", "s3://bucket"),
    ("disableRecording", "true"),
    ("disclosure", {"text": "This call is recorded."}),
    ("disclosure", {"text": " "}),
    ("disclosure", "This call is recorded."),
    ("disclosure", {"message": "This call is recorded."}),
    ("consent", {"mode": "opt_in"}),
    ("consent", {"mode": "announcement"}),
    ("consent", {"mode": ["none"]}),
    ("consent", "opt_in"),
    ("consent", True),
]


@pytest.mark.parametrize(("field", "value"), NOTHING)
async def test_what_asks_for_nothing(field: str, value: Any) -> None:
    assert compliance.faults({"name": "One", field: value}) == []


@pytest.mark.parametrize(("field", "value"), SOMETHING)
async def test_what_asks_for_something(field: str, value: Any) -> None:
    (fault,) = compliance.faults({"name": "One", field: value})
    assert (fault.field, fault.type) == (field, "not_served")


@pytest.mark.parametrize(("field", "value"), SOMETHING[:9:2] + SOMETHING[14::2])
async def test_an_agent_file(tmp_path: Path, field: str, value: Any) -> None:
    config = {"name": "One", field: value}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(BadAgentFile, match=rf"^one\.yaml: {field}: "):
        AgentFiles(tmp_path).check()


async def test_an_agent_file_that_asks_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(
        "name: One\nrecording: {enabled: off}\ndisclosure: {}\nconsent: {mode: none}\n"
    )
    assert AgentFiles(tmp_path).check() == ["one"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    settings = settings_in(tmp_path_factory.mktemp("gateway"), sip_outbound_address="h")
    with pytest.MonkeyPatch.context() as patch:
        async with running(settings) as own:
            dial_nothing(patch)
            yield own


SIP_CALL = {
    "room_name": "room",
    "participant_name": "Ann",
    "participant_identity": "ann",
    "from_phone_number": "+15105550123",
    "to_phone_number": "+15551234567",
}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/agents", 422),
        ("/v1/agents/{agent}", 422),
        ("/v1/calls", 422),
        ("/v1/calls/web", 422),
        ("/api/v1/sessions", 422),
        ("/api/v1/sessions/dispatch", 422),
        ("/sip/call", 400),
    ],
)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("record", True),
        ("recording", {"enabled": True}),
        ("disclosure", {"text": "Recorded."}),
        ("consent", {"mode": "opt_in"}),
    ],
)
async def test_no_request_ignores_it(
    gateway: Running, path: str, status: int, field: str, value: Any
) -> None:
    agent = await make_agent(gateway)
    number = await make_number(gateway, agent=agent)
    bodies: dict[str, dict[str, Any]] = {
        "/v1/agents": {"name": "One"},
        "/v1/agents/{agent}": {"name": "Two"},
        "/v1/calls": {"agentId": agent.id, "toNumber": "+15551234567"},
        "/v1/calls/web": {"agentId": agent.id},
        "/sip/call": SIP_CALL,
    }
    session = {"agentId": agent.id, "channel": "voice", "fromNumber": number.phone_number}
    body = bodies.get(path, {**session, "toNumber": "+15551234567"})
    method = "PATCH" if "{" in path else "POST"
    path = path.format(agent=agent.id)
    body = {**body, field: value}
    async with gateway.http.request(method, path, json=body, headers=ACME) as response:
        answer = await response.json()
        assert response.status == status, answer
        assert "X-Ignored-Fields" not in response.headers
    details = answer.get("meta", answer.get("error"))
    if isinstance(details, dict):
        assert details["details"][0]["field"] == field
    else:
        assert answer["code"] == "INVALID_REQUEST"
        assert field in answer["error"]
