"""Attaching with real processes: objects in the bridge, and gateways killed at each step."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from livekit.api import LiveKitAPI
from livekit.protocol.sip import (
    CreateSIPInboundTrunkRequest,
    DeleteSIPDispatchRuleRequest,
    DeleteSIPTrunkRequest,
    ListSIPDispatchRuleRequest,
    ListSIPInboundTrunkRequest,
    SIPInboundTrunkInfo,
)

from core.models import PhoneNumber
from dev.stack import Stack, StackOptions
from dev.standins.faults import Faults
from dev.standins.twilio import TwilioServer
from gateway.numbers.provider import ProviderRef
from gateway.numbers.sip_objects import SipObjects
from gateway.store.database import Database
from gateway.store.numbers import NumberStore
from tests.conftest import AUTH, Gateway, write_agents
from tests.support.number_rig import (
    ACCOUNT,
    API,
    ATTACH,
    NUMBER,
    PUBLIC,
    PUBLIC_URL,
    TOKEN,
    TWILIO,
)
from tests.support.redis_server import redis_server
from tests.support.sip_api import sip_proxy

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

DEADLINE_S = 60.0


class System:
    """A bridge and a gateway as processes, a proxy between them, and a Twilio server."""

    def __init__(self, stack: Stack, sip: LiveKitAPI, faults: Faults, twilio: TwilioServer) -> None:
        self.stack = stack
        self.sip = sip
        self.faults = faults
        self.twilio = twilio

    @contextlib.asynccontextmanager
    async def gateway(self) -> AsyncIterator[Gateway]:
        if not self.stack.gateway.running:  # a test before this one has failed
            await self.restart()
        async with aiohttp.ClientSession(self.stack.gateway_url) as session:
            yield Gateway(session)

    async def labels(self) -> tuple[list[str], list[str]]:
        """Return the names of the trunks and of the rules at the bridge."""
        trunks = await self.sip.sip.list_inbound_trunk(ListSIPInboundTrunkRequest())
        rules = await self.sip.sip.list_dispatch_rule(ListSIPDispatchRuleRequest())
        return [trunk.name for trunk in trunks.items], [rule.name for rule in rules.items]

    async def rows(self) -> list[PhoneNumber]:
        database = await Database.open(self.stack.settings.database_url)
        try:
            return await NumberStore(database).provisioned()
        finally:
            await database.close()

    async def reconciled(self) -> list[PhoneNumber]:
        """Return the numbers, once the gateway's database and the bridge agree."""
        settings = self.stack.settings
        objects = SipObjects(self.sip, settings.agent_name, settings.ring_while_full_s)
        async with asyncio.timeout(DEADLINE_S):
            while True:
                rows, there = await self.rows(), await objects.listing()
                right = all(row.status == "active" and objects.right(row, there) for row in rows)
                if right and len(there.trunks) == len(there.rules) == len(rows):
                    return rows
                await asyncio.sleep(0.05)

    async def settled(self, labels: tuple[list[str], list[str]]) -> None:
        """Wait until no switch is in progress, and the bridge has the objects with ``labels``."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                switching = [ProviderRef.of(number).switching for number in await self.rows()]
                if not any(switching) and await self.labels() == labels:
                    return
                await asyncio.sleep(0.05)

    async def restart(self) -> None:
        self.faults.clear()
        self.twilio.faults.clear()
        await self.stack.gateway.start()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    agents = tmp_path_factory.mktemp("agents")
    write_agents(agents)
    async with contextlib.AsyncExitStack() as cleanup:
        twilio = await cleanup.enter_async_context(TwilioServer({ACCOUNT: TOKEN}))
        # The proxy needs the bridge's address, and the gateway needs the proxy's.
        bridge = Stack(StackOptions(livekit=False, providers=False, gateway=False, worker=0))
        await cleanup.enter_async_context(bridge)
        proxy, faults = await cleanup.enter_async_context(sip_proxy(bridge.bridge_url))
        values: dict[str, Any] = {
            **AUTH,
            "agents_dir": agents,
            "default_agent": "greeter",
            "livekit_api_key": bridge.settings.livekit_api_key,
            "livekit_api_secret": bridge.settings.livekit_api_secret,
            "sip_public_address": PUBLIC,
            "public_url": PUBLIC_URL,
            "twilio_base_url": twilio.url,
        }
        options = StackOptions(
            livekit=False,
            providers=False,
            bridge=False,
            worker=0,
            values=values,
            env={"gateway": {"LIVEKIT_SIP_URL": proxy}},
        )
        stack = await cleanup.enter_async_context(Stack(options))
        sip = bridge.sip_api()
        cleanup.push_async_callback(sip.aclose)
        system = System(stack, sip, faults, twilio)
        async with system.gateway() as gateway:
            assert (await gateway.post("/api/v1/credentials", json=TWILIO)).status == 201
        yield system


async def test_drift_is_repaired_at_the_start(system: System) -> None:
    """Objects that were removed while the gateway was down are created again."""
    async with system.gateway() as gateway:
        body = {"provider": "sip", "phoneNumber": "+14155550999", "agentId": "greeter"}
        answer = await gateway.post(ATTACH, json=body)
        assert answer.status == 201, answer.body
        number = answer.body["data"]["id"]
    assert await system.labels() == ([number], [number])
    (before,) = await system.rows()
    await system.stack.gateway.stop()
    sip = system.sip.sip
    await sip.delete_dispatch_rule(
        DeleteSIPDispatchRuleRequest(sip_dispatch_rule_id=before.rule_id)
    )
    await sip.delete_trunk(DeleteSIPTrunkRequest(sip_trunk_id=before.trunk_id))
    assert await system.labels() == ([], [])
    await system.restart()
    (after,) = await system.reconciled()
    assert after.id == number
    assert {after.trunk_id, after.rule_id}.isdisjoint({before.trunk_id, before.rule_id})
    assert "corrected a number's trunk and rule" in system.stack.log_text("gateway")
    async with system.gateway() as gateway:
        assert (await gateway.request("DELETE", f"{API}/{number}")).status == 200
    assert await system.labels() == ([], [])


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "step",
    [
        "CreateSIPInboundTrunk",
        "CreateSIPDispatchRule",
        "POST .*/OriginationUrls",
        "POST .*/PhoneNumbers$",
    ],
)
async def test_killed_while_attaching(system: System, step: str, late: bool) -> None:
    """After the restart the attachment is undone, and the number can be attached."""
    app = "AP" + "3" * 32
    system.twilio.trunks.clear()
    system.twilio.urls.clear()
    system.twilio.numbers.clear()
    row = system.twilio.give(ACCOUNT, NUMBER, voice_application_sid=app)
    former = dict(row)
    faults = system.faults if "SIP" in step else system.twilio.faults
    fault = faults.fail(step, hang=True, late=late)
    body = {"provider": "twilio", "phoneNumber": NUMBER, "credentialsRef": "main"}
    async with system.gateway() as gateway:
        asking = asyncio.create_task(gateway.post(ATTACH, json=body))
        await asyncio.wait_for(fault.hit.wait(), DEADLINE_S)
        await system.stack.gateway.kill()
        with contextlib.suppress(aiohttp.ClientError):
            await asking
    assert [left.status for left in await system.rows()] == ["attaching"]
    await system.restart()
    assert await system.reconciled() == []
    assert row == former
    async with system.gateway() as gateway:
        answer = await gateway.post(ATTACH, json=body)
        assert answer.status == 201, answer.body
        (number,) = await system.reconciled()
        assert row["trunk_sid"] in system.twilio.trunks
        assert (await gateway.request("DELETE", f"{API}/{number.id}")).status == 200
    assert row == former
    log = system.stack.log_text("gateway")
    assert "rolled back a number's partial attachment" in log
    assert not any(secret in log for secret in (TOKEN, NUMBER, NUMBER[1:]))


@pytest.mark.parametrize("step", ["DELETE .*/PhoneNumbers/", "DeleteSIPDispatchRule"])
async def test_killed_while_detaching(system: System, step: str) -> None:
    """After the restart the number is detached."""
    system.twilio.numbers.clear()
    row = system.twilio.give(ACCOUNT, NUMBER)
    body = {"provider": "twilio", "phoneNumber": NUMBER, "credentialsRef": "main"}
    async with system.gateway() as gateway:
        number = (await gateway.post(ATTACH, json=body)).body["data"]["id"]
        faults = system.faults if "SIP" in step else system.twilio.faults
        fault = faults.fail(step, hang=True)
        asking = asyncio.create_task(gateway.request("DELETE", f"{API}/{number}"))
        await asyncio.wait_for(fault.hit.wait(), DEADLINE_S)
        await system.stack.gateway.kill()
        with contextlib.suppress(aiohttp.ClientError):
            await asking
    await system.restart()
    assert await system.reconciled() == []
    assert row["trunk_sid"] is None


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("via", "step"),
    [
        ("stream", "POST .*/IncomingPhoneNumbers/"),
        ("stream", "DELETE .*/PhoneNumbers/"),
        ("sip", "CreateSIPDispatchRule"),
        ("sip", "POST .*/PhoneNumbers$"),
        ("sip", "POST .*/IncomingPhoneNumbers/"),
    ],
)
async def test_killed_while_switching(system: System, via: str, step: str, late: bool) -> None:
    """After the restart the number is as it was before the switch."""
    system.twilio.numbers.clear()
    row = system.twilio.give(ACCOUNT, NUMBER, voice_method="GET", status_callback="https://s")
    body = {"provider": "twilio", "phoneNumber": NUMBER, "credentialsRef": "main"}
    former_via = "sip" if via == "stream" else "stream"
    async with system.gateway() as gateway:
        view = (await gateway.post(ATTACH, json={**body, "via": former_via})).body["data"]
        former, labels = dict(row), await system.labels()
        faults = system.faults if "SIP" in step else system.twilio.faults
        fault = faults.fail(step, hang=True, late=late)
        path, change = f"{API}/{view['id']}", {"via": via, "direction": "inbound"}
        asking = asyncio.create_task(gateway.request("PATCH", path, json=change))
        await asyncio.wait_for(fault.hit.wait(), DEADLINE_S)
        await system.stack.gateway.kill()
        with contextlib.suppress(aiohttp.ClientError):
            await asking
    await system.restart()
    await system.settled(labels)
    assert {name: row[name] for name in former} == former
    async with system.gateway() as gateway:
        assert (await gateway.get(path)).body["data"] == view
        assert (await gateway.request("PATCH", path, json=change)).body["data"]["via"] == via
        assert (await gateway.request("DELETE", path)).status == 200
    assert (await system.rows(), await system.labels()) == ([], ([], []))


async def test_with_livekits_own_sip_api(tmp_path: Path) -> None:
    """livekit-server serves the SIP API if it has Redis, and returns our objects unchanged."""
    write_agents(tmp_path)
    async with redis_server(tmp_path) as port:
        options = StackOptions(
            bridge=False,
            providers=False,
            worker=0,
            values={**AUTH, "agents_dir": tmp_path, "default_agent": "greeter"},
            env={"gateway": {"LIVEKIT_SIP_URL": ""}},
            livekit_config={"redis": {"address": f"127.0.0.1:{port}"}},
        )
        async with Stack(options) as stack, stack.api() as api:
            system = System(stack, api, Faults(), TwilioServer({}))
            sip = api.sip
            async with system.gateway() as gateway:
                body = {"provider": "sip", "phoneNumber": NUMBER, "agentId": "greeter"}
                answer = await gateway.post(ATTACH, json=body)
                assert answer.status == 201, answer.body
            (row,) = await system.reconciled()
            await stack.gateway.stop()
            await sip.delete_trunk(DeleteSIPTrunkRequest(sip_trunk_id=row.trunk_id))
            await system.restart()
            (row,) = await system.reconciled()
            by_hand = SIPInboundTrunkInfo(name="by hand", numbers=["+14155550177"])
            await sip.create_inbound_trunk(CreateSIPInboundTrunkRequest(trunk=by_hand))
            async with system.gateway() as gateway:
                answer = await gateway.post(ATTACH, json={**body, "phoneNumber": "+14155550177"})
                assert answer.body["meta"]["code"] == "TRUNK_CONFLICT"
                assert (await gateway.request("DELETE", f"{API}/{row.id}")).status == 200
            assert await system.labels() == (["by hand"], [])
