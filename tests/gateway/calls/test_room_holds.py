"""Tokens that outlive their rooms: which rooms they open, and which names are held for them."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio
from livekit.protocol.models import ParticipantInfo
from sqlalchemy import text
from yarl import URL

from core.events import ended
from core.jobs import Heartbeat
from core.models import CallEvent, new_id
from gateway.api.livekit_rooms import TOKEN_TTL
from gateway.calls.rooms import LABEL
from gateway.calls.web import JOIN_WITHIN
from gateway.keys import DATABASE, LIMITS, call_services
from gateway.store.call_status import Call
from gateway.store.room_names import LEEWAY, MARGIN, RENEWED
from tests.conftest import ACME, RIVAL, operator
from tests.gateway.api.test_livekit_webhook import deliver
from tests.gateway.calls.test_reconciler import round_of
from tests.support.clock import Clock
from tests.support.edge import served
from tests.support.inprocess import SECRET, Running, running, settings_in
from tests.support.livekit_stub import LiveKitStub, agent, phone
from tests.support.sip_call_rig import body

pytestmark = [pytest.mark.store, pytest.mark.attack, pytest.mark.asyncio(loop_scope="module")]

NO_ROOM = {"error": "Room not found or not accessible", "code": "ROOM_NOT_FOUND"}
MINUTE = timedelta(minutes=1)
Headers = dict[str, str]


@pytest.fixture(scope="module")
def livekit() -> LiveKitStub:
    return LiveKitStub()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory, livekit: LiveKitStub
) -> AsyncIterator[Running]:
    """One gateway for all tests; every test uses names of its own."""
    async with started(livekit, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@asynccontextmanager
async def started(
    livekit: LiveKitStub, folder: Path, clock: Clock | None = None
) -> AsyncIterator[Running]:
    async with served(livekit.app()) as edge:
        url = f"http://127.0.0.1:{edge.port}"
        settings = settings_in(folder, livekit_url=url, sip_outbound_address="127.0.0.1:9")
        async with running(settings, clock=clock) as gateway:
            yield gateway


async def post(
    gateway: Running, path: str, document: dict[str, Any], headers: Headers = ACME
) -> tuple[int, Any]:
    async with gateway.http.post(path, json=document, headers=headers) as response:
        return response.status, await response.json()


async def get_token(
    gateway: Running, room: str, identity: str = "alice", headers: Headers = ACME
) -> tuple[int, Any]:
    request = {"room_name": room, "participant_name": "Alice", "participant_identity": identity}
    return await post(gateway, "/livekit/token", request, headers)


async def claims_of(gateway: Running, room: str, headers: Headers = ACME) -> Any:
    status, answer = await get_token(gateway, room, headers=headers)
    assert status == 200, answer
    return jwt.decode(answer["token"], SECRET, algorithms=["HS256"])


async def dial(
    gateway: Running, room: str, headers: Headers = ACME, **changes: Any
) -> tuple[int, Any]:
    return await post(gateway, "/sip/call", body(room_name=room, **changes), headers)


async def show(gateway: Running, room: str, headers: Headers = ACME) -> tuple[int, Any]:
    async with gateway.http.get(f"/livekit/rooms/{room}", headers=headers) as response:
        return response.status, await response.json()


async def kept(gateway: Running, room: str) -> set[str]:
    """Return the identities of the room's tokens."""
    query = text("SELECT identity FROM room_tokens WHERE room_name = :room")
    async with gateway.app[DATABASE].read() as connection:
        return set(await connection.scalars(query, {"room": room}))


def dialled_into(livekit: LiveKitStub, room: str) -> list[str]:
    return [asked.sip_call_to for asked in livekit.dialled if asked.room_name == room]


def close(livekit: LiveKitStub, room: str) -> None:
    """Close the room, as LiveKit does when nobody is left."""
    livekit.rooms.pop(room, None)
    livekit.metadata.pop(room, None)


def join(livekit: LiveKitStub, claims: Any) -> None:
    """Join with the token, which creates the room if LiveKit has none of that name."""
    room = claims["video"]["room"]
    if room not in livekit.rooms:
        livekit.metadata[room] = claims.get("roomConfig", {}).get("metadata", "")
    livekit.enter(room, ParticipantInfo(identity=claims["sub"], sid="PA_a"))


