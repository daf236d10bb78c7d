"""Which tenant owns a room name, and which identities still have valid tokens for the room.

A LiveKit token opens a room by its name, even a room that is created later under that name. So a
name is held as long as any token for it may be valid: for the lifetime of each token that is
signed, and, while LiveKit has the room, for the time to which LiveKit renews the tokens of its
participants. No other tenant can claim a held name; its holder may use it again at any time.

In the same way an identity is reserved for the holder of its token and never given to a phone,
because LiveKit disconnects the first of two participants with the same identity. The reservation
outlasts the token's own lifetime only while its participant is connected. So a room that is never
closed does not accumulate the identities of all past participants.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import and_, bindparam, case, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from core.models import new_id, now
from gateway.fields.names import is_name
from gateway.store.database import Database, one_at_a_time, whole
from gateway.store.tables import CallRow, RoomClaimRow, RoomTokenRow

LEEWAY = timedelta(minutes=1)
"""LiveKit accepts a token this long after it expires (protocol/auth/verifier.go, tokenLeeway)."""
RENEWED = timedelta(minutes=10)
"""Lifetime of a renewed token. LiveKit renews tokens with less time left every five minutes while
their holder is connected (livekit-server 1.13.5, service/roommanager.go, tokenDefaultTTL and
tokenRefreshInterval)."""
MARGIN = timedelta(minutes=4)
"""Allowance for clock skew, requests in flight, and the interval between two room listings."""
# A hold that ends less than this before the wanted time is not extended.
_SLACK = timedelta(minutes=1)
# A claim counts this long by itself: a gateway of a release without holds may run beside this one.
_CLAIM_STALE = timedelta(seconds=15)
_BATCH = 500
_REMEMBERED = 20_000

MAX_IDENTITIES = 1000
"""The most identities of a room with valid tokens at a time."""

_CLAIMS: Any = RoomClaimRow.__table__
_TOKENS: Any = RoomTokenRow.__table__

# Built once: every dial and every LiveKit webhook runs these queries.
_CLAIM = select(_CLAIMS.c.room_name, _CLAIMS.c.auth_id, _CLAIMS.c.label).where(
    _CLAIMS.c.room_name == bindparam("room")
)
_HOLDER = _CLAIM.where(_CLAIMS.c.held_until >= bindparam("moment"))
_LABELLED = _CLAIM.where(_CLAIMS.c.label == bindparam("label"))
_KNOWN = select(_CLAIMS.c.room_name, _CLAIMS.c.auth_id, _CLAIMS.c.held_until).where(
    _CLAIMS.c.room_name.in_(bindparam("rooms", expanding=True))
)
_ENDING = select(_TOKENS.c.room_name, _TOKENS.c.identity).where(
    _TOKENS.c.room_name.in_(bindparam("rooms", expanding=True)),
    _TOKENS.c.valid_until < bindparam("late"),
)


class HeldByCall(Exception):
    """An unfinished call has the identity in the room."""


class HeldByToken(Exception):
    """A token for the identity may still be valid in the room."""


class TooManyIdentities(Exception):
    """Tokens for MAX_IDENTITIES others may be valid in the room."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A tenant's hold on a room name; ``auth_id`` is None for the operator.

    ``label`` stands for the tenant in tokens.
    """

    room_name: str
    auth_id: str | None
    label: str


class RoomNames:
    """Room names and identities in the database. All methods raise Unavailable."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock
        # Name → the time until which it is held at least. No gateway ever shortens a hold or gives
        # a held name to another tenant, so this cache needs no check against the database.
        self._held: dict[str, datetime] = {}
        self._keep = _holding(database)
        self._claim = _holding(database, only_own=True)

    @whole
    async def claim(self, room_name: str, auth_id: str | None, valid: timedelta) -> Claim | None:
        """Claim a name, or extend its hold, for tokens of lifetime ``valid``.

        None: another tenant holds it. If two tenants claim it concurrently, only one succeeds.
        """
        return await self._hold(self._claim, room_name, auth_id, valid)

    @whole
    async def keep(self, room_name: str, auth_id: str | None, valid: timedelta) -> Claim:
        """Extend the hold of the name's current holder; claim it for ``auth_id`` if it is free."""
        claim = await self._hold(self._keep, room_name, auth_id, valid)
        assert claim is not None
        return claim

    async def _hold(
        self, statement: Any, room_name: str, auth_id: str | None, valid: timedelta
    ) -> Claim | None:
        values = self._values(room_name, auth_id, valid)
        async with self._database.write() as connection:
            row = (await connection.execute(statement, values)).one_or_none()
        if row is None:
            return None
        self._remember(room_name, values["held_until"])
        return Claim(*row)

    def _remember(self, room_name: str, held_until: datetime) -> None:
        if len(self._held) >= _REMEMBERED:
            self._held.clear()
        self._held[room_name] = held_until

    @whole
    async def holder(self, room_name: str) -> Claim | None:
        """Return the claim that holds the name now; None if it is free."""
        return await self._one(_HOLDER, {"room": room_name, "moment": self._clock()})

    @whole
    async def labelled(self, room_name: str, label: str) -> Claim | None:
        """Return the claim that a token's label stands for."""
        return await self._one(_LABELLED, {"room": room_name, "label": label})

    async def _one(self, query: Any, values: dict[str, Any]) -> Claim | None:
        async with self._database.read() as connection:
            row = (await connection.execute(query, values)).one_or_none()
        return None if row is None else Claim(*row)

    # --- rooms that exist in LiveKit, which renews their participants' tokens

    @whole
    async def seen(self, rooms: Mapping[str, str | None]) -> None:
        """Extend the holds of rooms that exist in LiveKit, or did a moment ago.

        ``rooms`` maps each name to its tenant, or to None if no tenant is known. For the identities
        in the rooms see ``ending`` and ``renew``.

        A room without a tenant is held only if a token was signed for it here. Names that this
        project would refuse are not held, since PostgreSQL could not store all of them.
        """
        late = self._late()
        never = datetime.min.replace(tzinfo=UTC)
        names = [name for name in filter(is_name, rooms) if self._held.get(name, never) < late]
        for start in range(0, len(names), _BATCH):
            await self._prolong({name: rooms[name] for name in names[start : start + _BATCH]})

    async def _prolong(self, rooms: Mapping[str, str | None]) -> None:
        late = self._late()
        async with self._database.read() as connection:
            rows = await connection.execute(_KNOWN, {"rooms": list(rooms)})
            known = {row.room_name: row for row in rows}
        wanted = dict(rooms)
        for name, row in known.items():
            if row.held_until is not None and row.held_until >= late:
                self._remember(name, row.held_until)
                del wanted[name]
            elif wanted[name] is None:
                wanted[name] = row.auth_id
        # All gateways write in the same order, so that two cannot deadlock on each other's rows.
        hold = [(name, wanted[name]) for name in sorted(wanted) if name in known or wanted[name]]
        if not hold:
            return
        async with self._database.write() as connection:
            for name, whose in hold:
                await connection.execute(self._keep, self._values(name, whose, RENEWED))
        for name, _ in hold:
            self._remember(name, late)

    @whole
    async def ending(self, rooms: Iterable[str]) -> dict[str, set[str]]:
        """Return, by room, the identities whose reservation may end before their renewed token."""
        names = list(filter(is_name, rooms))
        found: dict[str, set[str]] = {}
        for start in range(0, len(names), _BATCH):
            values = {"rooms": names[start : start + _BATCH], "late": self._late()}
            async with self._database.read() as connection:
                for room_name, identity in await connection.execute(_ENDING, values):
                    found.setdefault(room_name, set()).add(identity)
        return found

    @whole
    async def renew(self, renewed: Mapping[str, Collection[str]]) -> None:
        """Extend the reservations of identities, by room, whose tokens LiveKit may have renewed."""
        wanted = [(name, sorted(renewed[name])) for name in sorted(renewed) if renewed[name]]
        if not wanted:
            return
        async with self._database.write() as connection:
            for name, identities in wanted:
                for start in range(0, len(identities), _BATCH):
                    some = identities[start : start + _BATCH]
                    await _renew(
                        connection,
                        self._renewed_until(),
                        _TOKENS.c.room_name == name,
                        _TOKENS.c.identity.in_(some),
                    )

    @whole
    async def resume(self) -> None:
        """Extend all holds and reservations at start.

        LiveKit's rooms may have gone unwatched for a while, and any token may have been renewed.
        """
        until = self._renewed_until()
        async with self._database.write() as connection:
            held = update(_CLAIMS).where(_CLAIMS.c.held_until < until)
            await connection.execute(held.values(held_until=until))
            await _renew(connection, until)

    @whole
    async def sweep(self) -> None:
        """Delete holds and reservations that have expired."""
        moment = self._clock()
        async with self._database.write() as connection:
            await connection.execute(delete(_CLAIMS).where(_free(moment, moment - _CLAIM_STALE)))
            await connection.execute(delete(_TOKENS).where(_TOKENS.c.valid_until < moment))

    # --- identities

    @whole
    async def admit(
        self, room_name: str, identity: str, valid: timedelta, *, call_id: str | None = None
    ) -> None:
        """Reserve the identity for a token that is about to be signed.

        ``call_id``: the token is for the participant of that call. Raises HeldByCall, and
        TooManyIdentities (never for a call's own participant). If a token and a call ask for the
        same identity concurrently, one of them is refused.
        """
        live = select(CallRow.id, CallRow.participant_identity).where(
            CallRow.room_name == room_name, CallRow.ended_at.is_(None)
        )
        values = {
            "room_name": room_name,
            "identity": identity,
            "valid_until": self._until(valid),
        }
        async with self._database.write() as connection:
            await one_at_a_time(connection, f"identities in {room_name}")
            for other_id, other in await connection.execute(live):
                if identity in joining_as(other) and other_id != call_id:
                    raise HeldByCall
            if call_id is None:
                others = (
                    _TOKENS.c.room_name == room_name,
                    _TOKENS.c.identity != identity,
                    _TOKENS.c.valid_until >= self._clock(),
                )
                count = select(func.count()).select_from(_TOKENS).where(*others)
                if (await connection.scalar(count) or 0) >= MAX_IDENTITIES:
                    raise TooManyIdentities
            wanted = self._database.insert(_TOKENS).values(values)
            await connection.execute(
                wanted.on_conflict_do_update(
                    index_elements=["room_name", "identity"],
                    set_={"valid_until": wanted.excluded.valid_until},
                    where=_TOKENS.c.valid_until < wanted.excluded.valid_until,
                )
            )

    def _values(self, room_name: str, auth_id: str | None, valid: timedelta) -> dict[str, Any]:
        moment = self._clock()
        return {
            "room_name": room_name,
            "auth_id": auth_id,
            "label": new_id("rml"),
            "claimed_at": moment,
            "held_until": self._until(valid),
            "moment": moment,
            "stale": moment - _CLAIM_STALE,
        }

    def _until(self, valid: timedelta) -> datetime:
        return self._clock() + valid + LEEWAY + MARGIN

    def _renewed_until(self) -> datetime:
        return self._until(RENEWED)

    def _late(self) -> datetime:
        return self._renewed_until() - _SLACK


