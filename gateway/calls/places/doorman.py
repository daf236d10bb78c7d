"""Take the dispatches of the numbers' rules: each announces a caller's room.

A rule's dispatch names no worker, only AGENT_NAME. The gateway registers with LiveKit under that
name as a worker that takes no job, and dispatches itself once the caller has a place. LiveKit's
webhook usually comes first; without it, callers are announced here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import aiohttp
from google.protobuf.message import DecodeError
from livekit.api import AccessToken, VideoGrants
from livekit.protocol.agent import JobType, ServerMessage, WorkerMessage
from pydantic import ValidationError

from core.errors import AppError
from core.jobs import InboundJob, InboundRoom
from core.settings import Settings

log = logging.getLogger(__name__)

_PING_S = 10.0
_DEADLINE_S = 5.0
_LONGEST_PAUSE_S = 5.0
_ERRORS = (aiohttp.ClientError, OSError, TimeoutError, TypeError, DecodeError)
# LiveKit prefers workers with less, which only those of an earlier release are.
_LOAD = 0.69


class Doorman:
    """``run`` stays registered until it is cancelled."""

    def __init__(
        self,
        settings: Settings,
        http: aiohttp.ClientSession,
        announce: Callable[[InboundRoom], Awaitable[None]],
    ) -> None:
        assert settings.livekit_api_key is not None and settings.livekit_api_secret is not None
        self._url = f"{settings.livekit_http_url.rstrip('/')}/agent"
        self._key = settings.livekit_api_key
        self._secret = settings.livekit_api_secret.get_secret_value()
        self._agent_name = settings.agent_name
        self._http = http
        self._announce = announce
        self._tasks: set[asyncio.Task[None]] = set()
        self.registered = asyncio.Event()
        """Set while LiveKit knows this gateway."""

    async def run(self) -> None:
        pause_s, away = 0.5, False
        try:
            while True:
                try:
                    await self._serve()
                    pause_s, away = 0.5, False
                except (
                    aiohttp.ClientError,
                    OSError,
                    TimeoutError,
                    TypeError,
                    DecodeError,
                ) as error:
                    if not away:
                        facts = {"problem": type(error).__name__}
                        log.warning("not registered for callers with LiveKit", extra=facts)
                    away = True
                self.registered.clear()
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self) -> None:
        """Register and take dispatches until the connection ends. Raises if there is none."""
        token = AccessToken(self._key, self._secret).with_grants(VideoGrants(agent=True)).to_jwt()
        async with asyncio.timeout(_DEADLINE_S):
            socket = await self._http.ws_connect(
                self._url, headers={"Authorization": f"Bearer {token}"}, heartbeat=_PING_S
            )
        async with socket:
            hello = WorkerMessage()
            hello.register.type = JobType.JT_ROOM
            hello.register.agent_name = self._agent_name
            hello.register.version = "switchroom"
            await socket.send_bytes(hello.SerializeToString())
            ServerMessage.FromString(await socket.receive_bytes(timeout=_DEADLINE_S))
            load = WorkerMessage()
            load.update_worker.load = _LOAD
            await socket.send_bytes(load.SerializeToString())
            self.registered.set()
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    await self._answer(socket, ServerMessage.FromString(message.data))

    async def _answer(
        self, socket: aiohttp.ClientWebSocketResponse[bool], message: ServerMessage
    ) -> None:
        if not message.HasField("availability"):
            return
        job = message.availability.job
        answer = WorkerMessage()
        answer.availability.job_id = job.id
        answer.availability.available = False
        answer.availability.terminate = True  # nobody else need be asked
        await socket.send_bytes(answer.SerializeToString())
        try:
            number_id = InboundJob.model_validate_json(job.metadata).number_id
            room = InboundRoom(number_id=number_id, room_name=job.room.name)
        except ValidationError:
            return log.warning("a dispatch that is no caller's", extra={"room": job.room.name})
        task = asyncio.create_task(self._announced(room), name="announce")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _announced(self, room: InboundRoom) -> None:
        try:
            await self._announce(room)
        except AppError as error:
            facts = {"room": room.room_name, "problem": error.code}
            log.warning("a caller was not admitted", extra=facts)
        except Exception:
            log.exception("admitting a caller failed", extra={"room": room.room_name})
