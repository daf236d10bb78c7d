"""Agents whose turns a webhook answers: the calls that they take, and their worker's brief."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.jobs import CallBrief
from core.models import new_id
from core.tokens import TokenIssuer
from gateway.calls.plan import CallPlan
from gateway.keys import AGENT_STORE, WEBHOOKS
from gateway.store.database import Scope
from tests.conftest import ACME, bearer
from tests.support.inprocess import SECRET, Running, running, settings_in
from tests.support.livekit_stub import LiveKitStub, running_with
from tests.support.numbers import dial_nothing, make_agent, make_number

pytestmark = pytest.mark.store

ISSUER = TokenIssuer(SECRET)
URL = "https://hooks.example.com/voice"
TO = "+14155550199"
NONE_SET = (409, "WEBHOOK_NOT_CONFIGURED")


@pytest.fixture(autouse=True)
def plans(monkeypatch: pytest.MonkeyPatch) -> list[CallPlan]:
    return dial_nothing(monkeypatch)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    (tmp_path / "filed.yaml").write_text(yaml.safe_dump({"name": "Filed", "voiceMode": "webhook"}))
    address = "trunk.example.com"
    async with running_with(LiveKitStub(), tmp_path, sip_outbound_address=address) as started:
        yield started


async def hook(gateway: Running, agent_id: str = "", owner: str = "acme") -> str:
    """Set a webhook and return its secret."""
    endpoint = await gateway.app[WEBHOOKS].put(
        owner, agent_id, url=URL, context_limit=5, timeout_s=20
    )
    return endpoint.secret


async def requests(gateway: Running, agent_id: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the requests that start an agent's call: by path, the key of an error and the body."""
    number = await make_number(gateway)
    path = f"/v1/agents/{agent_id}/numbers"
    async with gateway.http.post(path, json={"numberId": number.id}, headers=ACME) as answer:
        assert answer.status == 200, await answer.text()
    sip_call = {
        "room_name": new_id("room"),
        "participant_name": "John Doe",
        "participant_identity": "caller",
        "from_phone_number": "+15105550123",
        "to_phone_number": TO,
        "agent": agent_id,
        "dry_run": True,
    }
    dispatch = {"channel": "voice", "fromNumber": number.phone_number, "toNumber": TO}
    return {
        "/sip/call": ("code", sip_call),
        "/v1/calls": ("error", {"agentId": agent_id, "toNumber": TO}),
        "/v1/calls/web": ("error", {"agentId": agent_id}),
        "/api/v1/sessions/dispatch": ("meta", {"agentId": agent_id, **dispatch}),
    }


async def outcomes(gateway: Running, agent_id: str) -> set[tuple[int, str | None]]:
    found = set()
    for path, (where, body) in (await requests(gateway, agent_id)).items():
        async with gateway.http.post(path, json=body, headers=ACME) as answer:
            text = await answer.json()
            told = text.get(where, {})
            code = told if isinstance(told, str) else told.get("code")
            found.add((answer.status, code))
    return found


class TestCalls:
    async def test_none_without_a_webhook(self, gateway: Running) -> None:
        agent = await make_agent(gateway, voice_mode="webhook")
        other = await make_agent(gateway)
        await hook(gateway, other.id)
        await hook(gateway, owner="rival")
        await hook(gateway, agent.id, owner="rival")
        for agent_id in (agent.id, "filed"):
            assert await outcomes(gateway, agent_id) == {NONE_SET}

    @pytest.mark.parametrize("own", [True, False])
    @pytest.mark.parametrize("filed", [True, False])
    async def test_with_the_agents_or_the_projects(
        self, gateway: Running, own: bool, filed: bool
    ) -> None:
        agent_id = "filed" if filed else (await make_agent(gateway, voice_mode="webhook")).id
        await hook(gateway, agent_id if own else "")
        assert await outcomes(gateway, agent_id) == {(200, None), (202, None)}

    async def test_a_prompt_of_its_own_needs_none(
        self, gateway: Running, plans: list[CallPlan]
    ) -> None:
        agent = await make_agent(gateway, voice_mode="webhook")
        await make_number(gateway, agent=agent)
        body = {"agentId": agent.id, "toNumber": TO, "systemPrompt": "Sell tea."}
        async with gateway.http.post("/v1/calls", json=body, headers=ACME) as answer:
            assert answer.status == 200
        assert plans[0].agent is not None
        assert plans[0].agent.config.voice_mode == "hosted"


