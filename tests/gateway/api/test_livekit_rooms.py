"""/livekit/* and /sip/transfer, over HTTP, against LiveKit, the bridge and phones."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from time import time
from typing import Any

import aiohttp
import jwt
import pytest
from livekit import rtc
from livekit.api import AccessToken, LiveKitAPI, VideoGrants
from livekit.protocol.room import CreateRoomRequest, DeleteRoomRequest, ListRoomsRequest
from livekit.protocol.rtc import SignalResponse

from core.models import new_id
from dev.phone import Answer, Phone, Reject
from dev.stack import Stack
from gateway.store.room_names import RENEWED, joining_as
from tests.conftest import ACME, RIVAL, Answered, Gateway, operator
from tests.support.sip_call_rig import body

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

NO_ROOM = {"error": "Room not found or not accessible", "code": "ROOM_NOT_FOUND"}
NO_PARTICIPANT = {"error": "Participant not found", "code": "PARTICIPANT_NOT_FOUND"}
_numbers = itertools.count(2000)


async def get_token(gateway: Gateway, room: str, **options: Any) -> Answered:
    who = options.pop("participant_identity", "alice")
    body = {"room_name": room, "participant_name": "Alice", "participant_identity": who}
    return await gateway.post("/livekit/token", json=body, **options)


@asynccontextmanager
async def joined(gateway: Gateway, room: str, **options: Any) -> AsyncIterator[rtc.Room]:
    answer = await get_token(gateway, room, **options)
    assert answer.status == 200
    async with entered(answer.body) as participant:
        yield participant


@asynccontextmanager
async def entered(answer: Any) -> AsyncIterator[rtc.Room]:
    participant = rtc.Room()
    await participant.connect(answer["livekit_url"], answer["token"])
    try:
        yield participant
    finally:
        await participant.disconnect()


async def publish(room: rtc.Room) -> str:
    source = rtc.AudioSource(48_000, 1)
    track = rtc.LocalAudioTrack.create_audio_track("voice", source)
    options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
    publication = await room.local_participant.publish_track(track, options)
    return publication.sid


async def published(gateway: Gateway, name: str, room: rtc.Room) -> str:
    """Publish a track and return its sid, once the gateway shows it."""
    track = await publish(room)
    async with asyncio.timeout(10):
        while track not in str((await gateway.get(f"/livekit/rooms/{name}")).body):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return track


class TestToken:
    async def test_it_is_for_one_room_and_not_for_long(
        self, gateway: Gateway, livekit: LiveKitAPI
    ) -> None:
        room = new_id("room")
        answer = await get_token(gateway, room)
        assert answer.status == 200
        assert set(answer.body) == {"token", "room_name", "participant_identity", "livekit_url"}
        assert (answer.body["room_name"], answer.body["participant_identity"]) == (room, "alice")
        claims = jwt.decode(answer.body["token"], options={"verify_signature": False})
        assert claims["video"] == {
            "roomJoin": True,
            "room": room,
            "canPublish": True,
            "canPublishSources": ["microphone", "camera", "screen_share", "screen_share_audio"],
            "canSubscribe": True,
            "canPublishData": True,
            "canUpdateOwnMetadata": False,
        }
        assert (claims["sub"], claims["name"]) == ("alice", "Alice")
        assert claims["exp"] <= time() + 3600
        assert not claims.keys() & {"sip", "agent", "inference", "observability"}
        assert "agents" not in claims["roomConfig"]
        assert "acme" not in str(claims)
        listed = await livekit.room.list_rooms(ListRoomsRequest(names=[room]))
        assert [r.metadata for r in listed.rooms] == ['{"auth_id": "acme"}']

    async def test_it_lets_one_in(self, gateway: Gateway) -> None:
        room = new_id("room")
        async with joined(gateway, room) as participant:
            assert participant.name == room
            assert participant.local_participant.name == "Alice"

    async def test_another_tenants_room(self, gateway: Gateway) -> None:
        room = new_id("room")
        assert (await get_token(gateway, room)).status == 200
        assert (await get_token(gateway, room)).status == 200
        refused = await get_token(gateway, room, headers=RIVAL)
        assert (refused.status, refused.body) == (404, NO_ROOM)

    async def test_a_room_that_names_no_tenant(self, gateway: Gateway, livekit: LiveKitAPI) -> None:
        room = new_id("room")
        await livekit.room.create_room(CreateRoomRequest(name=room, metadata='{"auth_id": 7}'))
        refused = await get_token(gateway, room)
        assert (refused.status, refused.body) == (404, NO_ROOM)
        assert (await get_token(gateway, room, headers=operator())).status == 200

    async def test_concurrent_first_tokens_of_two_tenants(self, gateway: Gateway) -> None:
        for _ in range(5):
            room = new_id("room")
            tenants = [ACME, RIVAL] * 10
            answers = await asyncio.gather(
                *(get_token(gateway, room, headers=tenant) for tenant in tenants)
            )
            let_in = {
                tenant["Authorization"]
                for tenant, answer in zip(tenants, answers, strict=True)
                if answer.status == 200
            }
            assert len(let_in) == 1
            assert {answer.status for answer in answers} == {200, 404}

    @pytest.mark.parametrize("field", ["room_name", "participant_name", "participant_identity"])
    @pytest.mark.parametrize("bad", ["", "  ", "a\nb", "x" * 257, 7, None])
    async def test_bad_names(self, gateway: Gateway, field: str, bad: Any) -> None:
        body = {"room_name": "r", "participant_name": "n", "participant_identity": "i", field: bad}
        answer = await gateway.post("/livekit/token", json=body)
        assert (answer.status, answer.code) == (400, "INVALID_REQUEST")
        assert [detail["field"] for detail in answer.body["details"]] == [field]


class TestOldTokens:
    """LiveKit closes a room that nobody enters after 30 s; a later join creates it again."""

    async def test_a_late_join_makes_the_tenants_own_room_again(
        self, gateway: Gateway, livekit: LiveKitAPI
    ) -> None:
        room = new_id("room")
        token = (await get_token(gateway, room)).body
        await livekit.room.delete_room(DeleteRoomRequest(room=room))
        assert await metadata_of(livekit, room) is None
        async with entered(token):
            # No request names the room: the gateway learns of it from LiveKit's webhook.
            async with asyncio.timeout(10):
                while await metadata_of(livekit, room) != '{"auth_id": "acme"}':  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert (await gateway.get(f"/livekit/rooms/{room}")).status == 200
            refused = await gateway.get(f"/livekit/rooms/{room}", headers=RIVAL)
            assert (refused.status, refused.body) == (404, NO_ROOM)

    async def test_another_tenants_call_is_not_where_an_old_token_leads(
        self, gateway: Gateway, livekit: LiveKitAPI, phone: Phone
    ) -> None:
        room = new_id("room")
        token = (await get_token(gateway, room, participant_identity="caller")).body
        await livekit.room.delete_room(DeleteRoomRequest(room=room))
        call = body(
            room_name=room,
            participant_identity="caller",
            sip={"outbound_address": phone.address},
        )
        refused = await gateway.post("/sip/call", json=call, headers=RIVAL)
        assert (refused.status, refused.body) == (404, NO_ROOM)
        refused = await gateway.post("/sip/call", json=call)
        assert (refused.status, refused.code) == (409, "PARTICIPANT_EXISTS")
        assert phone.invites == 0
        placed = await gateway.post("/sip/call", json={**call, "participant_identity": "phone"})
        assert placed.status == 200
        answered = await phone.next_call(10)
        await answered.answered(10)
        refused = await get_token(gateway, room, participant_identity="phone")
        assert (refused.status, refused.code) == (409, "PARTICIPANT_EXISTS")
        async with entered(token) as own:
            assert own.name == room, "the tenant is in its own call"
        await answered.hangup()

    async def test_what_livekit_does_with_tokens(self, stack: Stack) -> None:
        """gateway.store.room_names relies on LiveKit's leeway, renewal time and ``#`` suffix."""
        key, secret = stack.settings.livekit_api_key, stack.settings.livekit_api_secret
        assert key is not None and secret is not None
        room = new_id("room")
        token = (
            AccessToken(key, secret.get_secret_value())
            .with_identity("alice")
            .with_grants(VideoGrants(room_join=True, room=room, can_publish=True))
            # Expired half a minute ago, and still accepted.
            .with_ttl(timedelta(seconds=-30))
            .to_jwt()
        )
        renewed, joined_as = await signalled(stack, token)
        assert joined_as == "alice"
        left_s = jwt.decode(renewed, options={"verify_signature": False})["exp"] - time()
        assert RENEWED.total_seconds() - 60 < left_s <= RENEWED.total_seconds() + 1
        _, joined_as = await signalled(stack, token, publish="camera")
        assert joined_as == "alice#camera"
        assert "alice" in joining_as(joined_as)


