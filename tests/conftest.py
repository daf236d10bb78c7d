"""Fixtures of the stack tests: one running system per test process, two tenants, phones."""

from __future__ import annotations

import gc
import json
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import hypothesis
import jwt
import pytest
import pytest_asyncio
import yaml
from livekit.api import LiveKitAPI

from dev import scenario
from dev.demo import reservations_server
from dev.phone import Phone
from dev.stack import Stack, StackOptions
from dev.stack.options import HOST
from dev.stack.ports import PORTS
from tests.support.databases import postgres as postgres
from tests.support.s3_server import s3_server as s3_server

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

JWT_SECRET = "a-test-secret-of-more-than-32-bytes!"
SECRETS = {"acme": "acme-secret-0123456789", "rival": "rival-secret-0123456789"}
# Credentials for SIP_OUTBOUND_ADDRESS, which must never be sent anywhere else.
GLOBAL_USER, GLOBAL_PASSWORD = "global-user", "global-passw0rd"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# Settings of every stack whose gateway authenticates its clients.
AUTH = {
    "auth_required": True,
    "auth_jwt_secret": JWT_SECRET,
    "auth_api_secrets_json": json.dumps(
        [{"id": tenant, "secret": secret} for tenant, secret in SECRETS.items()]
    ),
    # Otherwise a test would have to approve each number before it can be called.
    "sip_numbers_need_approval": False,
    # Otherwise one tenant could not fill the only worker.
    "fair_share_reserve": 0,
}
ACME, RIVAL = bearer(SECRETS["acme"]), bearer(SECRETS["rival"])


def operator() -> dict[str, str]:
    """Return the headers of a valid token without a tenant (the seed's "auth.id is absent")."""
    claims = {"exp": datetime.now(UTC) + timedelta(minutes=10)}
    return bearer(jwt.encode(claims, JWT_SECRET, algorithm="HS256"))


@dataclass
class Answered:
    status: int
    body: Any
    headers: Any

    @property
    def code(self) -> str:
        return str(self.body.get("code"))


