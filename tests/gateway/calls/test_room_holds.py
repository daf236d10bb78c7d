"""Tokens that outlive their rooms: which rooms they open, and which names are held for them."""

from __future__ import annotations

import asyncio
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

from core.events import ended
from core.jobs import Heartbeat
from core.models import CallEvent, new_id
from gateway.api.livekit_rooms import TOKEN_TTL
from gateway.calls.web import JOIN_WITHIN
from gateway.keys import DATABASE, call_services
from gateway.store.room_names import LEEWAY, MARGIN, RENEWED
from tests.conftest import ACME, RIVAL, operator
from tests.gateway.api.test_livekit_webhook import deliver
from tests.gateway.calls.test_reconciler import round_of
from tests.support.clock import Clock
from tests.support.edge import served
from tests.support.inprocess import SECRET, Running, running, settings_in
from tests.support.livekit_stub import LiveKitStub
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
