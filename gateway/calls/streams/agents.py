"""The agents of a session: which worker has the present one, and who comes when it is lost.

A session's agents are numbered (core.recovery). Its row (gateway.store.streams.sessions) says which
worker is to have the agent of which epoch; one UPDATE decides between gateways, so that no two
workers are given the same one. A new socket of the client's, and an open one whose agent is lost,
get the next agent in the same way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from core.errors import Gone, Unavailable
from core.events import ended
from core.models import now
from core.recovery import Lost, Why
from core.streams.messages import Format, SocketAttach
from core.tokens import TokenIssuer
from gateway.calls.limits import no_worker
from gateway.calls.streams.workers import (
    DEADLINE_S,
    AnyAttach,
    NoSession,
    Place,
    Refused,
    StreamWorkers,
    WorkerSocket,
)
from gateway.calls.timeline import Journal, Timeline
from gateway.store.call_status import Call
from gateway.store.calls import Store
from gateway.store.database import Scope
from gateway.store.streams.sessions import Session, SessionStore

log = logging.getLogger(__name__)

Loss = Literal["broke", "stalled", "leaves", "overtaken"]
"""What the relay has seen of a worker: its socket broke, or does not answer; it has closed with
``LEAVES``; or ``overtaken``: another agent is the session's, as the timeline says."""

ReportLost = Callable[[str, int, Lost], Awaitable[bool | None]]
"""gateway.calls.recovery.Recovery.lost."""

_WHY: dict[Loss, Why] = {"broke": "vanished", "stalled": "hung", "leaves": "stopped"}
_AGAIN_WITHIN_S: dict[Loss, float] = {"broke": 1.0, "stalled": 0.5}
"""How long a worker may take to attach the socket again before its agent is lost."""
_RETRY_S = 0.2
_GATHER_S = 0.1
"""Several events come at once: look after the last."""


class Overtaken(Exception):
    """Another socket of the session has taken over."""


@dataclass(slots=True)
class _Claim:
    """The epoch for which this gateway has named a worker, and which one."""

    epoch: int = -1
    worker_id: str | None = None


class Seat:
    """The present agent's side of one client's socket: ``socket`` is to its worker."""

    def __init__(
        self, agents: Agents, attach: AnyAttach, call_id: str, socket: WorkerSocket, claim: _Claim
    ) -> None:
        self.call_id = call_id
        self.socket = socket
        self._agents = agents
        self._attach = attach
        self._claim = claim

    @property
    def epoch(self) -> int:
        return self._claim.epoch

    async def next(self, loss: Loss, seen_at: datetime, last_seq: int = 0) -> WorkerSocket:
        """Return a new socket: to the same agent if it is still there, else to the next one.

        ``seen_at``: when the agent was last heard of. ``last_seq``: the last event that the client
        was sent. Raises Gone: the call is over; Overtaken; Unavailable (the database).
        """
        attach = self._attach
        if isinstance(attach, SocketAttach):
            attach = attach.model_copy(update={"last_seq": last_seq})
        self.socket = await self._agents.next(self.call_id, attach, self._claim, loss, seen_at)
        return self.socket

    async def overtaken(self) -> bool:
        """Return True once the session's agent is not this one any more."""
        return await self._agents.overtaken(self.call_id, self._claim.epoch)

    async def left(self) -> None:
        """The client has hung up while no agent was there."""
        await self._agents.hung_up(self.call_id)


