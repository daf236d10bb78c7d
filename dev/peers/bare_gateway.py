"""A minimal ``POST /sip/call`` from aiohttp and pydantic, written as their docs show.

The peer of the gateway's benchmark. It validates the body with the gateway's own model and
returns the gateway's own JSON. It has no authentication, no tenants and no storage.

    python -m dev.peers.bare_gateway --port 8080                   # dials nothing
    python -m dev.peers.bare_gateway --port 8080 --dial HOST:PORT  # asks LiveKit to dial there

With ``--dial`` it makes the requests of any hand-written endpoint: ``create_room`` and
``create_sip_participant``, which do not wait for the answer. The library reads LIVEKIT_URL and
the keys from the environment.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator

import uvloop
from aiohttp import web
from livekit.api import LiveKitAPI
from livekit.protocol.room import CreateRoomRequest
from livekit.protocol.sip import CreateSIPParticipantRequest, SIPOutboundConfig
from pydantic import ValidationError

from gateway.api.sip_call import SipCallRequest, SipCallResponse

_LIVEKIT: web.AppKey[LiveKitAPI] = web.AppKey("livekit", LiveKitAPI)
_ADDRESS: web.AppKey[str] = web.AppKey("address", str)


async def answer(request: web.Request) -> web.Response:
    try:
        asked = SipCallRequest.model_validate_json(await request.read())
    except ValidationError as error:
        return web.Response(status=400, text=error.json(), content_type="application/json")
    participant_id = sip_call_id = "none"
    if (livekit := request.app.get(_LIVEKIT)) is not None:
        await livekit.room.create_room(CreateRoomRequest(name=asked.room_name))
        joined = await livekit.sip.create_sip_participant(
            CreateSIPParticipantRequest(
                trunk=SIPOutboundConfig(hostname=request.app[_ADDRESS]),
                sip_call_to=asked.to_phone_number,
                sip_number=asked.from_phone_number,
                room_name=asked.room_name,
                participant_identity=asked.participant_identity,
                participant_name=asked.participant_name,
            )
        )
        participant_id, sip_call_id = joined.participant_id, joined.sip_call_id
    told = SipCallResponse(
        status="initiated",
        room_name=asked.room_name,
        participant_identity=asked.participant_identity,
        participant_id=participant_id,
        sip_call_id=sip_call_id,
        call_id=asked.room_name,
    )
    return web.Response(text=told.model_dump_json(), content_type="application/json")


async def healthy(_request: web.Request) -> web.Response:
    return web.Response()


async def _connected(app: web.Application) -> AsyncIterator[None]:
    async with LiveKitAPI() as livekit:
        app[_LIVEKIT] = livekit
        yield


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.peers.bare_gateway")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dial", metavar="HOST:PORT")
    arguments = parser.parse_args()
    app = web.Application()
    app.router.add_post("/sip/call", answer)
    app.router.add_get("/healthz", healthy)
    if arguments.dial:
        app[_ADDRESS] = arguments.dial
        app.cleanup_ctx.append(_connected)
    uvloop.install()
    web.run_app(app, host="127.0.0.1", port=arguments.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
