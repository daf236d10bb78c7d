"""POST /sip/call: which tenant owns a room, and requests that must not dial twice."""

from __future__ import annotations

import asyncio
import json

import pytest
from livekit.api import LiveKitAPI
from livekit.protocol.room import CreateRoomRequest, DeleteRoomRequest, ListRoomsRequest

from core.models import new_id
from dev.phone import Answer, Phone, Reject, RingOut
from tests.conftest import ACME, RIVAL, Gateway, operator
from tests.support.sip_call_rig import body, ended, participants

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]


class TestTenancy:
    async def test_the_first_call_makes_the_room_the_tenants(
        self, gateway: Gateway, livekit: LiveKitAPI, phone: Phone
    ) -> None:
        phone.behave(RingOut())
        request = body(sip={"outbound_address": phone.address})
        assert (await gateway.post("/sip/call", json=request)).status == 200
        listed = await livekit.room.list_rooms(ListRoomsRequest(names=[request["room_name"]]))
        assert json.loads(listed.rooms[0].metadata) == {"auth_id": "acme"}
        second = {**request, "participant_identity": "second"}
        foreign = await gateway.post("/sip/call", json=second, headers=RIVAL)
        assert (foreign.status, foreign.code) == (404, "ROOM_NOT_FOUND")
        assert foreign.body["error"] == "Room not found or not accessible"
        assert (await gateway.post("/sip/call", json=second)).status == 200
        assert [(await phone.next_call(5)).called for _ in range(2)] == [
            second["to_phone_number"]
        ] * 2

    @pytest.mark.parametrize(
        "metadata", ["", "no json", "[]", '"acme"', '{"auth_id": 7}', '{"auth_id": "rival"}', "{}"]
    )
    async def test_rooms_that_do_not_name_the_tenant_do_not_exist_for_it(
        self, gateway: Gateway, livekit: LiveKitAPI, exchange: Phone, metadata: str
    ) -> None:
        name = new_id("room")
        await livekit.room.create_room(CreateRoomRequest(name=name, metadata=metadata))
        before = exchange.invites
        answer = await gateway.post("/sip/call", json=body(room_name=name))
        assert (answer.status, answer.code) == (404, "ROOM_NOT_FOUND")
        dry = await gateway.post("/sip/call", json=body(room_name=name, dry_run=True))
        assert (dry.status, dry.code) == (404, "ROOM_NOT_FOUND")
        assert exchange.invites == before
        assert await participants(livekit, name) == []

    async def test_other_metadata_is_kept(
        self, gateway: Gateway, livekit: LiveKitAPI, phone: Phone
    ) -> None:
        phone.behave(RingOut())
        name, metadata = new_id("room"), '{"auth_id": "acme", "purpose": "support"}'
        await livekit.room.create_room(CreateRoomRequest(name=name, metadata=metadata))
        request = body(room_name=name, sip={"outbound_address": phone.address})
        assert (await gateway.post("/sip/call", json=request)).status == 200
        listed = await livekit.room.list_rooms(ListRoomsRequest(names=[name]))
        assert listed.rooms[0].metadata == metadata

    @pytest.mark.parametrize("metadata", ["", "no json", '{"auth_id": "rival"}'])
    async def test_without_auth_id_every_room_is_open_and_untouched(
        self, gateway: Gateway, livekit: LiveKitAPI, phone: Phone, metadata: str
    ) -> None:
        phone.behave(RingOut())
        name = new_id("room")
        await livekit.room.create_room(CreateRoomRequest(name=name, metadata=metadata))
        request = body(room_name=name, sip={"outbound_address": phone.address})
        answer = await gateway.post("/sip/call", json=request, headers=operator())
        assert answer.status == 200, answer.body
        listed = await livekit.room.list_rooms(ListRoomsRequest(names=[name]))
        assert listed.rooms[0].metadata == metadata

    async def test_races_of_first_calls_have_one_winner(
        self, gateway: Gateway, livekit: LiveKitAPI, exchange: Phone
    ) -> None:
        """Of 20 concurrent first calls into a new room, only one tenant's succeed (20 rounds).

        Each of the two tenants uses two identities: the winner's repeated calls are
        refused, too, which the loser must not learn.
        """
        exchange.behave(RingOut())
        winners = set()
        try:
            for round_ in range(20):
                room_name = new_id("race")
                winners.add(await self._one_race(gateway, room_name, round_))
                await livekit.room.delete_room(DeleteRoomRequest(room=room_name))
        finally:
            exchange.behave(Answer())
        dialled = {call.called for call in exchange.calls if call.called.startswith("+1555")}
        assert dialled
        assert dialled <= winners
        print("LIVE", [(c.called, c.ending) for c in exchange.calls if c.ending is None])

    async def _one_race(self, gateway: Gateway, room_name: str, round_: int) -> str:
        """Return the number that the winner dialled; each tenant has its own in each round."""
        numbers = (f"+1555{round_:02d}00001", f"+1555{round_:02d}00002")
        answers = await asyncio.gather(
            *(
                gateway.post(
                    "/sip/call",
                    json=body(
                        room_name=room_name,
                        participant_identity=f"caller-{n // 2 % 2}-{n % 2}",
                        to_phone_number=numbers[n % 2],
                    ),
                    headers=(ACME, RIVAL)[n % 2],
                )
                for n in range(20)
            )
        )
        seen = [sorted((answer.status, answer.code) for answer in answers[n::2]) for n in (0, 1)]
        lost = [(404, "ROOM_NOT_FOUND")] * 10
        won = [(200, "None")] * 2 + [(409, "PARTICIPANT_EXISTS")] * 8
        assert sorted(seen) == sorted([lost, won])
        return numbers[seen.index(won)]

    async def test_another_tenants_call_does_not_exist(
        self, gateway: Gateway, phone: Phone
    ) -> None:
        phone.behave(Reject(486))
        answer = await gateway.post("/sip/call", json=body(sip={"outbound_address": phone.address}))
        call_id = answer.body["call_id"]
        for path in (f"/v1/calls/{call_id}", f"/v1/calls/{call_id}/events"):
            foreign = await gateway.get(path, headers=RIVAL)
            unknown = await gateway.get(path.replace(call_id, "call_none"), headers=RIVAL)
            assert (foreign.status, foreign.body) == (unknown.status, unknown.body)
            assert foreign.status == 404
        listed = await gateway.get("/v1/calls", params={"limit": "100"}, headers=RIVAL)
        assert call_id not in json.dumps(listed.body)
        assert (await gateway.get(f"/v1/calls/{call_id}", headers=operator())).status == 200


