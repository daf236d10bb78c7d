"""Rooms that open after their token was issued, the identities of valid tokens, and odd names."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from livekit.protocol.models import ParticipantInfo
from sqlalchemy import text
from yarl import URL

from core.models import CallEvent, new_id
from gateway.api.livekit_rooms import TOKEN_TTL
from gateway.calls.rooms import LABEL
from gateway.keys import DATABASE, LIMITS
from gateway.store.call_status import Call
from gateway.store.room_names import LEEWAY, MARGIN
from tests.conftest import ACME, RIVAL, operator
from tests.gateway.api.test_livekit_webhook import deliver
from tests.gateway.calls.test_reconciler import round_of
from tests.gateway.calls.test_room_holds import (
    MINUTE,
    NO_ROOM,
    Headers,
    claims_of,
    close,
    dial,
    dialled_into,
    get_token,
    join,
    kept,
    post,
    show,
    shut_out,
)
from tests.gateway.calls.test_room_holds import gateway as gateway
from tests.gateway.calls.test_room_holds import livekit as livekit
from tests.support.inprocess import Running
from tests.support.livekit_stub import LiveKitStub, agent, phone
from tests.support.sip_call_rig import body

pytestmark = [pytest.mark.store, pytest.mark.attack, pytest.mark.asyncio(loop_scope="module")]


class TestALateJoin:
    """LiveKit has closed the empty room; a join with the token creates it again."""

    async def test_the_token_names_nobody(self, gateway: Running) -> None:
        claims = await claims_of(gateway, new_id("room"))
        assert set(json.loads(claims["roomConfig"]["metadata"])) == {LABEL}
        assert "acme" not in json.dumps(claims)
        again = await claims_of(gateway, claims["video"]["room"])
        assert again["roomConfig"] == claims["roomConfig"]
        other = await claims_of(gateway, new_id("room"))
        assert other["roomConfig"] != claims["roomConfig"]

    async def late(self, gateway: Running, livekit: LiveKitStub) -> str:
        room = new_id("room")
        claims = await claims_of(gateway, room)
        close(livekit, room)
        gateway.clock.forward(timedelta(minutes=50))
        join(livekit, claims)
        assert "acme" not in livekit.metadata[room]
        return room

    @pytest.mark.parametrize("look", ["show", "list", "token", "dial", "dry", "round", "webhook"])
    async def test_any_look_makes_it_the_tenants(
        self, gateway: Running, livekit: LiveKitStub, look: str
    ) -> None:
        room = await self.late(gateway, livekit)
        match look:
            case "show":
                assert (await show(gateway, room))[0] == 200
            case "list":
                async with gateway.http.get("/livekit/rooms", headers=ACME) as response:
                    rooms = (await response.json())["rooms"]
                    assert room in [one["room_name"] for one in rooms]
            case "token":
                assert (await get_token(gateway, room))[0] == 200
            case "dial":
                assert (await dial(gateway, room))[0] == 200
            case "dry":
                assert (await dial(gateway, room, dry_run=True))[0] == 200
            case "round":
                await round_of(gateway)
            case _:
                seen = {"sid": "RM_1", "name": room, "metadata": livekit.metadata[room]}
                told = {"id": new_id("EV"), "event": "room_started", "room": seen}
                assert await deliver(gateway, told) == 200
        assert json.loads(livekit.metadata[room]) == {"auth_id": "acme"}
        await shut_out(gateway, livekit, room)

    async def test_an_old_webhook_changes_nothing(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        room = await self.late(gateway, livekit)
        seen = {"sid": "RM_1", "name": room, "metadata": livekit.metadata[room]}
        livekit.metadata[room] = '{"auth_id": "acme", "purpose": "support"}'
        told = {"id": new_id("EV"), "event": "participant_joined", "room": seen}
        assert await deliver(gateway, told) == 200
        assert json.loads(livekit.metadata[room]) == {"auth_id": "acme", "purpose": "support"}

    async def test_other_keys_are_kept(self, gateway: Running, livekit: LiveKitStub) -> None:
        room = await self.late(gateway, livekit)
        labelled = json.loads(livekit.metadata[room])
        livekit.metadata[room] = json.dumps({**labelled, "purpose": "support"})
        assert (await show(gateway, room))[0] == 200
        assert json.loads(livekit.metadata[room]) == {"auth_id": "acme", "purpose": "support"}

    async def test_an_operators_room_stays_nobodys(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        room = new_id("room")
        claims = await claims_of(gateway, room, operator())
        assert "metadata" not in claims["roomConfig"]
        join(livekit, claims)
        await shut_out(gateway, livekit, room)
        assert (await dial(gateway, room, operator()))[0] == 200
        assert livekit.metadata[room] == ""

    async def test_an_operators_token_for_a_tenants_room_makes_it_the_tenants(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        room = new_id("room")
        await claims_of(gateway, room)
        claims = await claims_of(gateway, room, operator())
        close(livekit, room)
        join(livekit, claims)
        assert (await show(gateway, room))[0] == 200

    async def test_a_label_is_worth_something_for_its_own_room_only(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        label = (await claims_of(gateway, new_id("room")))["roomConfig"]["metadata"]
        forged = [
            label,
            json.dumps({LABEL: "rml_" + "0" * 24}),
            json.dumps({LABEL: None}),
            json.dumps({LABEL: {"auth_id": "acme"}}),
            json.dumps({LABEL: ["acme"]}),
            json.dumps({LABEL: "acme"}),
            json.dumps([LABEL]),
            "",
        ]
        for metadata in forged:
            room = new_id("room")
            livekit.enter(room)
            livekit.metadata[room] = metadata
            assert await show(gateway, room) == (404, NO_ROOM), metadata
            assert await dial(gateway, room) == (404, NO_ROOM), metadata
            assert livekit.metadata[room] == metadata, "untouched"

    async def test_a_label_takes_no_room_from_the_tenant_it_names(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        room = new_id("room")
        label = json.loads((await claims_of(gateway, room))["roomConfig"]["metadata"])
        livekit.metadata[room] = json.dumps({**label, "auth_id": "rival"})
        assert await show(gateway, room) == (404, NO_ROOM)
        assert (await show(gateway, room, RIVAL))[0] == 200


class TestIdentities:
    @pytest.mark.parametrize("identity", ["bob", "bob#", "bob#1", "bob#a#b"])
    async def test_no_phone_gets_one_that_a_token_opens(
        self, gateway: Running, livekit: LiveKitStub, identity: str
    ) -> None:
        room = new_id("room")
        assert (await get_token(gateway, room, "bob"))[0] == 200
        status, answer = await dial(gateway, room, participant_identity=identity)
        assert (status, answer["code"]) == (409, "PARTICIPANT_EXISTS")
        assert dialled_into(livekit, room) == []
        close(livekit, room)
        gateway.clock.forward(TOKEN_TTL)
        assert (await dial(gateway, room, participant_identity=identity))[0] == 409
        gateway.clock.forward(LEEWAY + MARGIN + MINUTE)
        assert (await dial(gateway, room, participant_identity=identity))[0] == 200

    @pytest.mark.parametrize(("meanwhile", "status"), [("call", 409), ("token", 409), (None, 200)])
    async def test_nor_does_one_that_is_taken_at_the_last_moment(
        self,
        gateway: Running,
        monkeypatch: pytest.MonkeyPatch,
        meanwhile: str | None,
        status: int,
    ) -> None:
        """A stale call's identity is freed, and may be taken again before the dial is retried."""
        room, limits = new_id("room"), gateway.app[LIMITS]
        left = await gateway.call(room_name=room, participant_identity="desk")
        await gateway.store.append(left.id, [CallEvent(type="call.dialing")], "gateway")
        insert, tries = limits.insert, itertools.count(1)

        async def insert_late(*new: Any, **options: Any) -> Call:
            if next(tries) == 2:
                if meanwhile == "call":
                    await gateway.call(room_name=room, participant_identity="desk")
                elif meanwhile == "token":
                    assert (await get_token(gateway, room, "desk"))[0] == 200
            return await insert(*new, **options)

        monkeypatch.setattr(limits, "insert", insert_late)
        answered, answer = await dial(gateway, room, participant_identity="desk")
        assert answered == status, answer
        assert status == 200 or answer["code"] == "PARTICIPANT_EXISTS"
        assert next(tries) == 3

    @pytest.mark.parametrize("identity", ["bob#a#b", "bob#a", "bob"])
    @pytest.mark.parametrize("whose", [lambda: ACME, operator], ids=["tenants", "operators"])
    async def test_no_token_carries_a_phones(
        self, gateway: Running, identity: str, whose: Callable[[], Headers]
    ) -> None:
        headers = whose()  # made now: a token made at collection may have expired
        room = new_id("room")
        status, call = await dial(gateway, room, participant_identity="bob#a#b")
        assert status == 200, call
        status, answer = await get_token(gateway, room, identity, headers)
        assert (status, answer["code"]) == (409, "PARTICIPANT_EXISTS")
        assert (await get_token(gateway, room, "alice", headers))[0] == 200

    @pytest.mark.parametrize("there", [phone("desk"), phone("desk#1"), agent("desk")])
    async def test_nor_that_of_one_whom_others_have_dialled(
        self, gateway: Running, livekit: LiveKitStub, there: ParticipantInfo
    ) -> None:
        room = new_id("room")
        assert (await get_token(gateway, room))[0] == 200
        livekit.enter(room, there)
        status, answer = await get_token(gateway, room, "desk")
        assert (status, answer["code"]) == (409, "PARTICIPANT_EXISTS")
        livekit.rooms[room].clear()
        status, answer = await dial(gateway, room, participant_identity="desk")
        assert status == 200, "what was refused is kept for nobody"

    async def test_tokens_are_for_a_thousand_at_a_time(self, gateway: Running) -> None:
        room = new_id("room")
        assert (await get_token(gateway, room))[0] == 200
        others = (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 999) "
            "INSERT INTO room_tokens SELECT room_name, 'visitor-' || i, valid_until "
            "FROM n, room_tokens WHERE room_name = :room"
        )
        async with gateway.app[DATABASE].write() as connection:
            await connection.execute(text(others), {"room": room})
        request = {"room_name": room, "participant_name": "B", "participant_identity": "bob"}
        async with gateway.http.post("/livekit/token", json=request, headers=ACME) as response:
            assert response.status == 429
            assert int(response.headers["Retry-After"]) > 0
            assert (await response.json())["code"] == "RATE_LIMITED"
        assert (await get_token(gateway, room))[0] == 200
        assert (await get_token(gateway, new_id("room"), "bob"))[0] == 200
        assert await kept(gateway, room) == {"alice", *(f"visitor-{n}" for n in range(1, 1000))}

    async def test_a_person_may_come_again(self, gateway: Running, livekit: LiveKitStub) -> None:
        room = new_id("room")
        join(livekit, await claims_of(gateway, room))
        assert (await get_token(gateway, room, "alice"))[0] == 200

    async def test_another_tenant_learns_nothing_of_them(self, gateway: Running) -> None:
        room = new_id("room")
        assert (await get_token(gateway, room, "bob"))[0] == 200
        for identity in ("bob", "eve"):
            assert await dial(gateway, room, RIVAL, participant_identity=identity) == (404, NO_ROOM)
            assert await get_token(gateway, room, identity, RIVAL) == (404, NO_ROOM)

    async def test_of_a_token_and_a_call_at_once_one_is_refused(self, gateway: Running) -> None:
        for _ in range(5):
            room = new_id("room")
            answers = await asyncio.gather(
                get_token(gateway, room, "bob"), dial(gateway, room, participant_identity="bob")
            )
            assert sorted(status for status, _ in answers) == [200, 409]

    async def test_the_record_of_the_refused_call_is_not_kept(self, gateway: Running) -> None:
        room = new_id("room")
        await get_token(gateway, room, "bob")
        await dial(gateway, room, participant_identity="bob")
        assert await gateway.store.find_live_call(room, "bob") is None


