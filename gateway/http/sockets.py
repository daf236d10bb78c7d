"""WebSockets of clients: how they are opened, and their first messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from aiohttp import WSMsgType, web

Socket: TypeAlias = web.WebSocketResponse[bool]
"""Text arrives as UTF-8 bytes: most of it is only passed on."""

MAX_MESSAGE = 64 * 1024
CLOSE_S = 2.0
"""How long to wait for the client's close frame after ours."""


class SocketClosed(Exception):
    """The client closed its socket, or it broke."""


async def open_socket(request: web.Request, protocols: Iterable[str] = ()) -> Socket:
    """Answer the handshake. The reader of the socket answers pings itself (see ``read``)."""
    socket: Socket = web.WebSocketResponse(
        timeout=CLOSE_S,
        autoping=False,
        protocols=protocols,
        compress=False,
        max_msg_size=MAX_MESSAGE,
        writer_limit=MAX_MESSAGE,
        decode_text=False,
    )
    await socket.prepare(request)
    return socket


async def read(socket: Socket) -> tuple[WSMsgType, bytes]:
    """Return the next text or binary message. Raises SocketClosed."""
    while True:
        message = await socket.receive()
        match message.type:
            case WSMsgType.TEXT | WSMsgType.BINARY:
                return message.type, message.data
            case WSMsgType.PING:
                await socket.pong(message.data)
            case WSMsgType.PONG:
                pass
            case _:
                raise SocketClosed


def is_handshake(request: web.Request) -> bool:
    """Return True if the request asks for a WebSocket (RFC 6455 §4.1)."""
    return request.headers.get("Upgrade", "").lower() == "websocket"
