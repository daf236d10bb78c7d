"""Sessions: their records and tokens, the workers that serve them, and how they end.

A session begins with its record and a token. The first socket with the token is attached to the
least loaded stream worker; later sockets of the session are attached to the same worker, or, if its
agent is lost, to another one (gateway.calls.streams.agents). A task follows each new session until
its socket has come or its token has expired.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from core.errors import Unauthenticated, Unavailable
from core.events import ended
from core.models import Agent, CallEvent, Direction, new_id, now
from core.recordings.command import Command
from core.tasks.owned import Owned
from core.tokens import InvalidToken
from gateway.calls.limits import CallLimits
from gateway.calls.streams.agents import Agents, Seat, place_of
from gateway.calls.streams.tokens import TOKEN_TTL, Bound, SessionToken, SessionTokens
from gateway.calls.streams.workers import AnyAttach, NoSession, Refused, StreamWorkers
from gateway.calls.timeline import Journal, Timeline, Watch
from gateway.store.call_status import Call
from gateway.store.calls import NewCall, Store
from gateway.store.database import Principal, Scope
from gateway.store.streams.sessions import Kind, Session, SessionStore

log = logging.getLogger(__name__)

CALLER = "caller"
"""The identity of the far end. The room's name in the record is the call's id."""

_NO_WORKER: Final = ended("failed", "agent_unavailable", note="no_stream_worker")

Standing = Literal["live", "over", "failed"]
"""``live``: a socket may be attached; ``failed``: nobody was there to answer."""


class StreamSessions:
    """Opens sessions, and owns the tasks that follow them."""

    def __init__(
        self,
        *,
        store: Store,
        sessions: SessionStore,
        tokens: SessionTokens,
        workers: StreamWorkers,
        agents: Agents,
        timeline: Timeline,
        journal: Journal,
        limits: CallLimits,
        clock: Callable[[], datetime] = now,
        news_within_s: float = 2.0,
    ) -> None:
        """``news_within_s``: how long a worker's event may take to reach us."""
        self._store = store
        self._sessions = sessions
        self._tokens = tokens
        self._workers = workers
        self._agents = agents
        self._timeline = timeline
        self._journal = journal
        self._limits = limits
        self._clock = clock
        self._news_within_s = news_within_s
        self._connected: Counter[str] = Counter()
        self._tasks = Owned("following a session")

    async def aclose(self) -> None:
        """Stop following; the reconciler of the next gateway ends what nobody came to."""
        await self._tasks.aclose()

    # --- the beginning

    async def open(
        self,
        principal: Principal,
        agent: Agent,
        *,
        kind: Kind,
        direction: Direction,
        from_number: str | None = None,
        to_number: str | None = None,
        metadata: dict[str, Any],
        record: bool,
    ) -> tuple[Call, SessionToken]:
        """Create a session's record, and a token for its first socket.

        Raises TooManyRequests, Unavailable ``AGENT_UNAVAILABLE``; the latter leaves a record that
        says why.
        """
        await self._limits.take(principal.auth_id)
        call_id = new_id("call")
        new = NewCall(
            id=call_id,
            auth_id=principal.auth_id,
            direction=direction,
            type="stream",
            room_name=call_id,
            participant_identity=CALLER,
            from_number=from_number,
            to_number=to_number,
            max_duration_ms=agent.config.max_duration_ms,
            agent=agent,
            metadata=metadata,
            record=record,
        )
        call = await self._limits.insert(new, CallEvent(type="call.queued"))
        token = await self.renew(call, kind)
        self.follow(call_id)
        return call, token

    def follow(self, call_id: str) -> None:
        """End the call when its token expires before a socket has come."""
        self._tasks.begin(call_id, self._follow(call_id, self._clock() + TOKEN_TTL))

    async def renew(
        self,
        call: Call,
        kind: Kind,
        *,
        ttl: timedelta = TOKEN_TTL,
        account_sid: str | None = None,
        call_sid: str | None = None,
    ) -> SessionToken:
        """Return a new token for a socket of the call; the former token is not valid any more.

        The first token creates the session. ``follow`` it then.
        """
        token = self._tokens.issue(call, ttl)
        session = Session(
            call_id=call.id,
            kind=kind,
            token_id=token.id,
            token_until=token.expires_at,
            account_sid=account_sid,
            call_sid=call_sid,
        )
        await self._sessions.add(session)
        return token

    async def _follow(self, call_id: str, until: datetime | None) -> None:
        while until is not None:
            # A second more, since a token may be redeemed in its last moment.
            await asyncio.sleep(max(0.0, (until - self._clock()).total_seconds()) + 1)
            session = await self._sessions.find(call_id)
            if session is None or session.attached or session.token_id is None:
                return
            until = session.token_until
            if until is not None and until <= self._clock():
                return await self.nobody_came(call_id)

    async def nobody_came(self, call_id: str) -> None:
        call = await self._store.call(Scope(None), call_id)
        if call is not None and not call.ended:
            await self._write_off(call_id, ended("canceled", "canceled", note="nobody came"))

    # --- sockets

    async def redeem(
        self,
        text: str,
        kind: Kind,
        *,
        account_sid: str | None = None,
        call_sid: str | None = None,
    ) -> tuple[Call, Session]:
        """Use a token up; return its call and its session as they are now.

        Raises Unauthenticated for a token that is not valid here and now, or, with Twilio's ids,
        for a session of another Twilio call.
        """
        try:
            token = self._tokens.verify(text)
        except InvalidToken:
            raise _not_valid() from None
        session = await self._sessions.redeem(
            token.bound.call_id, token.id, kind, account_sid=account_sid, call_sid=call_sid
        )
        call = await self._store.call(Scope(None), token.bound.call_id) if session else None
        if session is None or call is None or Bound.to(call) != token.bound:
            raise _not_valid()
        return call, session

    async def give_back(self, session: Session, text: str) -> None:
        """Make a used token valid again: it opened nothing. ``renew`` would need a new text."""
        token = self._tokens.verify(text)
        await self._sessions.add(replace(session, token_id=token.id, token_until=token.expires_at))

    async def of_token(self, text: str) -> tuple[Call, Session]:
        """Return the call and session of a token without using it up. Raises Unauthenticated."""
        try:
            token = self._tokens.verify(text)
        except InvalidToken:
            raise _not_valid() from None
        call = await self._store.call(Scope(None), token.bound.call_id)
        session = await self._sessions.find(token.bound.call_id)
        if call is None or session is None or session.token_id != token.id:
            raise _not_valid()
        return call, session

    @contextmanager
    def connected(self, call_id: str) -> Iterator[None]:
        """Count a client's socket of the session for the block."""
        self._connected[call_id] += 1
        try:
            yield
        finally:
            self._connected[call_id] -= 1
            if not self._connected[call_id]:
                del self._connected[call_id]

    def is_connected(self, call_id: str) -> bool:
        """Return True while a client's socket of the session is open at this gateway."""
        return call_id in self._connected

    async def attach(self, session: Session, attach: AnyAttach) -> Seat:
        """Attach a client's socket to the session's agent; see Agents.attach."""
        return await self._agents.attach(session, attach)

    # --- the end

    async def standing(self, call: Call, session: Session | None) -> Standing:
        """Return what another socket of the session would find.

        An agent that is gone is replaced when the socket comes.
        """
        if call.ended:
            return "failed" if call.status == "failed" else "over"
        if session is None or (place := place_of(session)) is None:
            return "live"
        try:
            if await self._workers.has(place, call.id, session.agent_epoch):
                return "live"
        except Refused:
            return "live"
        # The worker lives, and has no such session: its last events may still be on their way.
        watch = Watch(call.id, self._store, self._timeline)
        if not await watch.until("call.ended", timeout_s=self._news_within_s):
            return "live"
        over = await self._store.call(Scope(None), call.id)
        return "over" if over is not None and over.status != "failed" else "failed"

    async def unanswered(self, call_id: str) -> None:
        """End a call whose session no worker took."""
        await self._write_off(call_id, _NO_WORKER)

    async def end(self, call_id: str) -> None:
        """End the session on its worker, which closes its socket; the record is the caller's.

        Raises Unavailable ``AGENT_UNAVAILABLE``: the worker lives, but does not answer.
        """
        session = await self._sessions.find(call_id)
        if session is None or (place := place_of(session)) is None:
            return
        try:
            await self._workers.end(place, call_id)
        except Refused:
            call = await self._store.call(Scope(None), call_id)
            if call is None or call.agent_epoch > session.agent_epoch:
                return  # it has no agent now, and gets none any more
            if any(worker.worker_id == place.worker_id for worker in await self._workers.live()):
                raise Unavailable(
                    "The agent's worker does not answer", code="AGENT_UNAVAILABLE"
                ) from None

    async def command(self, call_id: str, command: Command) -> None:
        """Pass a command to the session's worker.

        Raises Unavailable ``AGENT_UNAVAILABLE``: the worker does not have it, or does not answer.
        """
        session = await self._sessions.find(call_id)
        place = place_of(session) if session is not None else None
        try:
            if place is None:
                raise NoSession
            await self._workers.command(place, call_id, command)
        except (NoSession, Refused):
            raise Unavailable(
                "The agent's worker does not answer", code="AGENT_UNAVAILABLE"
            ) from None

    async def _write_off(self, call_id: str, data: dict[str, Any]) -> None:
        await self._journal.write(call_id, "call.ended", data)


def _not_valid() -> Unauthenticated:
    """Return the same error for every reason: the reason would only help an attacker."""
    return Unauthenticated("The token is not valid")