def joining_as(identity: str) -> list[str]:
    """Return the identities whose tokens let a client join as ``identity``.

    A client that asks for a publisher connection gets its token's identity with ``#`` and a suffix
    of its own choice (livekit-server 1.13.5, service/utils.go).
    """
    return [
        identity,
        *(identity[:at] for at, character in enumerate(identity) if character == "#"),
    ]


async def refuse_held(
    connection: AsyncConnection, room_name: str, identity: str, moment: datetime
) -> None:
    """Check, in the transaction that inserts a call, that no token is valid for its identity.

    Raises HeldByToken.
    """
    await one_at_a_time(connection, f"identities in {room_name}")
    values = {"room": room_name, "identities": joining_as(identity), "moment": moment}
    if (await connection.execute(_HELD, values)).first() is not None:
        raise HeldByToken


_HELD = select(_TOKENS.c.identity).where(
    _TOKENS.c.room_name == bindparam("room"),
    _TOKENS.c.identity.in_(bindparam("identities", expanding=True)),
    _TOKENS.c.valid_until >= bindparam("moment"),
)


async def _renew(connection: AsyncConnection, until: datetime, *which: Any) -> None:
    renewed = update(_TOKENS).where(_TOKENS.c.valid_until < until, *which)
    await connection.execute(renewed.values(valid_until=until))


