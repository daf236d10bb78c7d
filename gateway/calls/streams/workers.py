"""Stream workers: which one takes a session, and what the gateway asks of it (core.streams)."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import TypeAlias

import aiohttp

from core.jobs import Heartbeat
from core.recordings.command import Command
from core.streams.messages import SocketAttach, TwilioAttach
from core.tokens import TokenIssuer
from gateway.http.sockets import CLOSE_S
from gateway.store.call_status import Call
from gateway.store.calls import Store
from gateway.store.lost.agents_at_work import Beat
from gateway.store.places.fleet import WORKER_STALE, Seat

log = logging.getLogger(__name__)

AnyAttach: TypeAlias = TwilioAttach | SocketAttach
WorkerSocket: TypeAlias = aiohttp.ClientWebSocketResponse[bool]

DEADLINE_S = 3.0
"""A worker answers in milliseconds."""
_ALIVE_S = 1.0
_MAX_MESSAGE = 1024 * 1024
_DOUBTED_S = WORKER_STALE.total_seconds()
"""By then its heartbeats have told whether it lives."""


@dataclass(frozen=True, slots=True)
class Place:
    """A stream worker that has or may take a session."""

    worker_id: str
    address: str


class Refused(Exception):
    """The worker does not take the session: it is full or draining, or cannot be reached."""


class NoSession(Exception):
    """The worker does not have the session (any more)."""


class StreamWorkers:
    def __init__(
        self, store: Store, tokens: TokenIssuer, http: aiohttp.ClientSession, agent_name: str
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._http = http
        self._agent_name = agent_name
        self._doubted: dict[str, float] = {}
        """Until when a worker that could not be reached is asked last."""

    @property
    def agent_name(self) -> str:
        """AGENT_NAME of the workers."""
        return self._agent_name

    async def live(self) -> list[Heartbeat]:
        """Return the stream workers with a recent heartbeat. Raises Unavailable (the database)."""
        return [
            worker
            for worker in await self._store.workers()
            if worker.address is not None and worker.agent_name == self._agent_name
        ]

    async def free(self, first: Seat | None = None) -> list[Place]:
        """Return those that take sessions, the least loaded first. Raises Unavailable.

        ``first``: whose place is reserved for the session. A worker that could not be reached just
        now comes last: it may have heartbeats, still.
        """
        reserved = first.worker_id if first is not None else None
        takers = [
            worker
            for worker in await self.live()
            if not worker.draining
            and (worker.active < worker.capacity or worker.worker_id == reserved)
        ]
        # Heartbeats are up to 1 s old: gateways that know the same must not all choose one worker.
        moment = asyncio.get_running_loop().time()
        doubted = {worker_id for worker_id, until in self._doubted.items() if until > moment}
        takers.sort(
            key=lambda worker: (
                worker.worker_id in doubted,
                worker.worker_id != reserved,
                worker.active / worker.capacity,
                random.random(),
            )
        )
        return [Place(worker.worker_id, worker.address or "") for worker in takers]

    async def attach(
        self, place: Place, call_id: str, attach: AnyAttach, *, within_s: float = DEADLINE_S
    ) -> WorkerSocket:
        """Attach a socket to the session. Raises Refused, NoSession."""
        # So that the worker can refuse before the upgrade: it has no such session.
        asked = {"resume": "true", "epoch": str(attach.epoch)} if attach.resume else None
        try:
            async with asyncio.timeout(within_s):
                socket = await self._http.ws_connect(
                    self._url(place, call_id),
                    params=asked,
                    headers=self._headers(call_id),
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
                    autoping=False,
                    compress=0,
                    max_msg_size=_MAX_MESSAGE,
                    decode_text=False,
                )
        except aiohttp.WSServerHandshakeError as error:
            raise _refusal(place, error.status) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(place, error) from None
        try:
            await socket.send_str(attach.model_dump_json(by_alias=True))
        except BaseException as error:
            await socket.close()
            if isinstance(error, aiohttp.ClientError | OSError):
                raise self._unreachable(place, error) from None
            raise
        self._doubted.pop(place.worker_id, None)
        return socket

    async def has(self, place: Place, call_id: str, epoch: int) -> bool:
        """Return True if the worker has the session with the call's agent of this epoch.

        Raises Refused: it cannot be reached.
        """
        return await self._ask("GET", place, call_id, epoch=epoch) != 404

    async def alive(self, call: Call, beat: Beat) -> bool | None:
        """Return whether the worker responds and has the call's session; None: not known."""
        if beat.address is None or call.agent_worker is None:
            return None
        place = Place(call.agent_worker, beat.address)
        try:
            async with asyncio.timeout(_ALIVE_S):
                return await self.has(place, call.id, call.agent_epoch)
        except (Refused, NoSession, TimeoutError):
            return False

    async def end(self, place: Place, call_id: str) -> None:
        """End the session; one that is gone is fine. Raises Refused: it cannot be reached."""
        await self._ask("DELETE", place, call_id)

    async def command(self, place: Place, call_id: str, command: Command) -> None:
        """Pass a command to the session. Raises NoSession, Refused."""
        if await self._ask("POST", place, call_id, command) == 404:
            raise NoSession(place.worker_id)

    async def _ask(
        self,
        method: str,
        place: Place,
        call_id: str,
        body: Command | None = None,
        *,
        epoch: int | None = None,
    ) -> int:
        url, headers = self._url(place, call_id), self._headers(call_id)
        json = None if body is None else body.wire()
        params = None if epoch is None else {"epoch": str(epoch)}
        try:
            async with (
                asyncio.timeout(DEADLINE_S),
                self._http.request(
                    method, url, headers=headers, json=json, params=params
                ) as response,
            ):
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(place, error) from None
        if status >= 400 and status != 404:
            raise _refusal(place, status)
        return status

    def _unreachable(self, place: Place, error: BaseException) -> Refused:
        moment = asyncio.get_running_loop().time()
        self._doubted = {key: until for key, until in self._doubted.items() if until > moment}
        self._doubted[place.worker_id] = moment + _DOUBTED_S
        facts = {"worker_id": place.worker_id, "problem": type(error).__name__}
        log.warning("a stream worker cannot be reached", extra=facts)
        return Refused(place.worker_id)

    def _url(self, place: Place, call_id: str) -> str:
        return f"{place.address.rstrip('/')}/sessions/{call_id}"

    def _headers(self, call_id: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._tokens.for_stream(call_id)}"}


def _refusal(place: Place, status: int) -> Refused | NoSession:
    if status == 404:
        return NoSession(place.worker_id)
    if status != 503:
        facts = {"worker_id": place.worker_id, "status": status}
        log.error("a stream worker refused a session", extra=facts)
    return Refused(place.worker_id)