async def metadata_of(livekit: LiveKitAPI, room: str) -> str | None:
    listed = await livekit.room.list_rooms(ListRoomsRequest(names=[room]))
    return listed.rooms[0].metadata if listed.rooms else None


async def signalled(stack: Stack, token: str, **query: str) -> tuple[str, str]:
    """Join as clients do, without media; return the renewed token and the identity."""
    renewed = identity = ""
    query = {"access_token": token, "protocol": "9", "auto_subscribe": "0", **query}
    async with (
        asyncio.timeout(10),
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{stack.settings.livekit_url}/rtc", params=query) as socket,
    ):
        async for message in socket:
            told = SignalResponse.FromString(message.data)
            if told.HasField("join"):
                identity = told.join.participant.identity
            if told.HasField("refresh_token"):
                renewed = told.refresh_token
            if renewed and identity:
                break
    return renewed, identity


class TestRooms:
    async def test_a_tenant_sees_its_own(self, gateway: Gateway) -> None:
        mine, theirs = new_id("room"), new_id("room")
        await get_token(gateway, mine)
        await get_token(gateway, theirs, headers=RIVAL)
        seen = {}
        for name, headers in (("acme", ACME), ("rival", RIVAL), ("operator", operator())):
            answer = await gateway.get("/livekit/rooms", headers=headers)
            assert answer.status == 200
            names = {room["room_name"] for room in answer.body["rooms"]}
            seen[name] = names & {mine, theirs}
        assert seen == {"acme": {mine}, "rival": {theirs}, "operator": {mine, theirs}}

    async def test_one_room_with_its_participants(self, gateway: Gateway) -> None:
        room = new_id("room")
        async with joined(gateway, room) as participant:
            track = await published(gateway, room, participant)
            answer = await gateway.get(f"/livekit/rooms/{room}")
            assert answer.status == 200
            assert answer.body["room_name"] == room
            assert answer.body["room_sid"].startswith("RM_")
            assert answer.body["metadata"] == '{"auth_id": "acme"}'
            assert answer.body["created_at"].endswith("Z")
            [found] = answer.body["participants"]
            assert found["participant_identity"] == "alice"
            assert found["participant_id"] == participant.local_participant.sid
            assert (found["state"], found["kind"]) == ("active", "standard")
            assert found["tracks"] == [
                {
                    "track_sid": track,
                    "name": "voice",
                    "type": "audio",
                    "source": "microphone",
                    "muted": False,
                }
            ]

    async def test_absent_and_foreign_rooms_are_alike(self, gateway: Gateway) -> None:
        room = new_id("room")
        await get_token(gateway, room)
        for name, headers in ((room, RIVAL), (new_id("room"), ACME), ("..%2F..", operator())):
            answer = await gateway.get(f"/livekit/rooms/{name}", headers=headers)
            assert (answer.status, answer.body) == (404, NO_ROOM)