class Gateway:
    """A client of the running gateway."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.headers = ACME

    async def request(self, method: str, path: str, **options: Any) -> Answered:
        options.setdefault("headers", ACME)
        async with self.session.request(method, path, **options) as response:
            text = await response.text()
            return Answered(response.status, json.loads(text) if text else None, response.headers)

    async def get(self, path: str, **options: Any) -> Answered:
        return await self.request("GET", path, **options)

    async def post(self, path: str, **options: Any) -> Answered:
        return await self.request("POST", path, **options)


@pytest.fixture(scope="session")
def exchange_port() -> Iterator[int]:
    """The port of SIP_OUTBOUND_ADDRESS."""
    port = PORTS.take(HOST)
    yield port
    PORTS.give_back(port)


@pytest_asyncio.fixture(loop_scope="session")
async def exchange(exchange_port: int) -> AsyncIterator[Phone]:
    """The phone at SIP_OUTBOUND_ADDRESS, which gets every call that names no other host."""
    async with Phone(port=exchange_port) as phone:
        yield phone


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def reservations() -> AsyncIterator[str]:
    """The URL of the server that the restaurant's agent books tables with."""
    async with reservations_server() as url:
        yield url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(
    exchange_port: int, reservations: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    """livekit-server, bridge, providers, gateway and worker, with authentication on."""
    agents = tmp_path_factory.mktemp("agents")
    write_agents(agents, reservations)
    options = StackOptions(
        values={
            "agents_dir": agents,
            "default_agent": "greeter",
            "recordings_url": tmp_path_factory.mktemp("recordings").as_uri(),
            **AUTH,
            "sip_outbound_address": f"{HOST}:{exchange_port}",
            "sip_outbound_auth_username": GLOBAL_USER,
            "sip_outbound_auth_password": GLOBAL_PASSWORD,
            # The tests' webhook servers are on loopback.
            "webhook_allow_private": True,
            "log_level": "DEBUG",
        },
    )
    async with Stack(options) as running:
        await running.set_providers(scenario.control())
        yield running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest modules first, so that all processes end at about the same time.

    Refuse a test without a category: it would not be among those that ``dev.suite`` runs first.
    """
    if apart := {item.path.name for item in items if not _CATEGORIES & _marks(item)}:
        raise pytest.UsageError(f"without one of the marks {sorted(_CATEGORIES)}: {sorted(apart)}")
    here = Path(__file__).parent
    last = len(_LONGEST)
    place = {path: number for number, path in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(str(item.path.relative_to(here)), last))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep what is collected from the garbage collector, from the beginning.

    A process holds all 12,800 tests and their modules to its end; a sixth of its CPU went into
    looking at them again and again (measured with five of the modules alone), and a tenth of the
    collection's.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        gc.enable()


_CATEGORIES = {"unit", "store", "stack", "sip", "providers", "repo"}


def _marks(item: pytest.Item) -> set[str]:
    return {mark.name for mark in item.iter_markers()}


# The slowest files, about in this order: those of many seconds, most of them spent waiting.
_LONGEST = (
    "system/test_endings.py",
    "worker/test_faults.py",
    "dev/stack/test_stack.py",
    "worker/test_call.py",
    "worker/streams/test_consent_calls.py",
    "gateway/numbers/test_attach.py",
    "system/test_inbound.py",
    "gateway/api/test_schemathesis.py",
    "worker/lines/test_contract.py",
    "system/test_streams.py",
    "worker/streams/test_process.py",
    "sip/bridge/test_process.py",
    "worker/streams/test_socket_calls.py",
    "worker/streams/test_twilio_calls.py",
    "system/test_transfers.py",
    "gateway/diagnosis/test_made_at_the_worker.py",
    "gateway/store/test_outbox_killed.py",
    "gateway/calls/test_gateway_killed.py",
    "system/test_masks.py",
    "system/test_session_clients.py",
    "dev/bench/test_streams_sides.py",
    "worker/test_handed_over.py",
    "worker/streams/test_redacted_calls.py",
    "worker/test_line.py",
    "worker/streams/test_soak.py",
    "system/test_conversation.py",
    "system/test_webhook_calls.py",
    "system/test_voicemail.py",
    "system/test_calls.py",
    "worker/test_policies.py",
    "worker/test_killed.py",
    "sip/test_contract.py",
    "gateway/store/test_outbox.py",
    "gateway/api/test_sip_call_tenancy.py",
    "system/test_event_loops.py",
    "system/test_inbound_changes.py",
    "dev/setup/test_livekit_server.py",
    "recordings/test_crashes.py",
    "dev/speech/test_speech.py",
    "worker/voice/test_fallback.py",
)

GREETING = "Welcome to the corner restaurant."


def write_agents(directory: Path, tool_url: str | None = None) -> None:
    greeter = {"name": "Greeter", "voiceMode": "hosted", "beginMessage": GREETING}
    (directory / "greeter.yaml").write_text(yaml.safe_dump(greeter))
    if tool_url is not None:
        restaurant = scenario.agent(tool_url, {**greeter, "name": "Restaurant"})
        (directory / "restaurant.yaml").write_text(yaml.safe_dump(restaurant))
        recorded = {**restaurant, "name": "Recorded", "recording": {"enabled": True}}
        (directory / "recorded.yaml").write_text(yaml.safe_dump(recorded))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gateway(stack: Stack) -> AsyncIterator[Gateway]:
    async with aiohttp.ClientSession(stack.gateway_url) as session:
        yield Gateway(session)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def livekit(stack: Stack) -> AsyncIterator[LiveKitAPI]:
    api = stack.api()
    yield api
    await api.aclose()


@pytest_asyncio.fixture(loop_scope="session")
async def phone(request: pytest.FixtureRequest) -> AsyncIterator[Phone]:
    async with Phone() as phone:
        yield phone
    if "stack" in request.fixturenames:
        await _replace_the_dead(request.getfixturevalue("stack"))


async def _replace_the_dead(stack: Stack) -> None:
    """Fail the test in which a part crashed, and restart the part for the tests that follow."""
    for part in stack.components.values():
        if not part.running:
            code, log = part.process.returncode, part.process.log_text(this_run=True)
            await part.start()
            pytest.fail(f"{part.name} ended with exit code {code}; its log ended:\n{log[-3000:]}")
