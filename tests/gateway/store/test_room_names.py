"""Which tenant holds a room name, and until when: one contract on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta

import pytest
from sqlalchemy import event, insert

from core.events import ended
from core.models import CallEvent, new_id
from gateway.store.calls import LiveIdentity, NewCall, Store
from gateway.store.database import Database
from gateway.store.room_names import (
    LEEWAY,
    MARGIN,
    MAX_IDENTITIES,
    RENEWED,
    HeldByCall,
    HeldByToken,
    RoomNames,
    TooManyIdentities,
    joining_as,
)
from gateway.store.tables import RoomTokenRow
from tests.support.clock import Clock
from tests.support.databases import OnPostgres, OnSqlite

pytestmark = pytest.mark.store

HOUR = timedelta(hours=1)
MOMENT = timedelta(seconds=1)
VALID = HOUR + LEEWAY + MARGIN


def new_call(room_name: str, identity: str, **changes: object) -> NewCall:
    values: dict[str, object] = {
        "id": new_id("call"),
        "auth_id": "acme",
        "direction": "outbound",
        "room_name": room_name,
        "participant_identity": identity,
        "from_number": "+15105550123",
        "to_number": "+15551234567",
        "max_duration_ms": 60_000,
        "metadata": {},
    }
    return NewCall(**{**values, **changes})  # type: ignore[arg-type]


def queued() -> CallEvent:
    return CallEvent(type="call.queued")


class RoomNamesContract:
    @pytest.fixture
    async def database(self, url: str) -> AsyncIterator[Database]:
        database = await Database.open(url)
        yield database
        await database.close()

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def names(self, database: Database, clock: Clock) -> RoomNames:
        return RoomNames(database, clock)

    async def test_a_name_is_one_tenants(self, names: RoomNames) -> None:
        first = await names.claim("lobby", "acme", HOUR)
        assert first is not None and first.auth_id == "acme"
        assert await names.claim("lobby", "acme", HOUR) == first
        assert await names.claim("lobby", "rival", HOUR) is None
        assert await names.claim("lobby", None, HOUR) is None
        assert await names.claim("hall", None, HOUR) is not None
        assert await names.claim("hall", "acme", HOUR) is None

    async def test_concurrent_claims_have_one_winner(self, names: RoomNames) -> None:
        for turn in range(10):
            tenants = [("acme", "rival")[n % 2] for n in range(20)]
            won = await asyncio.gather(
                *(names.claim(f"race-{turn}", tenant, HOUR) for tenant in tenants)
            )
            winners = {tenant for tenant, claim in zip(tenants, won, strict=True) if claim}
            assert len(winners) == 1
            claims = [claim for claim in won if claim is not None]
            assert len(claims) == 10
            assert len(set(claims)) == 1, "with one label"

    @pytest.mark.parametrize("owner", ["acme", None])
    @pytest.mark.parametrize("valid", [timedelta(seconds=30), HOUR, timedelta(hours=24)])
    async def test_it_is_held_as_long_as_livekit_takes_the_token(
        self, names: RoomNames, clock: Clock, owner: str | None, valid: timedelta
    ) -> None:
        first = await names.claim("room", owner, valid)
        clock.forward(valid + LEEWAY + MARGIN - MOMENT)
        await names.sweep()
        assert await names.claim("room", "rival", valid) is None
        assert await names.holder("room") == first
        clock.forward(2 * MOMENT)
        taken = await names.claim("room", "rival", valid)
        assert first is not None and taken is not None
        assert taken.label != first.label, "an old token's label is nobody's now"
        assert await names.labelled("room", first.label) is None
        assert await names.claim("room", owner, valid) is None

    async def test_a_shorter_token_does_not_shorten_it(
        self, names: RoomNames, clock: Clock
    ) -> None:
        await names.claim("room", "acme", HOUR)
        await names.claim("room", "acme", timedelta(seconds=30))
        await names.keep("room", None, timedelta(seconds=30))
        await names.seen({"room": "acme"})
        clock.forward(VALID - MOMENT)
        assert await names.claim("room", "rival", HOUR) is None

    async def test_whoever_keeps_it_keeps_it_for_its_holder(
        self, names: RoomNames, clock: Clock
    ) -> None:
        first = await names.claim("room", "acme", HOUR)
        for other in (None, "rival"):
            clock.forward(HOUR)
            assert await names.keep("room", other, HOUR) == first
        clock.forward(VALID + MOMENT)
        assert (await names.keep("room", "rival", HOUR)).auth_id == "rival"

    async def test_a_swept_name_is_free(self, names: RoomNames, clock: Clock) -> None:
        await names.claim("room", "acme", HOUR)
        await names.sweep()
        assert await names.holder("room") is not None
        clock.forward(VALID + MOMENT)
        await names.sweep()
        assert await names.holder("room") is None
        assert await names.claim("room", "rival", HOUR) is not None

    # --- while the room lives, and after

    @pytest.mark.parametrize("told", ["acme", None, "rival"])
    async def test_a_room_that_lives_holds_its_name_whatever_it_says(
        self, names: RoomNames, clock: Clock, told: str | None
    ) -> None:
        await names.claim("room", "acme", HOUR)
        for _ in range(12):
            clock.forward(RENEWED + LEEWAY + MARGIN - timedelta(minutes=1))
            await names.seen({"room": told, "other": "acme"})
            await names.sweep()
        clock.forward(RENEWED + LEEWAY + timedelta(minutes=1))
        assert await names.claim("room", "rival", HOUR) is None
        clock.forward(MARGIN)
        assert await names.claim("room", "rival", HOUR) is not None

    async def test_what_is_held_for_long_is_not_looked_up_at_each_webhook(
        self, database: Database, names: RoomNames, clock: Clock
    ) -> None:
        """A call has about six webhooks; each gateway looks up the name only once."""
        await names.claim("room", "acme", HOUR)
        other = RoomNames(database, clock)
        await other.seen({"room": "acme"})
        asked: list[str] = []

        def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
            asked.append(statement)

        event.listen(database._engine.sync_engine, "before_cursor_execute", note)
        for gateway in (names, other):
            await gateway.seen({"room": "acme"})
            assert not asked
        clock.forward(HOUR)
        await names.seen({"room": "acme"})
        assert asked, "LiveKit renews the tokens beyond the hour"
        clock.forward(RENEWED)
        assert await other.claim("room", "rival", HOUR) is None

    async def test_a_tenants_room_that_others_made_is_held(self, names: RoomNames) -> None:
        await names.seen({"room": "acme", "nobodys": None})
        assert await names.claim("room", "rival", HOUR) is None
        assert await names.claim("nobodys", "rival", HOUR) is not None

    async def test_what_is_no_name_harms_nobody(self, names: RoomNames) -> None:
        """Only LiveKit's own keys can create rooms with such names."""
        odd = ["\x00", "a\x00b", "a\nb", "", " ", "x" * 300, "\u202ea"]
        await names.seen({**dict.fromkeys(odd, "acme"), "room": "acme"})
        assert await names.claim("room", "rival", HOUR) is None

    async def test_many_rooms_at_a_look(self, names: RoomNames, clock: Clock) -> None:
        rooms = {f"room-{n}": "acme" for n in range(501)}
        await names.seen(rooms)
        clock.forward(RENEWED)
        await names.seen(rooms)
        clock.forward(RENEWED)
        assert await names.claim("room-0", "rival", HOUR) is None
        assert await names.claim("room-500", "rival", HOUR) is None

    async def test_after_nobody_looked_for_hours_all_may_have_been_renewed(
        self, names: RoomNames, database: Database, clock: Clock
    ) -> None:
        await names.claim("room", "acme", HOUR)
        await names.admit("room", "bob", HOUR)
        clock.forward(5 * HOUR)
        await names.resume()
        await names.sweep()
        assert await names.claim("room", "rival", HOUR) is None
        with pytest.raises(HeldByToken):
            await Store(database).insert_call(new_call("room", "bob"), queued())

    # --- identities

    @pytest.mark.parametrize("identity", ["bob", "bob#", "bob#1", "bob#1#2", "bob##"])
    async def test_a_phone_is_not_given_an_identity_that_a_token_opens(
        self, names: RoomNames, database: Database, identity: str
    ) -> None:
        await names.admit("room", "bob", HOUR)
        store = Store(database)
        with pytest.raises(HeldByToken):
            await store.insert_call(new_call("room", identity), queued())
        await store.insert_call(new_call("room", "bobby"), queued())
        await store.insert_call(new_call("room", "Bob"), queued())
        await store.insert_call(new_call("elsewhere", identity), queued())

    @pytest.mark.parametrize("identity", ["bob#1#2", "bob#1", "bob"])
    async def test_nobody_gets_a_token_for_a_phone(
        self, names: RoomNames, database: Database, identity: str
    ) -> None:
        store = Store(database)
        call = await store.insert_call(new_call("room", "bob#1#2"), queued())
        with pytest.raises(HeldByCall):
            await names.admit("room", identity, HOUR)
        for other in ("bo", "bob#", "bob#1#2#3", "BOB"):
            await names.admit("room", other, HOUR)
        await names.admit("elsewhere", identity, HOUR)
        over = CallEvent(type="call.ended", data=ended("completed", "user_hangup"))
        await store.append(call.id, [over], "gateway")
        await names.admit("room", identity, HOUR)

    async def test_a_refused_token_holds_nothing(
        self, names: RoomNames, database: Database
    ) -> None:
        store = Store(database)
        call = await store.insert_call(new_call("room", "bob"), queued())
        with pytest.raises(HeldByCall):
            await names.admit("room", "bob", HOUR)
        over = CallEvent(type="call.ended", data=ended("completed", "user_hangup"))
        await store.append(call.id, [over], "gateway")
        await store.insert_call(new_call("room", "bob"), queued())

    async def test_the_calls_own_participant_gets_a_token(
        self, names: RoomNames, database: Database
    ) -> None:
        own = new_call("room", "visitor", direction="web")
        await Store(database).insert_call(own, queued())
        await names.admit("room", "visitor", HOUR, call_id=own.id)
        with pytest.raises(HeldByCall):
            await names.admit("room", "visitor", HOUR, call_id="call_other")

    @pytest.mark.parametrize("direction", ["inbound", "web"])
    async def test_those_who_call_us_are_never_refused_for_it(
        self, names: RoomNames, database: Database, direction: str
    ) -> None:
        await names.admit("room", "bob", HOUR)
        await Store(database).insert_call(new_call("room", "bob", direction=direction), queued())

    async def test_of_a_token_and_a_call_at_once_one_is_refused(
        self, names: RoomNames, database: Database
    ) -> None:
        store = Store(database)
        for turn in range(20):
            room = f"race-{turn}"
            outcomes = await asyncio.gather(
                names.admit(room, "bob", HOUR),
                store.insert_call(new_call(room, "bob"), queued()),
                names.admit(room, "bob", HOUR),
                store.insert_call(new_call(room, "bob"), queued()),
                return_exceptions=True,
            )
            tokens, calls = (
                [one for one in outcomes[start::2] if not isinstance(one, Exception)]
                for start in (0, 1)
            )
            refused = [one for one in outcomes if isinstance(one, Exception)]
            assert all(isinstance(one, HeldByCall | HeldByToken | LiveIdentity) for one in refused)
            assert (len(tokens), len(calls)) in {(2, 0), (0, 1)}

    async def test_an_identity_is_free_when_its_token_is_over(
        self, names: RoomNames, database: Database, clock: Clock
    ) -> None:
        store = Store(database)
        clock.forward(-VALID - MOMENT)  # calls use the real clock
        await names.admit("room", "bob", HOUR)
        await names.admit("lives", "bob", HOUR)
        clock.forward(VALID - RENEWED)
        assert await names.ending(["lives", "none", "\x00"]) == {"lives": {"bob"}}
        await names.renew({"lives": {"bob", "nobody", "\x01"}, "room": ()})
        assert await names.ending(["lives", "none"]) == {}
        await store.insert_call(new_call("room", "bob"), queued())
        with pytest.raises(HeldByToken):
            await store.insert_call(new_call("lives", "bob"), queued())
        clock.forward(RENEWED + 2 * MOMENT)
        await names.sweep()
        with pytest.raises(HeldByToken):
            await store.insert_call(new_call("lives", "bob"), queued())

    async def test_a_room_that_lives_keeps_no_identity_by_itself(
        self, names: RoomNames, database: Database, clock: Clock
    ) -> None:
        clock.forward(-VALID - MOMENT)  # calls use the real clock
        await names.claim("room", "acme", HOUR)
        await names.admit("room", "bob", HOUR)
        for _ in range(6):
            clock.forward(VALID / 6)
            await names.seen({"room": "acme"})
        clock.forward(MOMENT)
        await Store(database).insert_call(new_call("room", "bob"), queued())

    async def test_more_identities_than_a_batch_are_renewed(
        self, names: RoomNames, database: Database, clock: Clock
    ) -> None:
        many = {f"visitor-{n}" for n in range(501)}
        await self.admit_all(database, clock, many)
        clock.forward(HOUR)
        await names.renew({"room": many})
        assert await names.ending(["room"]) == {}

    async def test_tokens_are_for_so_many_at_a_time(
        self, names: RoomNames, database: Database, clock: Clock
    ) -> None:
        await self.admit_all(database, clock, (f"visitor-{n}" for n in range(MAX_IDENTITIES)))
        with pytest.raises(TooManyIdentities):
            await names.admit("room", "late", HOUR)
        await names.admit("room", "visitor-7", HOUR)
        await names.admit("elsewhere", "late", HOUR)
        call = await Store(database).insert_call(
            new_call("room", "visitor", direction="web"), queued()
        )
        await names.admit("room", "visitor", HOUR, call_id=call.id)
        clock.forward(VALID + MOMENT)
        await names.admit("room", "late", HOUR)

    async def admit_all(self, database: Database, clock: Clock, identities: Iterable[str]) -> None:
        rows = [
            {"room_name": "room", "identity": identity, "valid_until": clock() + VALID}
            for identity in identities
        ]
        async with database.write() as connection:
            await connection.execute(insert(RoomTokenRow), rows)


@pytest.mark.attack
class TestSqlite(OnSqlite, RoomNamesContract):
    pass


class TestPostgres(OnPostgres, RoomNamesContract):
    pass


@pytest.mark.parametrize(
    ("identity", "openers"),
    [
        ("bob", ["bob"]),
        ("bob#1", ["bob#1", "bob"]),
        ("#", ["#", ""]),
        ("a#b#c", ["a#b#c", "a", "a#b"]),
        ("a##", ["a##", "a", "a#"]),
    ],
)
def test_who_joins_as_whom(identity: str, openers: list[str]) -> None:
    assert joining_as(identity) == openers