class TestParticipants:
    async def test_removal(self, gateway: Gateway) -> None:
        room = new_id("room")
        whom = {"room_name": room, "participant_identity": "alice"}
        async with joined(gateway, room) as participant:
            gone = asyncio.Event()
            participant.on("disconnected", lambda _reason: gone.set())
            refused = await gateway.request(
                "DELETE", "/livekit/participant", json=whom, headers=RIVAL
            )
            assert (refused.status, refused.body) == (404, NO_ROOM)
            answer = await gateway.request("DELETE", "/livekit/participant", json=whom)
            assert (answer.status, answer.body) == (200, {**whom, "status": "removed"})
            async with asyncio.timeout(10):
                await gone.wait()
        again = await gateway.request("DELETE", "/livekit/participant", json=whom)
        assert again.status == 404
        assert again.body in (NO_PARTICIPANT, NO_ROOM)

    async def test_muting(self, gateway: Gateway) -> None:
        room = new_id("room")
        async with joined(gateway, room) as participant:
            request = {
                "room_name": room,
                "participant_identity": "alice",
                "track_sid": await published(gateway, room, participant),
                "muted": True,
            }
            path = "/livekit/participant/mute"
            refused = await gateway.post(path, json=request, headers=RIVAL)
            assert (refused.status, refused.body) == (404, NO_ROOM)
            unknown = await gateway.post(path, json={**request, "participant_identity": "bob"})
            assert (unknown.status, unknown.body) == (404, NO_PARTICIPANT)
            unknown = await gateway.post(path, json={**request, "track_sid": "TR_none"})
            assert (unknown.status, unknown.code) == (404, "TRACK_NOT_FOUND")
            wrong = await gateway.post(path, json={**request, "muted": "yes"})
            assert (wrong.status, wrong.code) == (400, "INVALID_REQUEST")
            answer = await gateway.post(path, json=request)
            assert (answer.status, answer.body) == (200, request)
            shown = await gateway.get(f"/livekit/rooms/{room}")
            assert shown.body["participants"][0]["tracks"][0]["muted"] is True
            # LiveKit's default: nobody can unmute another's microphone.
            answer = await gateway.post(path, json={**request, "muted": False})
            assert (answer.status, answer.code) == (409, "REMOTE_UNMUTE_DISABLED")


