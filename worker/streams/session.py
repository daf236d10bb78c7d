"""One session: its call, and the sockets that come and go."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

import aiohttp
import structlog
from aiohttp import web
from livekit.agents.utils import http_context
from openai import AsyncClient

from core.jobs import JobMetadata
from core.recordings.command import Command
from core.settings import Settings
from core.streams.messages import GRACE_S, TAKEN_OVER, Attach, TwilioAttach
from worker.call import Call
from worker.job import Seat, placed
from worker.link.client import Gateway
from worker.link.reporter import Reporter
from worker.link.spool import Owner
from worker.pulse.standstill import Standstill
from worker.streams.line import StreamLine
from worker.streams.link import Link
from worker.streams.wires import wire_for

log = logging.getLogger(__name__)

_DELIVER_WITHIN_S = 5.0
# Frames from one socket that may be taken at a stretch; a flood must not stop the event loop.
_FRAMES_AT_ONCE = 64
_DATA = frozenset({aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY})
# A relay sends at most two a second, and has given up by then.
_LAST_PINGS = 20
# The client's own end: closed by it (RFC 6455 §7.4.1), or its page was left.
_LEFT = frozenset({aiohttp.WSCloseCode.OK, aiohttp.WSCloseCode.GOING_AWAY})


class StreamSession:
    """Serves one call until it is over. ``run`` may be called once, ``serve`` for each socket."""

    def __init__(
        self,
        call_id: str,
        attach: Attach,
        settings: Settings,
        *,
        worker_id: str,
        gateway: Gateway,
        llm_client: AsyncClient,
        grace_s: float = GRACE_S,
        standstill: Standstill,
    ) -> None:
        """``grace_s``: how long the session waits for another socket. ``standstill`` watches the
        process."""
        self._standstill = standstill
        self._job = JobMetadata(call_id=call_id, token=attach.token, epoch=attach.epoch)
        self._seat = Seat(worker_id, attach.epoch)
        self._settings = settings
        self._gateway = gateway
        self._llm_client = llm_client
        self.epoch = attach.epoch
        """Which of the call's agents this is (core.recovery)."""
        self._line = StreamLine(wire_for(call_id, attach), grace_s=grace_s, epoch=attach.epoch)
        self._reporter = Reporter(gateway, settings.data_dir / "spool" / "worker")
        self._reporter.on_event = self._line.reported

    async def run(self) -> None:
        """Serve the call. Returns when it is over and its events are delivered or on disk."""
        structlog.contextvars.bind_contextvars(call_id=self._job.call_id)
        reporter, line = self._reporter, self._line
        reporter.own(Owner(self._job.call_id, self._job.token))
        async with http_context.open():
            call = Call(
                line,
                partial(placed, self._job, self._gateway),
                self._settings,
                seat=self._seat,
                llm_client=self._llm_client,
                gateway=self._gateway,
                reporter=reporter,
                standstill=self._standstill,
            )
            try:
                await call.run()
            finally:
                await reporter.aclose(_DELIVER_WITHIN_S)

    def remove(self, detail: str) -> None:
        """Hang up from outside."""
        self._line.remove(detail)

    def taken_over(self) -> None:
        """Another agent has the session: leave without a word."""
        self._line.taken_over()

    def commanded(self, command: Command) -> bool:
        """Pass on a command of the API's; False: the call has not begun, or is over."""
        return self._line.commanded(command)

    async def serve(
        self, socket: web.WebSocketResponse, transport: asyncio.BaseTransport | None, attach: Attach
    ) -> None:
        """Use ``socket`` until it is closed. ``transport`` is what it is on."""
        structlog.contextvars.bind_contextvars(call_id=self._job.call_id)
        link = Link(socket, transport)
        sending = asyncio.create_task(link.run(), name="link")
        facts = attach.twilio if isinstance(attach, TwilioAttach) else {}
        self._reporter.post("stream.connected", facts)
        self._line.attach(link, attach)
        left = False
        frames = 0
        try:
            while (message := await _next(socket)).type in _DATA:
                self._line.receive(message.data)
                frames += 1
                if frames % _FRAMES_AT_ONCE == 0:
                    await asyncio.sleep(0)
            # aiohttp says 1000 of a socket that broke, too; only this one was closed.
            if message.type is aiohttp.WSMsgType.CLOSE:
                left = message.data in _LEFT
                if message.data == TAKEN_OVER:
                    self.taken_over()
        finally:
            if self._line.detach(link, left=left):
                self._reporter.post("stream.lost")
            link.close(aiohttp.WSCloseCode.OK, "")
            await sending


async def _next(socket: web.WebSocketResponse) -> aiohttp.WSMessage:
    """Return the next message, also of a socket that has broken meanwhile.

    After a standstill its far end's pings cannot be answered any more, but after them comes the
    close frame with its code.
    """
    for _ in range(_LAST_PINGS):
        try:
            return await socket.receive()
        except ConnectionError:
            pass
    return aiohttp.WSMessage(aiohttp.WSMsgType.CLOSED, None, None)
