"""Every endpoint treats another tenant's resources as if they did not exist.

``TABLE`` has, for each operation of the OpenAPI document, the requests that carry an identifier.
An operation that is in neither ``TABLE`` nor ``NONE`` fails the test.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pytest
import pytest_asyncio
from livekit.api import LiveKitAPI
from livekit.protocol.room import CreateRoomRequest

from core.models import new_id
from tests.conftest import ACME, RIVAL, Answered, Gateway

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]


@dataclass(frozen=True)
class Ids:
    """The identifiers of a tenant's resources, one of each kind."""

    agent: str
    number_id: str
    number: str
    credential: str
    call: str
    room: str
    identity: str
    delivery: str


UNKNOWN = Ids(
    agent="agt_000000000000000000000000",
    number_id="num_000000000000000000000000",
    number="+15105550190",
    credential="cred_000000000000000000000000",
    call="call_000000000000000000000000",
    room="room-000000000000000000000000",
    identity="nobody-here",
    delivery="msg_000000000000000000000000",
)

Request = tuple[str, dict[str, Any]]
"""Path and JSON body; an empty body is not sent."""
Probe = Callable[[Ids, Ids], Request]
"""Makes a request from the ids under test and the caller's own."""


def _path(template: str, **body: Any) -> Probe:
    return lambda ids, own: (template.format(**asdict(ids)), body)


def _sip_call(**changes: Callable[[Ids], Any]) -> Probe:
    def probe(ids: Ids, own: Ids) -> Request:
        body = {
            "room_name": new_id("room"),
            "participant_name": "John Doe",
            "participant_identity": "caller",
            "from_phone_number": "+15105550123",
            "to_phone_number": "+15551234567",
            "agent": None,
        }
        return "/sip/call", body | {name: value(ids) for name, value in changes.items()}

    return probe


def _call(**changes: Callable[[Ids], Any]) -> Probe:
    def probe(ids: Ids, own: Ids) -> Request:
        body = {"agentId": own.agent, "toNumber": "+15551234567"}
        return "/v1/calls", body | {name: value(ids) for name, value in changes.items()}

    return probe


def _dispatch(path: str, **changes: Callable[[Ids], Any]) -> Probe:
    def probe(ids: Ids, own: Ids) -> Request:
        body = {
            "agentId": own.agent,
            "channel": "voice",
            "fromNumber": own.number,
            "toNumber": "+15551234567",
        }
        return path, body | {name: value(ids) for name, value in changes.items()}

    return probe


def _attach(**changes: Callable[[Ids], Any]) -> Probe:
    def probe(ids: Ids, own: Ids) -> Request:
        body = {"provider": "sip", "phoneNumber": "+15105550191", "direction": "both"}
        return "/api/v1/phone-numbers/attach", body | {
            name: value(ids) for name, value in changes.items()
        }

    return probe


def _participant(path: str, **more: Any) -> Probe:
    return lambda ids, own: (
        path,
        {"room_name": ids.room, "participant_identity": ids.identity, **more},
    )


