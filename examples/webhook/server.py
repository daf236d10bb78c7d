"""The webhook of an agent in voiceMode webhook: it is asked what to say, turn by turn."""

import asyncio
import hashlib
import hmac
import json
import os
import time
from collections.abc import Mapping

from aiohttp import web

SECRET = os.environ["WEBHOOK_SECRET"]  # from the answer of POST /v1/webhooks


def is_ours(body: bytes, headers: Mapping[str, str]) -> bool:
    """Whether the body comes from Switchroom, unaltered, and was signed just now."""
    timestamp = headers.get("X-Webhook-Timestamp", "")
    digest = hmac.new(SECRET.encode(), timestamp.encode() + b"." + body, hashlib.sha256)
    signature = f"sha256={digest.hexdigest()}".encode()
    known = hmac.compare_digest(signature, headers.get("X-Webhook-Signature", "").encode())
    return known and abs(time.time() - int(timestamp)) <= 300


async def answer(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    if not is_ours(body, request.headers):
        raise web.HTTPForbidden
    event = json.loads(body)
    if event["event"] != "agent.message":  # call.started, agent.call_ended, …
        return web.Response()
    reply = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await reply.prepare(request)

    async def say(text: str, **more: bool) -> None:
        await reply.write(json.dumps({"text": text, **more}).encode() + b"\n")

    said = event["data"]["transcript"].lower()
    if "goodbye" in said:
        await say("Goodbye, and thank you for calling.", hangup=True)
    elif "table" in said:
        await say("Let me look into the book.", interim=True)  # spoken at once
        await asyncio.sleep(3)  # a database, a model, a tool …
        await say("Yes, a table for four is free at seven.")
    else:
        await say("I am sorry, I can only book tables.")
    return reply


if __name__ == "__main__":
    app = web.Application()
    app.router.add_post("/", answer)
    web.run_app(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8090")))
