"""POST /sip/call: contracts.md §1, row by row, over HTTP, against LiveKit and a phone."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
from typing import Any

import pytest
from livekit.api import LiveKitAPI
from livekit.protocol.room import (
    CreateRoomRequest,
    DeleteRoomRequest,
    ListParticipantsRequest,
    ListRoomsRequest,
    RoomParticipantIdentity,
)
from livekit.protocol.sip import ListSIPOutboundTrunkRequest

from core.models import new_id
from dev.phone import Answer, Phone, Reject, RingOut
from dev.sipdigest import Credentials
from dev.stack import Stack
from dev.trunk import Trunk
from sip.dial import Dial, DialRequest
from sip.dial import Trunk as CallTrunk
from tests.calls import told
from tests.conftest import (
    ACME,
    GLOBAL_USER,
    RIVAL,
    Answered,
    Gateway,
    operator,
)

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

_numbers = itertools.count(1000)


def body(**changes: Any) -> dict[str, Any]:
    """A valid request without an agent, in a room of its own, to a number of its own."""
    values: dict[str, Any] = {
        "room_name": new_id("room"),
        "participant_name": "John Doe",
        "participant_identity": "caller-456",
        "from_phone_number": "+15105550123",
        "to_phone_number": f"+1555123{next(_numbers)}",
        "agent": None,
    }
    return {**values, **changes}


async def ended(gateway: Gateway, call_id: str, **options: Any) -> dict[str, Any]:
    """The record, once the timeline has said that it is over."""
    headers = options.get("headers", ACME)
    async with asyncio.timeout(30):
        async with gateway.session.get(f"/v1/calls/{call_id}/events", headers=headers) as events:
            assert events.status == 200
            text = await events.text()
    assert "event: ended" in text
    return dict((await gateway.get(f"/v1/calls/{call_id}", headers=headers)).body)


async def hang_up(gateway: Gateway, answer: Answered, phone: Phone) -> dict[str, Any]:
    call = await phone.next_call(5)
    await call.answered(5)
    await call.hangup()
    return await ended(gateway, answer.body["call_id"])


async def participants(livekit: LiveKitAPI, room: str) -> list[str]:
    listed = await livekit.room.list_participants(ListParticipantsRequest(room=room))
    return [participant.identity for participant in listed.participants]


class TestSuccess:
    async def test_the_answer_names_the_participant_in_the_room(
        self, gateway: Gateway, livekit: LiveKitAPI, phone: Phone
    ) -> None:
        phone.behave(RingOut())
        request = body(sip={"outbound_address": phone.address})
        answer = await gateway.post("/sip/call", json=request)
        assert answer.status == 200, answer.body
        assert answer.body["status"] == "initiated"
        assert answer.body["room_name"] == request["room_name"]
        assert answer.body["participant_identity"] == "caller-456"
        found = await livekit.room.get_participant(
            RoomParticipantIdentity(room=request["room_name"], identity="caller-456")
        )
        assert answer.body["participant_id"] == found.sid
        assert answer.body["sip_call_id"] == found.attributes["sip.callID"]
        call = await phone.next_call(5)
        assert call.called == request["to_phone_number"]
        assert call.caller == "+15105550123"
        await call.answer()
        await call.hangup()
        record = await ended(gateway, answer.body["call_id"])
        assert (record["status"], record["disconnectionReason"]) == ("completed", "user_hangup")
        assert record["sipCallId"] == answer.body["sip_call_id"]

    async def test_the_extensions_reach_the_phone_and_the_record(
        self, gateway: Gateway, phone: Phone
    ) -> None:
        request = body(
            sip={"outbound_address": phone.address},
            headers={"X-Campaign": "spring 1"},
            dtmf="12#",
            metadata={"lead": {"id": 882}},
            webhook_url="https://example.com/ignored-for-now",
            something_unknown=[1, 2],
        )
        answer = await gateway.post("/sip/call", json=request)
        assert answer.status == 200, answer.body
        call = await phone.next_call(5)
        assert call.headers["x-campaign"] == "spring 1"
        await call.answered(5)
        digits = [(await call.next_digit(5)).digit for _ in range(3)]
        assert digits == ["1", "2", "#"]
        await call.hangup()
        record = await ended(gateway, answer.body["call_id"])
        assert record["metadata"] == {"lead": {"id": 882}}

    @pytest.mark.parametrize("sip", [None, {}, {"outbound_address": None, "auth_username": None}])
    async def test_without_overrides_the_global_values_are_used(
        self, gateway: Gateway, exchange: Phone, sip: dict[str, Any] | None
    ) -> None:
        answer = await gateway.post("/sip/call", json=body(sip=sip))
        assert answer.status == 200, answer.body
        assert (await hang_up(gateway, answer, exchange))["status"] == "completed"

    async def test_a_dry_run_says_everything_but_secrets_and_dials_nothing(
        self, gateway: Gateway, livekit: LiveKitAPI, phone: Phone
    ) -> None:
        sip = {
            "outbound_address": phone.address,
            "auth_username": "u",
            "auth_password": "s3cret-pw",
        }
        request = body(sip=sip, dry_run=True)
        del request["agent"]
        answer = await gateway.post("/sip/call", json=request)
        assert answer.status == 200, answer.body
        assert answer.body["sip"]["outbound_address"] == phone.address
        assert answer.body["sip"]["auth_username"] == "u"
        assert "s3cret-pw" not in json.dumps(answer.body)
        assert answer.body["agent"]["id"] == "greeter"
        assert answer.body["room"] == "would be created"
        assert answer.body["policy"] == {"allowed": True, "reason": None}
        refused = await gateway.post("/sip/call", json={**request, "to_phone_number": "+1911"})
        assert refused.body["policy"] == {"allowed": False, "reason": "it is an emergency number"}
        listed = await livekit.room.list_rooms(ListRoomsRequest(names=[request["room_name"]]))
        assert not listed.rooms
        assert phone.invites == 0


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "code", "message"),
        [
            ({"room_name": " "}, "INVALID_REQUEST", "Room name cannot be empty"),
            ({"participant_name": ""}, "INVALID_REQUEST", "Participant name cannot be empty"),
            ({"participant_identity": "\t"}, "INVALID_REQUEST", "Participant identity cannot be"),
            ({"to_phone_number": "tel:+1555"}, "INVALID_PHONE_NUMBER", "Invalid to_phone_number: "),
            ({"to_phone_number": ""}, "INVALID_PHONE_NUMBER", "Invalid to_phone_number: "),
            ({"to_phone_number": "+1 555"}, "INVALID_PHONE_NUMBER", "Invalid to_phone_number: "),
            ({"to_phone_number": "1" * 21}, "INVALID_PHONE_NUMBER", "Invalid to_phone_number: "),
            ({"to_phone_number": "٠١٢٣"}, "INVALID_PHONE_NUMBER", "Invalid to_phone_number: "),
            ({"from_phone_number": "a"}, "INVALID_PHONE_NUMBER", "Invalid from_phone_number: "),
            (
                {"from_phone_number": "x", "to_phone_number": "y"},
                "INVALID_PHONE_NUMBER",
                "Invalid to_phone_number: ",
            ),
            ({"from_phone_number": "+1\r\nX: y"}, "INVALID_PHONE_NUMBER", "Invalid from_phone"),
            ({"sip": {"outbound_address": ""}}, "INVALID_OUTBOUND_ADDRESS", ""),
            ({"sip": {"outbound_address": "sip:x"}}, "INVALID_OUTBOUND_ADDRESS", ""),
            ({"sip": {"outbound_address": "a;b"}}, "INVALID_OUTBOUND_ADDRESS", ""),
            ({"sip": {"outbound_address": "h:99999"}}, "INVALID_OUTBOUND_ADDRESS", ""),
            ({"sip": {"outbound_address": "a\r\nb"}}, "INVALID_OUTBOUND_ADDRESS", ""),
            ({"sip": {"outbound_address": "u:p@h"}}, "INVALID_OUTBOUND_ADDRESS", ""),
            ({"sip": "provider"}, "INVALID_REQUEST", "sip"),
            ({"sip": {"auth_password": 7}}, "INVALID_REQUEST", "sip.auth_password"),
            ({"room_name": 7}, "INVALID_REQUEST", "room_name"),
            ({"room_name": None}, "INVALID_REQUEST", "room_name"),
            ({"room_name": "x" * 257}, "INVALID_REQUEST", "room_name"),
            ({"ringing_timeout_s": 0}, "INVALID_REQUEST", "ringing_timeout_s"),
            ({"ringing_timeout_s": 76}, "INVALID_REQUEST", "ringing_timeout_s"),
            ({"ringing_timeout_s": "30"}, "INVALID_REQUEST", "ringing_timeout_s"),
            ({"max_duration_s": 86_401}, "INVALID_REQUEST", "max_duration_s"),
            ({"headers": {"From": "x"}}, "INVALID_REQUEST", "Invalid headers"),
            ({"headers": {"X-A": "b\r\nVia: c"}}, "INVALID_REQUEST", "Invalid headers"),
            ({"dtmf": "12x"}, "INVALID_REQUEST", ""),
            ({"metadata": []}, "INVALID_REQUEST", "metadata"),
            ({"metadata": {"x": "y" * 20_000}}, "INVALID_REQUEST", "metadata"),
            ({"dry_run": "yes"}, "INVALID_REQUEST", "dry_run"),
        ],
    )
    async def test_bad_input(
        self, gateway: Gateway, changes: dict[str, Any], code: str, message: str
    ) -> None:
        answer = await gateway.post("/sip/call", json=body(**changes))
        assert (answer.status, answer.code) == (400, code), answer.body
        assert answer.body["error"].startswith(message)
        assert answer.headers["X-Request-Id"]

    @pytest.mark.parametrize(
        "field",
        [
            "room_name",
            "participant_name",
            "participant_identity",
            "from_phone_number",
            "to_phone_number",
        ],
    )
    async def test_missing_fields(self, gateway: Gateway, field: str) -> None:
        request = body()
        del request[field]
        answer = await gateway.post("/sip/call", json=request)
        assert (answer.status, answer.code) == (400, "INVALID_REQUEST")
        assert [detail["field"] for detail in answer.body["details"]] == [field]

    async def test_checks_come_in_their_order(self, gateway: Gateway) -> None:
        wrong = {
            "room_name": " ",
            "participant_name": " ",
            "participant_identity": " ",
            "to_phone_number": "x",
            "from_phone_number": "x",
            "sip": {"outbound_address": ""},
        }
        expected = [
            ("room_name", "Room name cannot be empty"),
            ("participant_name", "Participant name cannot be empty"),
            ("participant_identity", "Participant identity cannot be empty"),
            ("to_phone_number", "Invalid to_phone_number: "),
            ("from_phone_number", "Invalid from_phone_number: "),
            ("sip", "Invalid outbound address"),
        ]
        good = body()
        for field, message in expected:
            answer = await gateway.post("/sip/call", json={**good, **wrong})
            assert answer.body["error"].startswith(message)
            del wrong[field]

    async def test_no_token_comes_before_a_broken_body(self, gateway: Gateway) -> None:
        for headers, code in (
            ({}, "MISSING_AUTH_HEADER"),
            ({"Authorization": "Basic eDp5"}, "INVALID_AUTH_HEADER"),
            ({"Authorization": "Bearer nonsense"}, "UNAUTHORIZED"),
        ):
            answer = await gateway.post("/sip/call", headers=headers, data="{")
            assert (answer.status, answer.code) == (401, code)
            assert answer.headers["WWW-Authenticate"] == "Bearer"

    async def test_broken_bodies(self, gateway: Gateway) -> None:
        json_type = {**ACME, "Content-Type": "application/json"}
        for data, status, code in (
            ("{", 400, "INVALID_JSON"),
            ("", 400, "INVALID_JSON"),
            ("[" * 100_000, 400, "INVALID_JSON"),
            ("[]", 400, "INVALID_REQUEST"),
            ('"x"', 400, "INVALID_REQUEST"),
            (io.BytesIO(b"{" + b" " * 1_100_000), 413, "PAYLOAD_TOO_LARGE"),
        ):
            answer = await gateway.post("/sip/call", headers=json_type, data=data)
            assert (answer.status, answer.code) == (status, code)
        answer = await gateway.post(
            "/sip/call", headers={**ACME, "Content-Type": "text/plain"}, data="{}"
        )
        assert (answer.status, answer.code) == (415, "UNSUPPORTED_MEDIA_TYPE")

    async def test_unknown_agents_are_refused(self, gateway: Gateway) -> None:
        for agent in ("nobody", "../greeter", "", "greeter.yaml"):
            answer = await gateway.post("/sip/call", json=body(agent=agent))
            assert (answer.status, answer.code) == (404, "AGENT_NOT_FOUND")

    async def test_wrong_methods(self, gateway: Gateway) -> None:
        answer = await gateway.get("/sip/call")
        assert (answer.status, answer.code) == (405, "METHOD_NOT_ALLOWED")
        assert answer.headers["Allow"] == "POST"
        answer = await gateway.post("/sip/calls", json={})
        assert (answer.status, answer.code) == (404, "NOT_FOUND")


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
        """20 concurrent first calls of two tenants into one new room, 50 rounds.

        Two identities a tenant: what comes after the winner's first two is refused
        too, and a loser must not learn even that.
        """
        exchange.behave(RingOut())
        winners = set()
        try:
            for round_ in range(50):
                room_name = new_id("race")
                winners.add(await self._one_race(gateway, room_name, round_))
                await livekit.room.delete_room(DeleteRoomRequest(room=room_name))
        finally:
            exchange.behave(Answer())
        dialled = {call.called for call in exchange.calls if call.called.startswith("+1999")}
        assert dialled
        assert dialled <= winners
        print("LIVE", [(c.called, c.ending) for c in exchange.calls if c.ending is None])

    async def _one_race(self, gateway: Gateway, room_name: str, round_: int) -> str:
        """The number that the winner dialled; each tenant has one of its own a round."""
        numbers = (f"+1999{round_:02d}00001", f"+1999{round_:02d}00002")
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


def usernames(trunk: Trunk) -> set[str]:
    assert trunk.gate is not None
    return set(trunk.gate.usernames)


class TestTrunks:
    async def test_two_calls_from_one_number_go_to_their_own_hosts(
        self, gateway: Gateway, phone: Phone
    ) -> None:
        """Each with its own credentials, as their digest challenges see."""
        async with (
            Trunk(phone.address, Credentials("anna", "pw-of-anna")) as one,
            Trunk(phone.address, Credentials("bert", "pw-of-bert")) as two,
        ):
            overrides = [
                (one, {"auth_username": "anna", "auth_password": "pw-of-anna"}),
                (two, {"auth_username": "bert", "auth_password": "pw-of-bert"}),
            ]
            answers = await asyncio.gather(
                *(
                    gateway.post(
                        "/sip/call", json=body(sip={"outbound_address": trunk.address, **sip})
                    )
                    for trunk, sip in overrides
                )
            )
            assert [answer.status for answer in answers] == [200, 200]
            calls = [await phone.next_call(5), await phone.next_call(5)]
            for call in calls:
                await call.answered(5)
            assert usernames(one) == {"anna"}
            assert usernames(two) == {"bert"}
            for call in calls:
                await call.hangup()
            for answer in answers:
                record = await ended(gateway, answer.body["call_id"])
                assert record["status"] == "completed"

    async def test_global_credentials_stay_at_home(self, gateway: Gateway, phone: Phone) -> None:
        async with Trunk(phone.address, Credentials("anna", "pw-of-anna")) as trunk:
            answer = await gateway.post(
                "/sip/call", json=body(sip={"outbound_address": trunk.address})
            )
            assert answer.status == 200
            record = await ended(gateway, answer.body["call_id"])
            assert record["status"] == "failed"
            assert GLOBAL_USER not in usernames(trunk)
            assert phone.invites == 0

    async def test_no_trunk_is_left_after_100_calls(
        self, gateway: Gateway, stack: Stack, phone: Phone
    ) -> None:
        phone.behave(Reject(486))
        for _ in range(10):
            answers = await asyncio.gather(
                *(
                    gateway.post("/sip/call", json=body(sip={"outbound_address": phone.address}))
                    for _ in range(10)
                )
            )
            assert {answer.status for answer in answers} == {200}
            for answer in answers:
                record = await ended(gateway, answer.body["call_id"])
                assert (record["status"], record["sipStatusCode"]) == ("busy", 486)
        sip = stack.sip_api()
        trunks = await sip.sip.list_outbound_trunk(ListSIPOutboundTrunkRequest())
        await sip.aclose()
        assert list(trunks.items) == []


async def test_a_far_end_quicker_than_our_lookup(stack: Stack, phone: Phone) -> None:
    """Refused within a millisecond, the participant is gone before anybody saw it."""
    phone.behave(Reject(486))
    request = DialRequest(
        trunk=CallTrunk(address=phone.address),
        from_number="+15105550123",
        to_number="+15551230000",
        room_name=new_id("room"),
        participant_identity="caller-456",
        participant_name="John Doe",
    )
    async with stack.sip_api() as sip, LiveKitAPI("http://127.0.0.1:9", "key", "s" * 32) as nobody:
        dial = Dial(sip, nobody, request)
        ids = await dial.joined()
        outcome = await dial.verdict()
    assert ids.participant_id.startswith("PA_")
    assert ids.sip_call_id.startswith("SCL_")
    assert (outcome.status, outcome.sip_status_code) == ("busy", 486)


async def test_a_request_that_breaks_off_rings_no_longer(stack: Stack, phone: Phone) -> None:
    """A proxy's time-out, a lost connection: nobody would talk to whoever picks up."""
    host, port = stack.bridge_url.removeprefix("http://").split(":")
    relays: list[asyncio.StreamWriter] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relays.append(writer)
        _, onwards = await asyncio.open_connection(host, int(port))
        while data := await reader.read(65_536):
            onwards.write(data)
        onwards.close()

    phone.behave(RingOut())
    room = new_id("room")
    request = DialRequest(
        trunk=CallTrunk(address=phone.address),
        from_number="+15105550123",
        to_number="+15551230000",
        room_name=room,
        participant_identity="caller-456",
        participant_name="John Doe",
    )
    settings = stack.settings
    assert settings.livekit_api_secret is not None
    keys = settings.livekit_api_key, settings.livekit_api_secret.get_secret_value()
    async with (
        await asyncio.start_server(relay, "127.0.0.1", 0) as proxy,
        LiveKitAPI(
            f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}", *keys, failover=False
        ) as sip,
        stack.api() as livekit,
    ):
        dial = Dial(sip, livekit, request)
        await dial.joined()
        call = await phone.next_call(5)
        for writer in relays:
            writer.transport.abort()
        assert (await dial.verdict()).reason == "dial_failed"
        await call.ended(10)
        assert await participants(livekit, room) == []


async def test_delete_room_ends_the_call(
    gateway: Gateway, livekit: LiveKitAPI, phone: Phone
) -> None:
    request = body(sip={"outbound_address": phone.address})
    answer = await gateway.post("/sip/call", json=request)
    call = await phone.next_call(5)
    await call.answered(5)
    await told(gateway, answer.body["call_id"], "call.answered")
    await livekit.room.delete_room(DeleteRoomRequest(room=request["room_name"]))
    assert (await call.ended(5)).by == "remote"
    record = await ended(gateway, answer.body["call_id"])
    assert (record["status"], record["disconnectionReason"]) == ("completed", "agent_hangup")