TABLE: Mapping[str, tuple[Probe, ...]] = {
    "POST /sip/call": (
        _sip_call(agent=lambda ids: ids.agent),
        _sip_call(agent_id=lambda ids: ids.agent),
    ),
    "POST /sip/transfer": (_participant("/sip/transfer", transfer_to="+15105550123"),),
    "GET /livekit/rooms/{name}": (_path("/livekit/rooms/{room}"),),
    "DELETE /livekit/participant": (_participant("/livekit/participant"),),
    "POST /livekit/participant/mute": (
        _participant("/livekit/participant/mute", track_sid="TR_x", muted=True),
    ),
    "GET /v1/agents/{id}": (_path("/v1/agents/{agent}"),),
    "PATCH /v1/agents/{id}": (_path("/v1/agents/{agent}", name="Mine now"),),
    "DELETE /v1/agents/{id}": (_path("/v1/agents/{agent}"),),
    "GET /v1/agents/{id}/versions": (_path("/v1/agents/{agent}/versions"),),
    "POST /v1/agents/{id}/rollback": (_path("/v1/agents/{agent}/rollback", version=1),),
    "GET /v1/agents/{id}/calls": (_path("/v1/agents/{agent}/calls"),),
    "POST /v1/agents/{id}/numbers": (
        lambda ids, own: (f"/v1/agents/{ids.agent}/numbers", {"numberId": own.number_id}),
        lambda ids, own: (f"/v1/agents/{own.agent}/numbers", {"numberId": ids.number_id}),
    ),
    "DELETE /v1/agents/{id}/numbers/{number_id}": (
        lambda ids, own: (f"/v1/agents/{ids.agent}/numbers/{own.number_id}", {}),
        lambda ids, own: (f"/v1/agents/{own.agent}/numbers/{ids.number_id}", {}),
    ),
    "POST /v1/agents/{id}/tasks": (
        _path("/v1/agents/{agent}/tasks", to="+15551234567"),
        lambda ids, own: (
            f"/v1/agents/{own.agent}/tasks",
            {"to": "+15551234567", "from": ids.number},
        ),
    ),
    "GET /v1/agents/{id}/tasks": (_path("/v1/agents/{agent}/tasks"),),
    # Tasks need a number at Twilio: tests/gateway/calls/tasks has those of another tenant.
    "GET /v1/agents/{id}/tasks/{taskId}": (_path("/v1/agents/{agent}/tasks/task_0"),),
    "DELETE /v1/agents/{id}/tasks/{taskId}": (_path("/v1/agents/{agent}/tasks/task_0"),),
    "POST /v1/agents/{id}/session": (_path("/v1/agents/{agent}/session", metadata={}),),
    "GET /v1/numbers/{id}": (_path("/v1/numbers/{number_id}"),),
    "DELETE /v1/numbers/{id}": (_path("/v1/numbers/{number_id}"),),
    "GET /v1/numbers/{id}/calls": (_path("/v1/numbers/{number_id}/calls"),),
    "GET /v1/calls": (
        _path("/v1/calls?agentId={agent}"),
        _path("/v1/calls?numberId={number_id}"),
        _path("/v1/calls?search={call}"),
    ),
    "POST /v1/calls": (
        _call(agentId=lambda ids: ids.agent),
        _call(fromNumberId=lambda ids: ids.number_id),
    ),
    "POST /v1/calls/web": (lambda ids, own: ("/v1/calls/web", {"agentId": ids.agent}),),
    "POST /v1/sessions/twilio": (
        lambda ids, own: (
            "/v1/sessions/twilio",
            {"agentId": ids.agent, "from": "+15105550123", "to": ids.number},
        ),
    ),
    "GET /v1/calls/{id}": (_path("/v1/calls/{call}"), _path("/v1/calls/{call}?wait=true")),
    "POST /v1/calls/{id}/end": (_path("/v1/calls/{call}/end"),),
    "GET /v1/calls/{id}/events": (_path("/v1/calls/{call}/events"),),
    "GET /v1/calls/{id}/diagnosis": (_path("/v1/calls/{call}/diagnosis"),),
    "GET /v1/calls/{id}/transcript": (_path("/v1/calls/{call}/transcript"),),
    "GET /v1/calls/{id}/transcript/stream": (_path("/v1/calls/{call}/transcript/stream"),),
    "GET /v1/calls/{id}/recording": (_path("/v1/calls/{call}/recording"),),
    "DELETE /v1/calls/{id}/recording": (_path("/v1/calls/{call}/recording"),),
    "POST /v1/calls/{id}/recording/pause": (_path("/v1/calls/{call}/recording/pause"),),
    "POST /v1/calls/{id}/recording/resume": (_path("/v1/calls/{call}/recording/resume"),),
    "POST /v1/calls/{id}/recording/mask": (_path("/v1/calls/{call}/recording/mask", seconds=5),),
    "GET /v1/calls/{id}/recording/peaks": (_path("/v1/calls/{call}/recording/peaks"),),
    "GET /v1/calls/{id}/recording/waveform.svg": (
        _path("/v1/calls/{call}/recording/waveform.svg"),
    ),
    "POST /api/v1/sessions/dispatch": (
        _dispatch("/api/v1/sessions/dispatch", agentId=lambda ids: ids.agent),
        _dispatch("/api/v1/sessions/dispatch", fromNumber=lambda ids: ids.number),
    ),
    "POST /api/v1/sessions": (
        _dispatch("/api/v1/sessions", agentId=lambda ids: ids.agent),
        _dispatch("/api/v1/sessions", fromNumber=lambda ids: ids.number),
    ),
    "GET /api/v1/sessions/{id}": (_path("/api/v1/sessions/{call}"),),
    "GET /api/v1/sessions/{id}/transcript": (_path("/api/v1/sessions/{call}/transcript"),),
    "GET /api/v1/credentials/{ref}": (_path("/api/v1/credentials/{credential}"),),
    "DELETE /api/v1/credentials/{ref}": (_path("/api/v1/credentials/{credential}"),),
    "POST /api/v1/phone-numbers/attach": (
        _attach(agentId=lambda ids: ids.agent),
        _attach(credentialsRef=lambda ids: ids.credential),
    ),
    "POST /api/v1/phone-numbers/buy": (
        lambda ids, own: (
            "/api/v1/phone-numbers/buy",
            {"country": "US", "credentialsRef": ids.credential},
        ),
    ),
    "GET /api/v1/phone-numbers/available": (
        _path("/api/v1/phone-numbers/available?country=US&credentialsRef={credential}"),
    ),
    "GET /api/v1/phone-numbers/{id}": (_path("/api/v1/phone-numbers/{number_id}"),),
    "PATCH /api/v1/phone-numbers/{id}": (
        _path("/api/v1/phone-numbers/{number_id}", agentId=None),
        lambda ids, own: (f"/api/v1/phone-numbers/{own.number_id}", {"agentId": ids.agent}),
    ),
    "DELETE /api/v1/phone-numbers/{id}": (_path("/api/v1/phone-numbers/{number_id}"),),
    "POST /api/v1/phone-numbers/{id}/approve": (
        _path("/api/v1/phone-numbers/{number_id}/approve"),
    ),
    "GET /v1/agents/{id}/webhook": (_path("/v1/agents/{agent}/webhook"),),
    "POST /v1/agents/{id}/webhook": (
        _path("/v1/agents/{agent}/webhook", url="https://mine.example/"),
    ),
    "DELETE /v1/agents/{id}/webhook": (_path("/v1/agents/{agent}/webhook"),),
    "POST /v1/agents/{id}/webhook/test": (_path("/v1/agents/{agent}/webhook/test"),),
    "GET /v1/agents/{id}/webhook/deliveries": (_path("/v1/agents/{agent}/webhook/deliveries"),),
    "POST /v1/webhooks/test": (_path("/v1/webhooks/test?agentId={agent}"),),
    # tests/gateway/recordings/test_exports.py has another tenant's.
    "GET /v1/recordings/export/{id}": (_path("/v1/recordings/export/{call}"),),
    "POST /v1/webhooks/deliveries/{id}/replay": (
        _path("/v1/webhooks/deliveries/{delivery}/replay"),
    ),
}