class Agents:
    """Attaches sockets to sessions' agents."""

    def __init__(
        self,
        *,
        store: Store,
        sessions: SessionStore,
        workers: StreamWorkers,
        timeline: Timeline,
        journal: Journal,
        tokens: TokenIssuer,
        lost: ReportLost,
        within_s: float,
    ) -> None:
        """``within_s``: how long to look for a worker for the next agent."""
        self._store = store
        self._sessions = sessions
        self._workers = workers
        self._timeline = timeline
        self._journal = journal
        self._tokens = tokens
        self._lost = lost
        self._within_s = within_s

    async def attach(self, session: Session, attach: AnyAttach) -> Seat:
        """Attach a client's new socket to the session: with ``resume`` to the present agent or,
        if that is lost, to the next one; else to the first one.

        Raises Gone ``CALL_ENDED``; Unavailable ``AGENT_UNAVAILABLE``: no worker takes the first.
        """
        claim = _Claim()
        if attach.resume:
            socket = await self._resumed(session.call_id, attach, claim)
        elif (placed := await self._placed(session, 0, attach, claim)) is None:
            raise Gone("The session is another socket's")
        else:
            socket = placed
        return Seat(self, attach, session.call_id, socket, claim)

    async def next(
        self, call_id: str, attach: AnyAttach, claim: _Claim, loss: Loss, seen_at: datetime
    ) -> WorkerSocket:
        """See Seat.next. ``claim`` is that of the former agent."""
        clock = asyncio.get_running_loop().time
        deadline, former = clock() + self._within_s, claim.epoch
        while True:
            try:
                if socket := await self._again(call_id, attach, former, loss):
                    return socket
                if loss in _WHY:
                    await self._report(call_id, former, Lost(why=_WHY[loss], seen_at=seen_at))
                moved = attach.model_copy(update={"moved": True})
                return await self._replaced(call_id, moved, claim, former)
            except Unavailable:
                if clock() >= deadline:
                    raise
                log.warning("cannot replace an agent yet", extra={"call_id": call_id})
                await asyncio.sleep(_RETRY_S)

    async def _again(
        self, call_id: str, attach: AnyAttach, epoch: int, loss: Loss
    ) -> WorkerSocket | None:
        """Attach to the same agent again; None: it is not there, or is not the session's."""
        session = await self._sessions.find(call_id) if loss in _AGAIN_WITHIN_S else None
        if session is None or session.agent_epoch != epoch:
            return None
        moved = attach.model_copy(update={"moved": True})
        try:
            return await self._attached(session, moved, _AGAIN_WITHIN_S[loss])
        except (NoSession, Refused):
            return None

    async def overtaken(self, call_id: str, epoch: int) -> bool:
        """Return True once the session's agent is a later one than ``epoch``'s."""
        async with self._timeline.listen(call_id) as news:
            while True:
                try:
                    call = await self._store.call(Scope(None), call_id)
                except Unavailable:
                    log.warning("cannot look for a later agent", extra={"call_id": call_id})
                else:
                    if call is None or call.agent_epoch > epoch:
                        return True
                await news.wait()
                await asyncio.sleep(_GATHER_S)

    async def hung_up(self, call_id: str) -> None:
        """End the call for the client, which left while no agent was there."""
        await self._journal.write(call_id, "call.ended", ended("completed", "user_hangup"))

    async def _resumed(self, call_id: str, attach: AnyAttach, claim: _Claim) -> WorkerSocket:
        """Attach to the present agent, or to the next one. Raises as ``attach`` does."""
        session, call = await self._sessions.find(call_id), await self._going_on(call_id)
        if session is not None and session.agent_epoch == call.agent_epoch:
            try:
                socket = await self._attached(session, attach, DEADLINE_S)
            except (NoSession, Refused) as error:
                why: Why = "failed" if isinstance(error, NoSession) else "vanished"
                await self._report(call_id, call.agent_epoch, Lost(why=why, seen_at=now()))
            else:
                claim.epoch, claim.worker_id = session.agent_epoch, session.worker_id
                return socket
        return await self._replaced(call_id, attach, claim)

    async def _replaced(
        self, call_id: str, attach: AnyAttach, claim: _Claim, former: int | None = None
    ) -> WorkerSocket:
        """Attach to the next agent, within ``within_s``; else end the call, and raise Gone.

        ``former``: of an open socket's agent. Another socket that has the session's next agent has
        taken over then (Overtaken); without it, this socket takes over.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._within_s
        while True:
            call = await self._going_on(call_id)
            session = await self._sessions.find(call_id)
            if session is None:
                raise Gone("The session is gone")
            if session.agent_epoch == call.agent_epoch != claim.epoch:
                if former is not None:
                    raise Overtaken
                return await self._resumed(call_id, attach, claim)
            try:
                socket = await self._placed(session, call.agent_epoch, attach, claim)
            except Unavailable:
                if clock() >= deadline:
                    break
                await asyncio.sleep(_RETRY_S)
            else:
                if socket is not None:
                    return socket
        log.error("no agent took a session over", extra={"call_id": call_id})
        over = ended("failed", "agent_error", note="no agent took over")
        await self._journal.write(call_id, "call.ended", over)
        raise Gone("No agent took the session over")

    async def _placed(
        self, session: Session, epoch: int, attach: AnyAttach, claim: _Claim
    ) -> WorkerSocket | None:
        """Attach to a new agent at the best worker that takes it; None: another gateway does so.

        Raises Unavailable ``AGENT_UNAVAILABLE``: no worker takes it now.
        """
        attach, audio = _with_formats(attach, session)
        attach = attach.model_copy(
            update={
                "token": self._tokens.for_call(session.call_id, epoch),
                "epoch": epoch,
                "resume": False,
            }
        )
        places, kept = self._store.places, session.call_id
        if epoch:
            reserved = await places.move(kept, "stream", self._workers.agent_name)
        else:
            reserved = await places.seat(kept)
        for place in await self._workers.free(first=reserved):
            # First, so that the next gateway knows where the session may be.
            own = claim.worker_id if claim.epoch == epoch else None
            if not await self._sessions.claim(
                session.call_id, epoch, place.worker_id, place.address, instead_of=own, audio=audio
            ):
                return None
            claim.epoch, claim.worker_id = epoch, place.worker_id
            try:
                return await self._workers.attach(place, session.call_id, attach)
            except (Refused, NoSession):
                continue
        raise no_worker()

    async def _attached(self, session: Session, attach: AnyAttach, within_s: float) -> WorkerSocket:
        """Attach to the agent whose worker the session's row names. Raises Refused, NoSession."""
        if (place := place_of(session)) is None:
            raise NoSession
        epoch = session.agent_epoch
        token = self._tokens.for_call(session.call_id, epoch)
        attach = attach.model_copy(update={"token": token, "epoch": epoch, "resume": True})
        return await self._workers.attach(place, session.call_id, attach, within_s=within_s)

    async def _report(self, call_id: str, epoch: int, lost: Lost) -> None:
        """Report a loss. Raises Gone: the call is over, or ends now."""
        if not await self._lost(call_id, epoch, lost):
            raise Gone("The call has ended")

    async def _going_on(self, call_id: str) -> Call:
        """Return the call. Raises Gone if it is over."""
        call = await self._store.call(Scope(None), call_id)
        if call is None or call.ended:
            raise Gone("The call has ended")
        return call


def _with_formats(attach: AnyAttach, session: Session) -> tuple[AnyAttach, dict[str, Any] | None]:
    """Return ``attach`` with the session's audio formats, and those if they are to be stored.

    The client's first socket chooses them; a later one does not say them again.
    """
    if not isinstance(attach, SocketAttach):
        return attach, None
    if session.audio is None:
        return attach, {"input": attach.input.wire(), "output": attach.output.wire()}
    formats = {name: Format.model_validate(session.audio[name]) for name in ("input", "output")}
    return attach.model_copy(update=formats), None


def place_of(session: Session) -> Place | None:
    """Return where the session is; None until a socket was attached."""
    if session.worker_id is None or session.worker_address is None:
        return None
    return Place(session.worker_id, session.worker_address)
