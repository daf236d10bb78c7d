"""The bridge's Twirp API over HTTP: permissions, formats of requests and responses, errors."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from livekit import api
from livekit.api import LiveKitAPI
from livekit.protocol import sip as pb

from sip.bridge.api.server import create_app
from sip.bridge.calls.service import SipService
from sip.bridge.registry import Registry
from sip.bridge.stack.endpoint import Endpoint
from sip.guard import SipGuard
from sip.participant import LiveKit

pytestmark = pytest.mark.sip

KEY, SECRET = "testkey", "a-secret-of-more-than-32-bytes-for-tests"
TRUNK = {"trunk": {"name": "t", "numbers": ["+15550100"]}}

Client = TestClient[Any, Any]


@asynccontextmanager
async def serving(tmp_path: Path, *, dials_waiting: int = 100) -> AsyncIterator[Client]:
    """Serve the API without a SIP socket and without LiveKit."""
    livekit = LiveKit("ws://127.0.0.1:1", KEY, SECRET)
    registry = Registry(tmp_path / "bridge.json")
    sip = SipService(
        Endpoint("127.0.0.1:5060"), registry, livekit, SipGuard(), dials_waiting=dials_waiting
    )
    app = create_app(sip, registry, livekit, lambda: {"sip": "127.0.0.1:5060"})
    async with TestClient(TestServer(app)) as client:
        yield client


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with serving(tmp_path) as client:
        yield client


def bearer(secret: str = SECRET, ttl: timedelta = timedelta(hours=2), **grants: bool) -> str:
    token = api.AccessToken(KEY, secret).with_ttl(ttl)
    return "Bearer " + token.with_sip_grants(api.SIPGrants(**grants)).to_jwt()


async def test_metrics_need_no_token(client: Client) -> None:
    async with client.get("/metrics") as response:
        assert response.status == 200
        text = await response.text()
    assert "\nswitchroom_asyncio_tasks " in text and "\nprocess_open_fds " in text


async def post(client: Client, method: str, body: Any, token: str | None) -> tuple[int, Any]:
    headers = {"Authorization": token} if token is not None else {}
    url = f"/twirp/livekit.SIP/{method}"
    async with client.post(url, json=body, headers=headers) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


@pytest.mark.parametrize(
    ("token", "status", "code"),
    [
        (None, 401, "unauthenticated"),
        ("Basic abc", 401, "unauthenticated"),
        ("Bearer not.a.token", 401, "unauthenticated"),
        (bearer(secret="x" * 40, admin=True), 401, "unauthenticated"),
        (bearer(ttl=timedelta(hours=-1), admin=True), 401, "unauthenticated"),
        (bearer(), 403, "permission_denied"),
        (bearer(call=True), 403, "permission_denied"),
    ],
    ids=["none", "basic", "garbage", "other secret", "expired", "no grant", "other grant"],
)
async def test_who_may_not_change_trunks(
    client: Client, token: str | None, status: int, code: str
) -> None:
    answer = await post(client, "CreateSIPInboundTrunk", TRUNK, token)
    assert (answer[0], answer[1]["code"]) == (status, code)
    listed = await post(client, "ListSIPInboundTrunk", {}, bearer(admin=True))
    assert listed == (200, {"items": []})


async def test_an_admin_may_not_dial(client: Client) -> None:
    status, body = await post(client, "CreateSIPParticipant", {}, bearer(admin=True))
    assert (status, body["code"]) == (403, "permission_denied")


async def test_a_transfer_needs_the_admin_of_its_room(client: Client) -> None:
    body = {"room_name": "a", "participant_identity": "p", "transfer_to": "tel:+1"}
    for room, status in (("b", 403), ("a", 404)):
        token = api.AccessToken(KEY, SECRET).with_sip_grants(api.SIPGrants(call=True))
        grants = api.VideoGrants(room_admin=True, room=room)
        bearer = f"Bearer {token.with_grants(grants).to_jwt()}"
        assert (await post(client, "TransferSIPParticipant", body, bearer))[0] == status


async def test_json_in_json_out(client: Client) -> None:
    status, made = await post(client, "CreateSIPInboundTrunk", TRUNK, bearer(admin=True))
    assert status == 200
    assert (made["name"], made["numbers"]) == ("t", ["+15550100"])
    assert made["sip_trunk_id"].startswith("ST_")
    got = await post(
        client, "GetSIPInboundTrunk", {"sipTrunkId": made["sip_trunk_id"]}, bearer(admin=True)
    )
    assert got == (200, {"trunk": made})


@pytest.mark.parametrize(
    ("method", "body", "status", "code"),
    [
        ("CreateSIPInboundTrunk", {"trunk": {"numbers": "x"}}, 400, "malformed"),
        ("CreateSIPInboundTrunk", "text", 400, "malformed"),
        ("UpdateSIPInboundTrunk", {"sip_trunk_id": "ST_1"}, 400, "invalid_argument"),
        ("UpdateSIPInboundTrunk", {"sip_trunk_id": "ST_1", "replace": {}}, 404, "not_found"),
        ("GetSIPOutboundTrunk", {"sip_trunk_id": "ST_1"}, 404, "not_found"),
        ("DeleteSIPDispatchRule", {"sip_dispatch_rule_id": "SDR_1"}, 404, "not_found"),
        ("DeleteSIPTrunk", {}, 400, "invalid_argument"),
        ("NoSuchMethod", {}, 404, "bad_route"),
    ],
)
async def test_errors(client: Client, method: str, body: Any, status: int, code: str) -> None:
    answer = await post(client, method, body, bearer(admin=True))
    assert (answer[0], answer[1]["code"]) == (status, code)
    assert answer[1]["msg"]


async def test_only_post(client: Client) -> None:
    async with client.get("/twirp/livekit.SIP/ListSIPTrunk") as response:
        assert (response.status, (await response.json())["code"]) == (404, "bad_route")


async def test_a_body_that_is_too_large(client: Client) -> None:
    async with client.post(
        "/twirp/livekit.SIP/CreateSIPInboundTrunk",
        data=io.BytesIO(bytes(1 << 21)),
        headers={"Authorization": bearer(admin=True), "Content-Type": "application/protobuf"},
    ) as response:
        assert (response.status, (await response.json())["code"]) == (400, "invalid_argument")


async def test_health(client: Client) -> None:
    async with client.get("/") as response:
        assert response.status == 200
        assert await response.json() == {"status": "OK", "sip": "127.0.0.1:5060", "live_calls": 0}


async def test_every_method_of_the_api_with_livekits_own_client(client: Client) -> None:
    lk = LiveKitAPI(str(client.make_url("/")), KEY, SECRET)
    sip: Any = lk.sip
    try:
        made = await sip.create_outbound_trunk(
            pb.CreateSIPOutboundTrunkRequest(
                trunk=pb.SIPOutboundTrunkInfo(name="o", address="a:1", numbers=["+1"])
            )
        )
        trunk = made.sip_trunk_id
        fields = await sip.update_outbound_trunk_fields(trunk, address="b:2", numbers=["+1", "+2"])
        assert (fields.address, list(fields.numbers), fields.name) == ("b:2", ["+1", "+2"], "o")
        replaced = await sip.update_outbound_trunk(
            trunk, pb.SIPOutboundTrunkInfo(name="new", address="c:3", numbers=["+3"])
        )
        assert (replaced.sip_trunk_id, replaced.name) == (trunk, "new")
        listed = await sip.list_outbound_trunk(pb.ListSIPOutboundTrunkRequest(numbers=["+3"]))
        assert [item.name for item in listed.items] == ["new"]
        assert not (
            await sip.list_outbound_trunk(pb.ListSIPOutboundTrunkRequest(numbers=["+4"]))
        ).items
        rule = await sip.create_dispatch_rule(
            pb.CreateSIPDispatchRuleRequest(  # the older form, without dispatch_rule
                name="r",
                trunk_ids=[trunk],
                attributes={"a": "1", "b": "2"},
                rule=pb.SIPDispatchRule(
                    dispatch_rule_direct=pb.SIPDispatchRuleDirect(room_name="room")
                ),
            )
        )
        changed = await sip.update_dispatch_rule_fields(
            rule.sip_dispatch_rule_id, attributes={"a": "", "c": "3"}, trunk_ids=["ST_x"]
        )
        assert dict(changed.attributes) == {"b": "2", "c": "3"}
        assert list(changed.trunk_ids) == ["ST_x"]
        again = await sip.update_dispatch_rule(rule.sip_dispatch_rule_id, rule)
        assert (again.name, dict(again.attributes)) == ("r", {"a": "1", "b": "2"})
        await sip.delete_dispatch_rule(
            pb.DeleteSIPDispatchRuleRequest(sip_dispatch_rule_id=rule.sip_dispatch_rule_id)
        )
        await sip.delete_trunk(pb.DeleteSIPTrunkRequest(sip_trunk_id=trunk))
        assert not (await sip.list_outbound_trunk(pb.ListSIPOutboundTrunkRequest())).items
        assert not (await sip.list_dispatch_rule(pb.ListSIPDispatchRuleRequest())).items
    finally:
        await lk.aclose()


async def test_more_dials_than_can_join_their_rooms_are_refused(tmp_path: Path) -> None:
    dial = {
        "trunk": {"hostname": "127.0.0.1:5080"},
        "sip_call_to": "+15550101",
        "sip_number": "+15550100",
        "room_name": "a",
        "participant_identity": "phone",
    }
    async with serving(tmp_path, dials_waiting=0) as client:
        status, refusal = await post(client, "CreateSIPParticipant", dial, bearer(call=True))
    assert (status, refusal["code"]) == (429, "resource_exhausted")
    assert "meta" not in refusal  # no SIP status: the far end was never dialled