def _free(moment: Any, stale: Any) -> Any:
    """Return the condition that a row's name is free."""
    held_until = _CLAIMS.c.held_until
    return and_(_CLAIMS.c.claimed_at < stale, or_(held_until.is_(None), held_until < moment))


def _holding(database: Database, *, only_own: bool = False) -> Any:
    """Return the statement that claims a name or extends its hold.

    It is a single statement, so that the database settles races. With ``only_own`` it changes and
    returns nothing if another tenant holds the name.
    """
    wanted = database.insert(_CLAIMS)
    wanted = wanted.values({name: bindparam(name) for name in _CLAIMS.c.keys()})
    new = wanted.excluded
    free = _free(
        bindparam("moment", type_=_CLAIMS.c.held_until.type),
        bindparam("stale", type_=_CLAIMS.c.claimed_at.type),
    )
    own = _CLAIMS.c.auth_id.is_not_distinct_from(new.auth_id)
    longer = _CLAIMS.c.held_until > new.held_until
    return wanted.on_conflict_do_update(
        index_elements=["room_name"],
        set_={
            "auth_id": case((free, new.auth_id), else_=_CLAIMS.c.auth_id),
            "label": case(
                (free & ~own, new.label), else_=func.coalesce(_CLAIMS.c.label, new.label)
            ),
            "claimed_at": new.claimed_at,
            "held_until": case((longer, _CLAIMS.c.held_until), else_=new.held_until),
        },
        where=own | free if only_own else None,
    ).returning(_CLAIMS.c.room_name, _CLAIMS.c.auth_id, _CLAIMS.c.label)
