"""A client's socket, once it is known which session it belongs to."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from aiohttp import ClientError, WSMsgType, web

from gateway.calls.streams.relay import Relay
from gateway.calls.streams.workers import AnyAttach
from gateway.http.pace import PACE
from gateway.http.sockets import Socket
from gateway.keys import METRICS, STOPPING, call_services
from gateway.store.streams.sessions import Session


async def pass_frames(
    request: web.Request,
    client: Socket,
    session: Session,
    attach: AnyAttach,
    again: AnyAttach | None = None,
    first: tuple[WSMsgType, bytes] | None = None,
) -> None:
    """Attach the socket to its session, and pass frames until either side ends.

    ``again``: how to attach it if the worker's socket breaks; None: the client is closed then.
    ``first``: a frame of the client's that was read already, and is for the worker.
    Raises as ``StreamSessions.attach`` does; the client's socket is open then.
    """
    app = request.app
    streams = call_services(app).stream_sessions
    with streams.connected(session.call_id), app[METRICS].streams.track_inprogress():
        worker = await streams.attach(session, attach)
        if first is not None:
            kind, data = first
            with suppress(ClientError, ConnectionError):  # the relay notices
                await worker.send_frame(data, kind)
        await Relay(
            client,
            worker,
            transport=request.transport,
            stopping=app[STOPPING],
            attach_again=partial(streams.attach, session, again) if again is not None else None,
            pace=app[PACE],
        ).run()
