"""Every function that dials or refers a phone is preceded by the destination policy."""

from __future__ import annotations

import ast
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.models import Agent, AgentConfig, CallEvent, new_id
from core.tokens import TokenIssuer
from dev.stack.options import ROOT
from gateway.calls.policy import DialPolicy
from tests.conftest import ACME, bearer
from tests.support.inprocess import SECRET, Running
from tests.support.livekit_stub import LiveKitStub, running_with
from tests.support.numbers import make_agent, make_number

pytestmark = [pytest.mark.store, pytest.mark.attack]

TO, FROM = "+15551230077", "+15105550123"
DIALS = {
    "create_sip_participant",
    "transfer_sip_participant",
    "Dial",
    "refer",
    "place_call",
    "run_twiml",
}
ASKS = {"check", "_admit"}
# Functions that dial or refer → the one that asks the policy. The sip package never asks.
WAYS = {
    "sip/dial.py:Dial._run": "",  # begun only by Dial(…)
    "sip/refer.py:refer": "",
    "worker/handover/transfer.py:Transfers._refer": "",  # through the line, which asks the gateway
    "gateway/api/sip_transfer.py:create": "gateway/api/sip_transfer.py:create",
    "gateway/calls/transfers.py:Transfers._refer": "gateway/calls/transfers.py:Transfers._refer",
    "gateway/calls/transfers.py:Transfers._dial": "gateway/calls/transfers.py:Transfers._dial",
    "gateway/calls/outbound.py:Outbound._dial": "gateway/calls/outbound.py:Outbound._admit",
    "gateway/calls/streams/transfers.py:TwilioTransfers.dial": (
        "gateway/calls/transfers.py:Transfers._dial_by_twilio"
    ),
    "gateway/calls/tasks/dialler.py:Dialler._ask": "gateway/calls/tasks/dialler.py:Dialler.admit",
}


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from functions(node, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{node.name}", node


def called(function: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the last name of each called function, and the line of the call."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                yield node.func.attr, node.lineno
            elif isinstance(node.func, ast.Name):
                yield node.func.id, node.lineno


def source_functions() -> Iterator[tuple[str, ast.AST]]:
    for package in ("core", "gateway", "sip", "worker"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name.startswith("sip/bridge/"):
                continue
            for function, node in functions(ast.parse(path.read_text())):
                yield f"{name}:{function}", node


def test_nobody_else_dials_or_refers() -> None:
    found = {
        name: node
        for name, node in source_functions()
        if any(what in DIALS for what, _ in called(node))
    }
    assert found.keys() == WAYS.keys(), "a new way out has to ask the policy, and to stand here"
    everything = dict(source_functions())
    for dialler, asker in WAYS.items():
        if asker:
            lines = {what: line for what, line in called(everything[asker]) if what in ASKS}
            assert "check" in lines, asker
            if asker == dialler:
                first = min(line for what, line in called(found[dialler]) if what in DIALS)
                assert lines["check"] < first, dialler
    # Outbound's public methods admit a call before they start a task for it.
    begins = {"_place", "_accept"}
    for name, node in everything.items():
        if name.startswith("gateway/") and begins & {what for what, _ in called(node)}:
            assert name in {
                "gateway/calls/outbound.py:Outbound.place",
                "gateway/calls/outbound.py:Outbound.accept",
            }
            order = [what for what, _ in sorted(called(node), key=lambda call: call[1])]
            assert order[0] == "_admit", name
    # Each attempt of a task is checked before it begins, however old the task is.
    asks = {name for name, node in everything.items() if "_ask" in dict(called(node))}
    assert {name for name in asks if name.startswith("gateway/calls/tasks/")} == {
        "gateway/calls/tasks/dialler.py:Dialler.dial"
    }
    lines = dict(called(everything["gateway/calls/tasks/dialler.py:Dialler.dial"]))
    assert lines["admit"] < lines["begin"] < lines["_ask"]


@pytest.fixture
def livekit() -> LiveKitStub:
    return LiveKitStub()


@pytest.fixture
async def gateway(tmp_path: Path, livekit: LiveKitStub) -> AsyncIterator[Running]:
    async with running_with(livekit, tmp_path, sip_outbound_address="trunk.example.com") as running:
        yield running


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The destinations and caller IDs that the policy is asked about; it refuses all."""
    destinations: list[tuple[str, str]] = []

    def refuse(
        self: DialPolicy,
        destination: str,
        *,
        from_number: str = "",
        trunk_country: str | None = None,
        tenant: bool = True,
    ) -> str:
        destinations.append((destination, from_number))
        return "closed"

    monkeypatch.setattr(DialPolicy, "objection", refuse)
    return destinations


SIP_CALL = {
    "room_name": "r",
    "participant_name": "n",
    "participant_identity": "i",
    "from_phone_number": FROM,
    "to_phone_number": TO,
}


async def post(
    gateway: Running, path: str, body: dict[str, Any], **headers: str
) -> tuple[int, Any]:
    async with gateway.http.post(path, json=body, headers={**ACME, **headers}) as response:
        return response.status, await response.json()


async def credential(gateway: Running, headers: dict[str, str] = ACME) -> str:
    """Store a Twilio account; return its credential's id."""
    body = {"name": "main", "provider": "twilio", "accountSid": "AC" + "1" * 32}
    async with gateway.http.post(
        "/api/v1/credentials", json={**body, "authToken": "token"}, headers=headers
    ) as response:
        return str((await response.json())["data"]["id"])


class TestRefused:
    async def test_sip_call(
        self, gateway: Running, livekit: LiveKitStub, asked: list[tuple[str, str]]
    ) -> None:
        status, body = await post(gateway, "/sip/call", SIP_CALL)
        assert (status, body["code"]) == (403, "DESTINATION_NOT_ALLOWED")
        assert (asked, livekit.dialled) == ([(TO, FROM)], [])

    async def test_the_dry_run_says_what_the_call_would(
        self, gateway: Running, livekit: LiveKitStub, asked: list[tuple[str, str]]
    ) -> None:
        status, body = await post(gateway, "/sip/call", {**SIP_CALL, "dry_run": True})
        assert (status, body["policy"]) == (200, {"allowed": False, "reason": "closed"})
        assert (asked, livekit.dialled) == ([(TO, FROM)], [])

    async def test_a_call_from_a_number(
        self, gateway: Running, livekit: LiveKitStub, asked: list[tuple[str, str]]
    ) -> None:
        agent = await make_agent(gateway)
        own = (await make_number(gateway, agent=agent)).phone_number
        call = {"agentId": agent.id, "toNumber": TO}
        session = {**call, "channel": "voice", "fromNumber": own}
        for path, body in (
            ("/v1/calls", call),
            ("/api/v1/sessions", session),
            ("/api/v1/sessions/dispatch", session),
        ):
            status, answer = await post(gateway, path, body)
            assert status == 403 and "DESTINATION_NOT_ALLOWED" in str(answer), path
        assert (asked, livekit.dialled) == ([(TO, own)] * 3, [])

    async def test_a_task(
        self, gateway: Running, livekit: LiveKitStub, asked: list[tuple[str, str]]
    ) -> None:
        agent = await make_agent(gateway)
        own = await make_number(
            gateway, agent=agent, provider="twilio", credential_id=await credential(gateway)
        )
        status, answer = await post(gateway, f"/v1/agents/{agent.id}/tasks", {"to": TO})
        assert (status, answer["error"]["code"]) == (403, "DESTINATION_NOT_ALLOWED")
        assert (asked, livekit.dialled) == ([(TO, own.phone_number)], [])

    @pytest.mark.parametrize("target", [TO, f"tel:{TO}", "sip:19005551234@pbx", "sip:bob@pbx"])
    async def test_sip_transfer(
        self, gateway: Running, livekit: LiveKitStub, asked: list[tuple[str, str]], target: str
    ) -> None:
        body = {"room_name": "r", "participant_identity": "i", "transfer_to": target}
        status, answer = await post(gateway, "/sip/transfer", body)
        assert (status, answer["code"]) == (403, "DESTINATION_NOT_ALLOWED")
        ((destination, _),) = asked
        assert destination == (f"tel:{TO}" if target == TO else target)
        assert livekit.referred == []

    @pytest.mark.parametrize("mode", ["cold", "warm"])
    async def test_an_agents_transfer(
        self, gateway: Running, livekit: LiveKitStub, asked: list[tuple[str, str]], mode: str
    ) -> None:
        values: dict[str, Any] = {"transfer_number": TO, "transfer_mode": mode}
        config = AgentConfig(name="Ann", **values)
        call = await gateway.call(agent=Agent(id="greeter", version=1, config=config))
        await gateway.store.append(call.id, [CallEvent(type="call.answered")], "gateway")
        status, body = await post(
            gateway,
            f"/internal/calls/{call.id}/transfer",
            {"transferId": new_id("trf")},
            **bearer(TokenIssuer(SECRET).for_call(call.id)),
        )
        assert (status, body["outcome"]) == (200, "not_allowed")
        assert asked == [(f"tel:{TO}" if mode == "cold" else TO, FROM)]
        assert (livekit.dialled, livekit.referred) == ([], [])


@pytest.mark.parametrize("owner", ["acme", None])
async def test_the_policy_is_told_whether_it_is_a_tenants_call(
    tmp_path: Path, livekit: LiveKitStub, monkeypatch: pytest.MonkeyPatch, owner: str | None
) -> None:
    """Every way out says so. Without authentication every client is the operator."""
    tenants: list[bool | None] = []

    def refuse(self: DialPolicy, destination: str, **context: Any) -> str:
        tenants.append(context.get("tenant"))
        return "closed"

    monkeypatch.setattr(DialPolicy, "objection", refuse)
    options = {"sip_outbound_address": "trunk.example.com", "auth_required": owner is not None}
    headers = ACME if owner is not None else {}
    async with running_with(livekit, tmp_path, **options) as gateway:
        transfer = {"room_name": "r", "participant_identity": "i", "transfer_to": TO}
        for path, body in (
            ("/sip/call", SIP_CALL),
            ("/sip/call", {**SIP_CALL, "dry_run": True}),
            ("/sip/transfer", transfer),
        ):
            async with gateway.http.post(path, json=body, headers=headers) as response:
                assert response.status in {200, 403}
        for mode in ("cold", "warm"):
            values: dict[str, Any] = {"transfer_number": TO, "transfer_mode": mode}
            agent = Agent(id="greeter", version=1, config=AgentConfig(name="Ann", **values))
            call = await gateway.call(agent=agent, auth_id=owner, participant_identity=mode)
            await gateway.store.append(call.id, [CallEvent(type="call.answered")], "gateway")
            await post(
                gateway,
                f"/internal/calls/{call.id}/transfer",
                {"transferId": new_id("trf")},
                **bearer(TokenIssuer(SECRET).for_call(call.id)),
            )
        agent = await make_agent(gateway, owner)
        twilio = {"provider": "twilio", "credential_id": await credential(gateway, headers)}
        await make_number(gateway, owner, agent, **twilio)
        path = f"/v1/agents/{agent.id}/tasks"
        async with gateway.http.post(path, json={"to": TO}, headers=headers) as response:
            assert response.status == 403
    assert tenants == [owner is not None] * 6


@pytest.mark.parametrize(
    ("home", "target", "allowed"),
    [
        ("US", "9005551234", False),
        ("US", "tel:9005551234", False),
        ("US", "sip:9005551234@pbx.example.com", False),
        ("US", "sip:+90055512349@pbx.example.com", False),
        ("DE", "09001234567", False),
        ("US", "4155550199", True),
        ("US", "sip:1000@pbx.example.com", True),
        ("US", "sip:sales@pbx.example.com", True),
    ],
)
async def test_a_transfer_is_read_as_a_call_is(
    tmp_path: Path, livekit: LiveKitStub, home: str, target: str, allowed: bool
) -> None:
    async with running_with(livekit, tmp_path, dial_home_country=home) as gateway:
        body = {"room_name": "r", "participant_identity": "i", "transfer_to": target}
        status, answer = await post(gateway, "/sip/transfer", body)
        refused = (status, answer["code"]) == (403, "DESTINATION_NOT_ALLOWED")
        assert refused is not allowed, answer


@pytest.mark.parametrize(("country", "allowed"), [(None, True), ("US", False)])
async def test_the_country_of_a_trunk_counts(
    gateway: Running, livekit: LiveKitStub, country: str | None, allowed: bool
) -> None:
    """The country is that of the credential of the number that a human is dialled from."""
    trunk = {"name": "office", "provider": "sip", "address": "pbx.example.com", "country": country}
    status, body = await post(gateway, "/api/v1/credentials", trunk)
    assert status == 201
    own = await make_number(gateway, phone_number="+33142345678", credential_id=body["data"]["id"])
    # A Turkish number that is too short, or an American one behind a needless "+".
    config = AgentConfig(name="Ann", transfer_number="+9002345678", transfer_mode="warm")
    call = await gateway.call(
        agent=Agent(id="greeter", version=1, config=config), phone_number_id=own.id
    )
    await gateway.store.append(call.id, [CallEvent(type="call.answered")], "gateway")
    _, result = await post(
        gateway,
        f"/internal/calls/{call.id}/transfer",
        {"transferId": new_id("trf")},
        **bearer(TokenIssuer(SECRET).for_call(call.id)),
    )
    assert (result["outcome"] == "not_allowed") is not allowed, result
    assert len(livekit.dialled) == allowed
