"""A webhook for an agent in voiceMode webhook: it receives each turn and streams the reply."""

import asyncio
import json
import os

from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

WEBHOOK = Webhook(os.environ["WEBHOOK_SECRET"])  # from the answer of POST /v1/webhooks


async def answer(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    try:
        event = WEBHOOK.verify(body, dict(request.headers))
    except WebhookVerificationError:
        raise web.HTTPForbidden from None
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