class TestNames:
    """The endpoints' answers; tests/gateway/fields/test_names.py tests the rule itself."""

    @pytest.mark.parametrize("bad", ["a\nb", "\x1b[31m", "a\x7f", "a\u202eb", "\u200bx", "é" * 129])
    @pytest.mark.parametrize(
        ("path", "field"),
        [
            ("/sip/call", "room_name"),
            ("/sip/call", "participant_name"),
            ("/sip/call", "participant_identity"),
            ("/livekit/token", "room_name"),
            ("/livekit/token", "participant_name"),
            ("/livekit/token", "participant_identity"),
            ("/sip/transfer", "room_name"),
            ("/sip/transfer", "participant_identity"),
            ("/livekit/participant/mute", "room_name"),
        ],
    )
    async def test_what_cannot_be_seen_is_refused(
        self, gateway: Running, path: str, field: str, bad: str
    ) -> None:
        document = body(transfer_to="1234", track_sid="TR_x", muted=True, **{field: bad})
        status, answer = await post(gateway, path, document)
        assert (status, answer["code"]) == (400, "INVALID_REQUEST")
        assert [detail["field"] for detail in answer["details"]] == [field]

    @pytest.mark.parametrize("blank", ["", " ", "\t\n", "\u00a0"])
    @pytest.mark.parametrize("field", ["room_name", "participant_name", "participant_identity"])
    async def test_blank_ones_have_words_of_their_own(
        self, gateway: Running, field: str, blank: str
    ) -> None:
        status, answer = await post(gateway, "/sip/call", body(**{field: blank}))
        what = field.replace("_", " ").capitalize()
        assert (status, answer) == (
            400,
            {"error": f"{what} cannot be empty", "code": "INVALID_REQUEST"},
        )

    @pytest.mark.parametrize("identity", ["agent-x", "sip_1", "transfer-0"])
    async def test_reserved_identities(self, gateway: Running, identity: str) -> None:
        status, answer = await get_token(gateway, new_id("room"), identity, operator())
        assert (status, answer["code"]) == (400, "INVALID_REQUEST")
        assert [detail["field"] for detail in answer["details"]] == ["participant_identity"]

    @pytest.mark.parametrize("name", ["c%0Ad", "%FF", "%ED%A0%80", "%E2%80%AE", "y" * 300])
    @pytest.mark.parametrize("whose", [lambda: ACME, operator], ids=["tenant", "operator"])
    async def test_no_room_is_called_so(
        self, gateway: Running, name: str, whose: Callable[[], Headers]
    ) -> None:
        headers = whose()  # made now: a token made at collection may have expired
        url = URL(f"/livekit/rooms/{name}", encoded=True)
        async with gateway.http.get(url, headers=headers) as response:
            assert (response.status, await response.json()) == (404, NO_ROOM)