class TestTransfer:
    @staticmethod
    async def call(gateway: Gateway, phone: Phone) -> dict[str, Any]:
        """Dial the phone until it answers; return its fields of a transfer request."""
        room = new_id("room")
        dialled = await gateway.post(
            "/sip/call",
            json={
                "room_name": room,
                "participant_name": "John",
                "participant_identity": "john",
                "from_phone_number": "+15105550123",
                "to_phone_number": f"+1555124{next(_numbers)}",
                "agent": None,
                "sip": {"outbound_address": phone.address},
            },
        )
        assert dialled.status == 200
        await (await phone.next_call(10)).answered(10)
        return {"room_name": room, "participant_identity": "john"}

    async def test_to_another_phone(self, gateway: Gateway, phone: Phone) -> None:
        whom = await self.call(gateway, phone)
        async with Phone(behaviour=Answer()) as other:
            target = f"sip:desk@{other.address}"
            refused = await gateway.post(
                "/sip/transfer", json={**whom, "transfer_to": target}, headers=RIVAL
            )
            assert (refused.status, refused.body) == (404, NO_ROOM)
            answer = await gateway.post("/sip/transfer", json={**whom, "transfer_to": target})
            expected = {**whom, "transfer_to": target, "status": "completed"}
            assert (answer.status, answer.body) == (200, expected)
            await (await other.next_call(5)).answered(5)

    async def test_refused_by_the_other_phone(self, gateway: Gateway, phone: Phone) -> None:
        whom = await self.call(gateway, phone)
        async with Phone(behaviour=Reject(486)) as other:
            target = f"sip:desk@{other.address}"
            answer = await gateway.post("/sip/transfer", json={**whom, "transfer_to": target})
        assert (answer.status, answer.code) == (500, "CALL_FAILED")
        assert answer.body["details"] == [
            {"field": "sip_status_code", "message": "486", "type": "sip_status"}
        ]

    async def test_only_phones_are_transferred(self, gateway: Gateway) -> None:
        room = new_id("room")
        body = {"room_name": room, "participant_identity": "alice", "transfer_to": "+15551234567"}
        absent = await gateway.post("/sip/transfer", json=body)
        assert (absent.status, absent.body) == (404, NO_ROOM)
        async with joined(gateway, room):
            answer = await gateway.post("/sip/transfer", json=body)
            assert (answer.status, answer.code) == (409, "NOT_A_SIP_PARTICIPANT")
            unknown = await gateway.post(
                "/sip/transfer", json={**body, "participant_identity": "bob"}
            )
            assert (unknown.status, unknown.body) == (404, NO_PARTICIPANT)

    @pytest.mark.parametrize(
        ("target", "code"),
        [
            ("sip:a@b;c=d", "INVALID_TRANSFER_TARGET"),
            ("sip:a@b\r\nVia: x", "INVALID_TRANSFER_TARGET"),
            ("12 34", "INVALID_PHONE_NUMBER"),
            ("", "INVALID_PHONE_NUMBER"),
            (7, "INVALID_REQUEST"),
        ],
    )
    async def test_bad_targets(self, gateway: Gateway, target: Any, code: str) -> None:
        body = {"room_name": "r", "participant_identity": "i", "transfer_to": target}
        answer = await gateway.post("/sip/transfer", json=body)
        assert (answer.status, answer.code) == (400, code)