class TestOnce:
    async def test_an_identity_in_the_room_is_not_dialled_again(
        self, gateway: Gateway, phone: Phone
    ) -> None:
        request = body(sip={"outbound_address": phone.address})
        first = await gateway.post("/sip/call", json=request)
        assert first.status == 200
        call = await phone.next_call(5)
        await call.answered(5)
        second = await gateway.post("/sip/call", json=request)
        assert (second.status, second.code) == (409, "PARTICIPANT_EXISTS")
        assert phone.invites == 1
        assert call.ending is None
        await call.hangup()
        await ended(gateway, first.body["call_id"])
        phone.behave(Reject(486))
        assert (await gateway.post("/sip/call", json=request)).status == 200

    async def test_of_concurrent_twins_one_is_dialled(self, gateway: Gateway, phone: Phone) -> None:
        phone.behave(RingOut())
        request = body(sip={"outbound_address": phone.address})
        answers = await asyncio.gather(
            *(gateway.post("/sip/call", json=request) for _ in range(10))
        )
        assert sorted(answer.status for answer in answers) == [200] + [409] * 9
        await phone.next_call(5)
        assert phone.invites == 1

    async def test_an_idempotency_key_has_one_effect(self, gateway: Gateway, phone: Phone) -> None:
        phone.behave(RingOut())
        request = body(sip={"outbound_address": phone.address, "auth_password": "one"})
        headers = {**ACME, "Idempotency-Key": new_id("key")}
        answers = await asyncio.gather(
            *(gateway.post("/sip/call", json=request, headers=headers) for _ in range(5))
        )
        assert {answer.status for answer in answers} == {200}
        assert len({answer.body["call_id"] for answer in answers}) == 1
        await phone.next_call(5)
        assert phone.invites == 1
        other = {**request, "sip": {**request["sip"], "auth_password": "two"}}
        reused = await gateway.post("/sip/call", json=other, headers=headers)
        assert (reused.status, reused.code) == (409, "IDEMPOTENCY_KEY_REUSED")
        foreign = await gateway.post(
            "/sip/call",
            json=body(sip={"outbound_address": phone.address}),
            headers={**RIVAL, "Idempotency-Key": headers["Idempotency-Key"]},
        )
        assert foreign.status == 200

    async def test_a_refused_request_frees_its_key(self, gateway: Gateway, phone: Phone) -> None:
        phone.behave(RingOut())
        headers = {**ACME, "Idempotency-Key": new_id("key")}
        request = body(sip={"outbound_address": phone.address})
        refused = await gateway.post(
            "/sip/call", json={**request, "to_phone_number": "x"}, headers=headers
        )
        assert refused.status == 400
        assert (await gateway.post("/sip/call", json=request, headers=headers)).status == 200

    @pytest.mark.parametrize("key", ["", "x" * 256, "kéy"])
    async def test_malformed_keys(self, gateway: Gateway, key: str) -> None:
        answer = await gateway.post(
            "/sip/call", json=body(), headers={**ACME, "Idempotency-Key": key}
        )
        assert (answer.status, answer.code) == (400, "INVALID_REQUEST")
