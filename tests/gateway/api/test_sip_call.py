"""POST /sip/call over HTTP, against LiveKit and a phone: placed calls and refused requests."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest
from livekit.api import LiveKitAPI
from livekit.protocol.room import DeleteRoomRequest, ListRoomsRequest, RoomParticipantIdentity
from sqlalchemy import text

from dev.phone import Phone, RingOut
from dev.stack import Stack
from gateway.store.database import Database
from tests.conftest import ACME, Gateway
from tests.support.calls import told
from tests.support.sip_call_rig import body, ended, hang_up

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

# Counting delays the insertion of this room's call by about a second.
SLOW = """
CREATE TRIGGER slow_insert BEFORE INSERT ON calls WHEN NEW.room_name = '{room}' BEGIN
    SELECT count(*) FROM (
        WITH RECURSIVE count(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM count WHERE n < 8000000)
        SELECT n FROM count
    );
END
"""


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


async def test_an_agent_that_is_quicker_than_the_database(
    stack: Stack, gateway: Gateway, phone: Phone
) -> None:
    """The agent is dispatched with the room, before the call's record is written."""
    request = body(sip={"outbound_address": phone.address}, agent="greeter")
    database = await Database.open(stack.settings.database_url)
    try:
        async with database.write() as connection:
            await connection.execute(text(SLOW.format(room=request["room_name"])))
        for _ in range(3):
            answer = await gateway.post("/sip/call", json=request)
            if answer.status != 503:
                break
            # On a busy machine the heartbeats, which wait for the same lock, come too late.
            assert answer.code == "AGENT_UNAVAILABLE"
            await asyncio.sleep(int(answer.headers["Retry-After"]))
        assert answer.status == 200, answer.body
        call = await phone.next_call(10)
        await call.answered(10)
        await call.speech_begins(20)
        await call.hangup()
        record = await ended(gateway, answer.body["call_id"])
        assert (record["status"], record["disconnectionReason"]) == ("completed", "user_hangup")
    finally:
        async with database.write() as connection:
            await connection.execute(text("DROP TRIGGER IF EXISTS slow_insert"))
        await database.close()


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