NONE = {
    # It claims a room name that nobody holds; test_livekit_rooms tests this and another's room.
    "POST /livekit/token",
    # No identifier, or one that the same code checks for /api/v1/phone-numbers.
    "GET /livekit/rooms",
    "GET /v1/agents",
    "POST /v1/agents",
    "GET /v1/agents/voices",
    "GET /v1/numbers",
    "POST /v1/numbers",
    "GET /v1/numbers/available",
    "GET /api/v1/phone-numbers",
    "GET /api/v1/credentials",
    "POST /api/v1/credentials",
    "POST /v1/recordings/export",
    "GET /v1/webhooks",
    "POST /v1/webhooks",
    "DELETE /v1/webhooks",
    "GET /v1/webhooks/deliveries",
    "GET /v1/webhooks/deliveries/stats",
    "GET /v1/webhooks/deliveries/all-time",
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def theirs(gateway: Gateway, livekit: LiveKitAPI) -> AsyncIterator[Ids]:
    async for ids in _everything(gateway, livekit, "acme", "+15105550192", ACME):
        yield ids


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own(gateway: Gateway, livekit: LiveKitAPI) -> AsyncIterator[Ids]:
    async for ids in _everything(gateway, livekit, "rival", "+15105550193", RIVAL):
        yield ids


async def _everything(
    gateway: Gateway, livekit: LiveKitAPI, auth_id: str, number: str, token: dict[str, str]
) -> AsyncIterator[Ids]:
    """Create one resource of each kind for a tenant; detach the number at the end."""

    async def post(path: str, body: dict[str, Any]) -> Any:
        answer = await gateway.post(path, headers=token, json=body)
        assert answer.status in (200, 201), answer.body
        return answer.body

    agent = await post("/v1/agents", {"name": "Theirs", "voiceMode": "hosted"})
    secret = {"name": "TRUNK", "provider": "sip", "address": "127.0.0.1:9"}
    credential = (await post("/api/v1/credentials", secret))["data"]
    attached = (
        await post(
            "/api/v1/phone-numbers/attach",
            {
                "provider": "sip",
                "phoneNumber": number,
                "agentId": agent["id"],
                "direction": "both",
                "credentialsRef": "TRUNK",
            },
        )
    )["data"]
    call = await post("/v1/calls/web", {"agentId": agent["id"]})
    webhook = f"/v1/agents/{agent['id']}/webhook"
    await post(webhook, {"url": "https://hooks.example/"})
    delivery = (await post(f"{webhook}/test", {}))["delivery"]
    room = new_id("room")
    metadata = json.dumps({"auth_id": auth_id})
    await livekit.room.create_room(
        CreateRoomRequest(name=room, metadata=metadata, empty_timeout=300)
    )
    yield Ids(
        agent=agent["id"],
        number_id=attached["id"],
        number=number,
        credential=credential["id"],
        call=call["callId"],
        room=room,
        identity="caller",
        delivery=delivery["id"],
    )
    await gateway.request("DELETE", f"/v1/numbers/{attached['id']}", headers=token)


async def _ask(gateway: Gateway, method: str, probe: Probe, ids: Ids, own: Ids) -> Answered:
    path, body = probe(ids, own)
    options = {"json": body} if body else {}
    return await gateway.request(method, path, headers=RIVAL, **options)


async def test_every_operation_is_in_the_table(gateway: Gateway) -> None:
    document = (await gateway.get("/openapi.json")).body
    served = {
        f"{method.upper()} {path}"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if "security" in operation
    }
    assert served - set(TABLE) == NONE
    assert set(TABLE) <= served


@pytest.mark.parametrize("operation", TABLE)
async def test_theirs_is_like_nobodys(
    gateway: Gateway, theirs: Ids, own: Ids, operation: str
) -> None:
    method = operation.partition(" ")[0]
    for probe in TABLE[operation]:
        their_answer = await _ask(gateway, method, probe, theirs, own)
        unknown = await _ask(gateway, method, probe, UNKNOWN, own)
        assert (their_answer.status, their_answer.body) == (unknown.status, unknown.body)
        assert unknown.status < 500
        if operation != "GET /v1/calls":  # an empty list
            assert unknown.status in (403, 404, 422), unknown.body


async def test_all_of_theirs_is_still_there(gateway: Gateway, theirs: Ids) -> None:
    for path in (
        f"/v1/agents/{theirs.agent}",
        f"/v1/numbers/{theirs.number_id}",
        f"/v1/calls/{theirs.call}",
        f"/api/v1/credentials/{theirs.credential}",
        f"/livekit/rooms/{theirs.room}",
    ):
        assert (await gateway.get(path)).status == 200
    number = (await gateway.get(f"/v1/numbers/{theirs.number_id}")).body
    assert number["agentId"] == theirs.agent


async def test_lists_hold_ones_own_only(gateway: Gateway, theirs: Ids, own: Ids) -> None:
    foreign = set(asdict(theirs).values()) - set(asdict(own).values())
    for path in (
        "/v1/agents?limit=100",
        "/v1/numbers?limit=100",
        "/v1/calls?limit=100",
        "/api/v1/phone-numbers?limit=100",
        "/api/v1/credentials?limit=100",
        "/livekit/rooms",
    ):
        answer = await gateway.get(path, headers=RIVAL)
        assert answer.status == 200
        assert [value for value in foreign if value in json.dumps(answer.body)] == []