async def shut_out(gateway: Running, livekit: LiveKitStub, room: str) -> None:
    """Check that the rival cannot get the name in any way, and learns nothing about it."""
    before = len(livekit.created), dialled_into(livekit, room)
    assert await get_token(gateway, room, headers=RIVAL) == (404, NO_ROOM)
    assert await dial(gateway, room, RIVAL, dry_run=True) == (404, NO_ROOM)
    assert await dial(gateway, room, RIVAL) == (404, NO_ROOM)
    assert await show(gateway, room, RIVAL) == (404, NO_ROOM)
    assert (len(livekit.created), dialled_into(livekit, room)) == before


class TestAnOldToken:
    @pytest.mark.parametrize(
        "after",
        [
            timedelta(seconds=16),
            timedelta(seconds=32),
            timedelta(minutes=30),
            TOKEN_TTL - MINUTE,
            TOKEN_TTL + LEEWAY,
            TOKEN_TTL + LEEWAY + MARGIN - MINUTE,
        ],
    )
    @pytest.mark.parametrize("whose", [lambda: ACME, operator], ids=["tenants", "operators"])
    async def test_opens_no_room_of_another_tenants(
        self, gateway: Running, livekit: LiveKitStub, after: timedelta, whose: Callable[[], Headers]
    ) -> None:
        headers = whose()  # made now: a token made at collection may have expired
        room = new_id("room")
        await claims_of(gateway, room, headers)
        close(livekit, room)
        gateway.clock.forward(after)
        await round_of(gateway)
        await shut_out(gateway, livekit, room)
        assert (await get_token(gateway, room, headers=headers))[0] == 200, "its own"
        assert (await dial(gateway, room, headers))[0] == 200

    async def test_when_no_token_is_valid_the_name_is_free(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        room = new_id("room")
        await claims_of(gateway, room)
        close(livekit, room)
        gateway.clock.forward(TOKEN_TTL + LEEWAY + MARGIN + MINUTE)
        assert (await dial(gateway, room, RIVAL))[0] == 200
        assert json.loads(livekit.metadata[room]) == {"auth_id": "rival"}
        assert await get_token(gateway, room) == (404, NO_ROOM)

    async def test_a_visitors_of_a_web_call(self, gateway: Running, livekit: LiveKitStub) -> None:
        await gateway.store.heartbeat(
            Heartbeat(worker_id="w", agent_name="switchroom", capacity=4, active=0)
        )
        status, answer = await post(gateway, "/v1/calls/web", {"agentId": "greeter"})
        assert status == 200, answer
        room = answer["callId"]
        claims = jwt.decode(answer["accessToken"], SECRET, algorithms=["HS256"])
        assert "acme" not in json.dumps(claims)
        assert (await get_token(gateway, room, "visitor"))[0] == 409
        over = CallEvent(type="call.ended", data=ended("completed", "user_hangup"))
        await gateway.store.append(room, [over], "gateway")
        close(livekit, room)
        gateway.clock.forward(JOIN_WITHIN + LEEWAY + MARGIN - MINUTE)
        await shut_out(gateway, livekit, room)
        assert (await dial(gateway, room, participant_identity="visitor"))[0] == 409
        join(livekit, claims)
        assert (await show(gateway, room))[1]["metadata"] == '{"auth_id": "acme"}'

    @pytest.mark.parametrize("after", [MINUTE, timedelta(hours=23)])
    async def test_a_phones_and_an_agents(
        self, gateway: Running, livekit: LiveKitStub, after: timedelta
    ) -> None:
        """The tokens of LiveKit's SIP service are valid for a day."""
        room = new_id("room")
        status, answer = await dial(gateway, room)
        assert status == 200, answer
        close(livekit, room)
        gateway.clock.forward(after)
        await round_of(gateway)
        await shut_out(gateway, livekit, room)

    @pytest.mark.parametrize("room_of", ["acme", "nobody"])
    async def test_opens_no_room_that_others_have_made_since(
        self, gateway: Running, livekit: LiveKitStub, room_of: str
    ) -> None:
        """A room made by hand is refused even to its tenant: the rival's token would open it."""
        room = new_id("room")
        await claims_of(gateway, room, RIVAL)
        close(livekit, room)
        livekit.enter(room)
        livekit.metadata[room] = '{"auth_id": "acme"}' if room_of == "acme" else ""
        assert await dial(gateway, room) == (404, NO_ROOM)
        assert await dial(gateway, room, dry_run=True) == (404, NO_ROOM)
        assert await get_token(gateway, room) == (404, NO_ROOM)
        assert dialled_into(livekit, room) == []

    async def test_an_operators_call_into_a_held_name_is_its_holders(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        room = new_id("room")
        await claims_of(gateway, room)
        close(livekit, room)
        assert (await dial(gateway, room, operator()))[0] == 200
        assert json.loads(livekit.metadata[room]) == {"auth_id": "acme"}


class TestRenewals:
    """LiveKit renews the tokens of connected participants, for ten minutes each time."""

    LAST = RENEWED + LEEWAY

    async def lives_on(self, gateway: Running, livekit: LiveKitStub) -> str:
        """Return a room whose participant has stayed until after the first token expired."""
        room = new_id("room")
        join(livekit, await claims_of(gateway, room))
        gateway.clock.forward(TOKEN_TTL + LEEWAY + MARGIN + MINUTE)
        return room

    async def test_the_regular_look_is_enough(self, gateway: Running, livekit: LiveKitStub) -> None:
        room = await self.lives_on(gateway, livekit)
        for _ in range(5):
            await round_of(gateway)
            gateway.clock.forward(RENEWED)
        await round_of(gateway)
        close(livekit, room)
        gateway.clock.forward(self.LAST + MINUTE)
        await round_of(gateway)
        await shut_out(gateway, livekit, room)
        gateway.clock.forward(MARGIN)
        assert (await dial(gateway, room, RIVAL))[0] == 200

    async def test_they_keep_the_identity_too(self, gateway: Running, livekit: LiveKitStub) -> None:
        room = await self.lives_on(gateway, livekit)
        await round_of(gateway)
        close(livekit, room)
        gateway.clock.forward(self.LAST + MINUTE)
        await round_of(gateway)
        assert (await dial(gateway, room, participant_identity="alice"))[0] == 409
        gateway.clock.forward(MARGIN)
        assert (await dial(gateway, room, participant_identity="alice"))[0] == 200

    async def visited(self, gateway: Running, livekit: LiveKitStub) -> str:
        """Return a room with alice and carol but without bob; all three tokens have expired."""
        room = await self.lives_on(gateway, livekit)
        for identity in ("bob", "carol"):
            assert (await get_token(gateway, room, identity))[0] == 200
        livekit.enter(room, ParticipantInfo(identity="carol#2", sid="PA_c"))
        gateway.clock.forward(TOKEN_TTL)
        return room

    async def test_only_those_who_are_there_are_kept(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        room = await self.visited(gateway, livekit)
        for _ in range(3):
            await round_of(gateway)
            gateway.clock.forward(RENEWED)
        await round_of(gateway)
        assert await kept(gateway, room) == {"alice", "carol"}
        assert (await dial(gateway, room, participant_identity="bob"))[0] == 200
        assert (await dial(gateway, room, participant_identity="alice"))[0] == 409
        assert (await dial(gateway, room, participant_identity="carol#2"))[0] == 409

    @pytest.mark.parametrize("problem", ["not_found", "unavailable", "internal"])
    async def test_all_are_when_livekit_does_not_tell_who_is_there(
        self, gateway: Running, livekit: LiveKitStub, problem: str
    ) -> None:
        room = await self.visited(gateway, livekit)
        livekit.failing[room] = problem
        await round_of(gateway)
        gateway.clock.forward(RENEWED)
        await round_of(gateway)
        assert await kept(gateway, room) == {"alice", "bob", "carol"}

    @pytest.mark.parametrize(
        ("event", "participant", "stays"),
        [
            ("participant_joined", "bob", {"bob"}),
            ("participant_left", "bob", {"bob"}),
            ("participant_left", "carol#2", {"carol"}),
            ("participant_left", "dave", set()),
            ("room_finished", None, set()),
        ],
    )
    async def test_a_webhook_keeps_whom_it_tells_of(
        self,
        gateway: Running,
        livekit: LiveKitStub,
        event: str,
        participant: str | None,
        stays: set[str],
    ) -> None:
        """A participant may have joined and left between two rounds."""
        room = await self.visited(gateway, livekit)
        close(livekit, room)
        told = {"id": new_id("EV"), "event": event, "room": {"sid": "RM_1", "name": room}}
        if participant is not None:
            told["participant"] = {"sid": "PA_1", "identity": participant}
        assert await deliver(gateway, told) == 200
        gateway.clock.forward(self.LAST + MARGIN - MINUTE)
        await round_of(gateway)
        assert await kept(gateway, room) == stays

    @pytest.mark.parametrize(
        "event",
        [
            "room_finished",
            "participant_left",
            "participant_connection_aborted",
            "participant_joined",
        ],
    )
    async def test_a_webhook_is_enough(
        self, gateway: Running, livekit: LiveKitStub, event: str
    ) -> None:
        room = await self.lives_on(gateway, livekit)
        close(livekit, room)
        told = {"id": new_id("EV"), "event": event, "room": {"sid": "RM_1", "name": room}}
        assert await deliver(gateway, told) == 200
        gateway.clock.forward(self.LAST + MINUTE)
        await round_of(gateway)
        await shut_out(gateway, livekit, room)

    async def test_a_gateway_that_was_away_for_hours(
        self, tmp_path: Path, livekit: LiveKitStub
    ) -> None:
        async with started(livekit, tmp_path) as before:
            room = new_id("room")
            join(livekit, await claims_of(before, room))
        # The clock moves while no gateway runs: one that ran would sweep the expired name.
        before.clock.forward(timedelta(hours=5))
        close(livekit, room)  # just now
        async with started(livekit, tmp_path, before.clock) as gateway:
            await shut_out(gateway, livekit, room)
            await round_of(gateway)
            gateway.clock.forward(self.LAST + MINUTE)
            await shut_out(gateway, livekit, room)

    async def test_a_gateway_that_could_not_look_for_a_while(
        self, gateway: Running, livekit: LiveKitStub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        room = await self.lives_on(gateway, livekit)
        close(livekit, room)
        rooms = call_services(gateway.app).rooms
        monkeypatch.setattr(rooms, "_looked_at", rooms._looked_at - 10 * 60)
        await rooms.look()
        await shut_out(gateway, livekit, room)

    @pytest.mark.parametrize("first", ["token", "dial", "dry"])
    async def test_the_first_request_after_it_is_before_the_next_look(
        self,
        gateway: Running,
        livekit: LiveKitStub,
        monkeypatch: pytest.MonkeyPatch,
        first: str,
    ) -> None:
        room = await self.lives_on(gateway, livekit)
        close(livekit, room)
        rooms = call_services(gateway.app).rooms
        monkeypatch.setattr(rooms, "_looked_at", rooms._looked_at - 20 * 60)

        async def ask() -> tuple[int, Any]:
            if first == "token":
                return await get_token(gateway, room, headers=RIVAL)
            return await dial(gateway, room, RIVAL, dry_run=first == "dry")

        answers = await asyncio.gather(*(ask() for _ in range(5)))
        assert answers == [(404, NO_ROOM)] * 5
        await shut_out(gateway, livekit, room)
        assert (await dial(gateway, room))[0] == 200

    async def test_names_that_are_no_names_do_no_harm(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        """Only LiveKit's own keys can create such rooms; PostgreSQL cannot store a NUL."""
        for name in ("\x00", "a\x00b", "a\nb", " ", "x" * 300):
            livekit.enter(name)
            livekit.metadata[name] = '{"auth_id": "acme"}'
        room = await self.lives_on(gateway, livekit)
        await round_of(gateway)
        await shut_out(gateway, livekit, room)


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

        async def insert_late(*new: Any) -> Call:
            if next(tries) == 2:
                if meanwhile == "call":
                    await gateway.call(room_name=room, participant_identity="desk")
                elif meanwhile == "token":
                    assert (await get_token(gateway, room, "desk"))[0] == 200
            return await insert(*new)

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
