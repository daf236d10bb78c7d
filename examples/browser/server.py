"""A site with a page that calls an agent: its visitors get a token for one session, not the API's.

SWITCHROOM_URL=https://voice.example.com SWITCHROOM_TOKEN=… AGENT_ID=agt_… python server.py

The gateway must permit the page: SESSION_ORIGINS=http://127.0.0.1:8091 in its settings.
"""

import os
from pathlib import Path

import aiohttp
from aiohttp import web

HERE = Path(__file__).parent
CLIENT = HERE.parent.parent / "gateway/static"  # switchroom.js and switchroom-audio.js
GATEWAY = os.environ.get("SWITCHROOM_URL", "http://127.0.0.1:8080")
TOKEN = os.environ.get("SWITCHROOM_TOKEN")
AGENT_ID = os.environ["AGENT_ID"]


async def index(_request: web.Request) -> web.StreamResponse:
    return web.FileResponse(HERE / "index.html")


async def client(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(CLIENT / request.match_info["name"])


async def session(_request: web.Request) -> web.StreamResponse:
    """Here your site decides who may call, and what the agent is told about them."""
    headers = {"Authorization": f"Bearer {TOKEN}"} if TOKEN else {}
    url = f"{GATEWAY}/v1/agents/{AGENT_ID}/session"
    async with aiohttp.ClientSession(headers=headers) as http:
        async with http.post(url, json={"variables": {"name": "Ann"}}) as answer:
            return web.json_response(await answer.json(), status=answer.status)


if __name__ == "__main__":
    app = web.Application()
    app.router.add_get("/", index)
    app.router.add_get("/{name:switchroom(?:-audio)?[.]js}", client)
    app.router.add_post("/session", session)
    web.run_app(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8091")))
