"""A client's socket, once it is known which session it belongs to."""

from __future__ import annotations

from contextlib import suppress

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
    first: tuple[WSMsgType, bytes] | None = None,
) -> None:
    """Attach the socket to its session; pass frames until the client leaves or the call is over.

    ``first``: a frame of the client's that was read already, and is for the worker.
    Raises as ``StreamSessions.attach`` does; the client's socket is open then.
    """
    app = request.app
    streams = call_services(app).stream_sessions
    with streams.connected(session.call_id), app[METRICS].streams.track_inprogress():
        seat = await streams.attach(session, attach)
        if first is not None:
            kind, data = first
            with suppress(ClientError, ConnectionError):  # the relay notices
                await seat.socket.send_frame(data, kind)
        await Relay(
            client,
            seat,
            transport=request.transport,
            stopping=app[STOPPING],
            pace=app[PACE],
        ).run()