class TestBrief:
    """The brief that a call's worker gets."""

    async def brief(self, gateway: Running, call_id: str) -> dict[str, Any]:
        path = f"/internal/calls/{call_id}"
        async with gateway.http.get(path, headers=bearer(ISSUER.for_call(call_id))) as answer:
            assert answer.status == 200
            return dict(await answer.json())

    async def test_has_the_webhook_of_the_calls_owner(self, gateway: Running) -> None:
        agent = await make_agent(gateway, voice_mode="webhook")
        call = await gateway.call(agent=agent, phone_number_id="num_1")
        assert (await self.brief(gateway, call.id))["webhook"] is None
        await hook(gateway, owner="rival")
        assert (await self.brief(gateway, call.id))["webhook"] is None
        for agent_id in ("", agent.id):
            secret = await hook(gateway, agent_id)
            told = await self.brief(gateway, call.id)
            assert told["webhook"] == {
                "url": URL,
                "secret": secret,
                "contextLimit": 5,
                "timeoutS": 20,
            }
            assert told["phoneNumberId"] == "num_1"

    async def test_of_an_operators_call(self, gateway: Running) -> None:
        call = await gateway.call(
            agent=await make_agent(gateway, None, voice_mode="webhook"), auth_id=None
        )
        await hook(gateway)
        assert (await self.brief(gateway, call.id))["webhook"] is None
        secret = await hook(gateway, owner="")
        assert (await self.brief(gateway, call.id))["webhook"]["secret"] == secret

    async def test_has_none_for_a_hosted_agent(self, gateway: Running) -> None:
        await hook(gateway)
        call = await gateway.call(agent=await make_agent(gateway))
        assert (await self.brief(gateway, call.id))["webhook"] is None

    async def test_a_secret_that_cannot_be_read_is_as_none(self, tmp_path: Path) -> None:
        async with running(settings_in(tmp_path)) as gateway:
            await hook(gateway)
            call = await gateway.call(agent=await make_agent(gateway, voice_mode="webhook"))
            assert (await self.brief(gateway, call.id))["webhook"] is not None
        (tmp_path / "secrets.key").unlink()
        async with running(settings_in(tmp_path)) as gateway:
            assert (await self.brief(gateway, call.id))["webhook"] is None

    async def test_the_secret_shows_nowhere_else(self, gateway: Running) -> None:
        secret = await hook(gateway)
        call = await gateway.call(agent=await make_agent(gateway, voice_mode="webhook"))
        told = await self.brief(gateway, call.id)
        brief = CallBrief.model_validate(told)
        assert brief.revealed() == told
        for shown in (repr(brief), str(brief.wire()), brief.model_dump_json(), str(vars(brief))):
            assert secret not in shown


async def test_a_changed_voice_mode_counts_for_the_next_call(gateway: Running) -> None:
    agent = await make_agent(gateway, voice_mode="webhook")
    await hook(gateway)
    path = f"/v1/agents/{agent.id}"
    for mode in ("hosted", "webhook"):
        async with gateway.http.patch(path, json={"voiceMode": mode}, headers=ACME) as answer:
            assert (await answer.json())["voiceMode"] == mode
    config = {"fallbackMessage": "One moment, please."}
    async with gateway.http.patch(path, json=config, headers=ACME) as answer:
        assert (await answer.json())["fallbackMessage"] == "One moment, please."
    async with gateway.http.patch(
        path, json={"fallbackMessage": "x" * 501}, headers=ACME
    ) as answer:
        assert answer.status == 422
    record = await gateway.app[AGENT_STORE].get(Scope("acme"), agent.id)
    assert record is not None and record.version == 4
