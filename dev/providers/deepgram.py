"""Deepgram's ``/v1/listen`` over a WebSocket, in the form of its Nova models.

Message format: https://developers.deepgram.com/reference/speech-to-text/listen-streaming

A fault with an HTTP status counts a connection as a request. Any other fault counts an
utterance, on any connection: it withholds, breaks or cuts off the final result.
"""

from __future__ import annotations

import asyncio
import json

import aiohttp
from aiohttp import web

from dev.providers.clock import now
from dev.providers.context import CONTEXT, Context, json_error
from dev.providers.listen_query import Query
from dev.providers.listening import Listening

# Deepgram closes a connection after this long without audio or KeepAlive.
_IDLE_S = 10.0


def _error(status: int, code: str, message: str, request_id: str) -> web.Response:
    document = {"err_code": code, "err_msg": message, "request_id": request_id}
    return json_error(status, document)


async def listen(request: web.Request) -> web.StreamResponse:
    context = request.app[CONTEXT]
    record = context.record
    request_id = context.new_id()
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() not in ("token", "bearer") or not context.authorized("deepgram", key.strip()):
        record.add("deepgram", "refused", status=401)
        return _error(401, "INVALID_AUTH", "Invalid credentials.", request_id)
    fault = context.take_fault("deepgram", before_answer=True, model=request.query.get("model"))
    if fault is not None:
        message = "Too many requests." if fault.kind == "rate_limit" else "The request failed."
        document = {"err_code": "FAULT", "err_msg": message, "request_id": request_id}
        return json_error(fault.http_status, document, fault)
    try:
        query = Query.parse(request.query)
    except ValueError as error:
        record.add("deepgram", "refused", status=400, reason=str(error))
        return _error(400, "Bad Request", str(error), request_id)

    socket = web.WebSocketResponse(receive_timeout=_IDLE_S, max_msg_size=1 << 20)
    socket.headers["dg-request-id"] = request_id
    await socket.prepare(request)
    context.sockets.add(socket)
    language = request.query.get("language")
    record.add("deepgram", "open", request_id=request_id, model=query.model, language=language)
    try:
        async with asyncio.TaskGroup() as tasks:
            listening = Listening(context, request, socket, request_id, query, tasks)
            try:
                await _converse(context, socket, listening)
            finally:
                listening.stop()
    except* ConnectionError:
        record.add("deepgram", "lost", request_id=request_id)
    finally:
        context.sockets.discard(socket)
        record.add("deepgram", "closed", request_id=request_id, code=socket.close_code)
    return socket


async def _converse(context: Context, socket: web.WebSocketResponse, listening: Listening) -> None:
    while True:
        try:
            message = await socket.receive()
        except TimeoutError:
            if listening.owes_result:
                continue
            text = b"NET-0001: no audio or KeepAlive within the timeout window"
            await socket.close(code=aiohttp.WSCloseCode.INTERNAL_ERROR, message=text)
            return
        arrived = now()
        if message.type is aiohttp.WSMsgType.BINARY:
            await listening.hear(message.data, arrived)
        elif message.type is not aiohttp.WSMsgType.TEXT:
            return
        else:
            kind = _type(message.data)
            if kind == "CloseStream":
                await listening.close(arrived)
            elif kind == "Finalize":
                await listening.finalize(arrived)
            elif kind != "KeepAlive":
                context.record.add("deepgram", "unknown_message", type=kind)
                text = b"DATA-0000: the message is not one of this protocol"
                await socket.close(code=aiohttp.WSCloseCode.POLICY_VIOLATION, message=text)


def _type(text: str) -> str | None:
    try:
        document = json.loads(text)
    except ValueError:
        return None
    kind = document.get("type") if isinstance(document, dict) else None
    return kind if isinstance(kind, str) else None
