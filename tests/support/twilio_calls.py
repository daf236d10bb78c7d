"""Twilio's side of a session, by hand: signed forms, TwiML, and the first messages of a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urldefrag, urlsplit
from xml.etree import ElementTree

import aiohttp
from twilio.request_validator import RequestValidator  # type: ignore[import-untyped]

from core.models import Agent, PhoneNumber
from gateway.keys import CREDENTIALS
from gateway.store.call_status import Call
from gateway.store.database import Scope
from tests.conftest import ACME
from tests.support.clock import Clock
from tests.support.inprocess import Running, running, settings_in
from tests.support.number_rig import ACCOUNT, NUMBER, TOKEN
from tests.support.numbers import make_agent, make_number
from tests.support.stream_worker import StreamWorker, WorkerSession, stream_worker

PUBLIC = "https://voice.example.com"
STREAM_URL = "wss://voice.example.com/v1/sessions/twilio/stream"
PATH = "/v1/sessions/twilio"
CALL_SID, CALLER = "CA" + "2" * 32, "+14155550199"


@dataclass(frozen=True)
class Twiml:
    """The parts of TwiML that matter here."""

    verbs: list[str]
    token: str | None = None
    stream: str | None = None
    status: str | None = None
    resume: str | None = None
    said: str | None = None
    language: str | None = None

    @classmethod
    def of(cls, text: str) -> Twiml:
        root = ElementTree.fromstring(text)
        assert root.tag == "Response"
        stream, say = root.find("Connect/Stream"), root.find("Say")
        parameter = root.find("Connect/Stream/Parameter")
        redirect = root.find("Redirect")
        return cls(
            verbs=[verb.tag for verb in root],
            token=parameter.get("value") if parameter is not None else None,
            stream=stream.get("url") if stream is not None else None,
            status=stream.get("statusCallback") if stream is not None else None,
            resume=redirect.text if redirect is not None else None,
            said=say.text if say is not None else None,
            language=say.get("language") if say is not None else None,
        )


def form(**changes: str) -> dict[str, str]:
    fields = {
        "AccountSid": ACCOUNT,
        "CallSid": CALL_SID,
        "From": CALLER,
        "To": NUMBER,
        "CallStatus": "ringing",
        "Direction": "inbound",
    }
    return {**fields, **changes}


def signature(url: str, fields: Mapping[str, str] | None = None, token: str = TOKEN) -> str:
    """Sign as Twilio does, which keeps a URL's fragment to itself."""
    return str(RequestValidator(token).compute_signature(urldefrag(url).url, fields or {}))


def start(token: str | None, **changes: Any) -> dict[str, Any]:
    """The ``start`` message as Twilio sends it."""
    whole = {
        "streamSid": "MZ" + "3" * 32,
        "accountSid": ACCOUNT,
        "callSid": CALL_SID,
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": {} if token is None else {"token": token},
        **changes,
    }
    return {
        "event": "start",
        "sequenceNumber": "1",
        "start": whole,
        "streamSid": whole["streamSid"],
    }


CONNECTED = {"event": "connected", "protocol": "Call", "version": "1.0.0"}


@dataclass(frozen=True)
class StreamRig:
    own: Running
    worker: StreamWorker

    async def agent(self, tenant: str | None = "acme", **config: Any) -> Agent:
        return await make_agent(self.own, tenant, **config)

    async def credential(self, tenant: str | None = "acme", **changes: str) -> str:
        """Store a Twilio credential; return its id."""
        secret = {"accountSid": ACCOUNT, "authToken": TOKEN, **changes}
        made = await self.own.app[CREDENTIALS].create(Scope(tenant), "main", "twilio", secret)
        return made.id

    async def credential_id(self, tenant: str = "acme") -> str:
        """Return the id of the credential that the tenant has."""
        found = await self.own.app[CREDENTIALS].get(Scope(tenant), "main")
        assert found is not None
        return found.id

    async def number(
        self,
        agent: Agent | None,
        tenant: str | None = "acme",
        *,
        credential: str | None = None,
        **changes: Any,
    ) -> PhoneNumber:
        """Store a number of the tenant's Twilio account; ``credential``: one that it has."""
        credential = credential or await self.credential(tenant)
        values = {"phone_number": NUMBER, "provider": "twilio", "credential_id": credential}
        return await make_number(self.own, tenant, agent, **{**values, **changes})

    async def create(self, agent: Agent, headers: Mapping[str, str] = ACME, **body: Any) -> Any:
        whole = {"agentId": agent.id, "from": CALLER, "to": NUMBER, **body}
        async with self.own.http.post(PATH, json=whole, headers=headers) as response:
            answer = await response.json()
            assert response.status == 200, answer
            return answer

    async def post(
        self,
        url: str,
        fields: Mapping[str, str],
        signed: str | None = "",
        token: str = TOKEN,
    ) -> tuple[int, str]:
        """Post a form as Twilio does. ``signed``: another signature than the right one."""
        signed = signature(url, fields, token) if signed == "" else signed
        headers = {} if signed is None else {"X-Twilio-Signature": signed}
        path = url.removeprefix(PUBLIC)
        async with self.own.http.post(path, data=fields, headers=headers) as response:
            return response.status, await response.text()

    async def ring(self, fields: Mapping[str, str] | None = None) -> Twiml:
        status, text = await self.post(f"{PUBLIC}{PATH}", fields or form())
        assert status == 200, text
        return Twiml.of(text)

    @asynccontextmanager
    async def stream(
        self, *messages: Any, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Open a stream and send its first messages."""
        async with self.own.http.ws_connect(f"{PATH}/stream", headers=headers) as socket:
            for message in messages:
                await socket.send_str(message if isinstance(message, str) else json.dumps(message))
            yield socket

    async def record(self, call_id: str) -> Call:
        call = await self.own.store.call(Scope(None), call_id)
        assert call is not None
        return call

    async def verdict(self, call_id: str) -> tuple[str, str | None]:
        call = await self.record(call_id)
        return call.status, call.disconnection_reason

    async def worker_session(self, call_id: str, sockets: int = 1) -> WorkerSession:
        session = await self.worker.session(sockets)
        assert self.worker.sessions[call_id] is session
        return session


async def close_code(socket: aiohttp.ClientWebSocketResponse) -> int | None:
    """Read the socket to its end, and return the code that it was closed with."""
    async with asyncio.timeout(10):
        async for _ in socket:
            pass
    return socket.close_code


def query_of(url: str | None) -> dict[str, list[str]]:
    return parse_qs(urlsplit(url or "").query)


@asynccontextmanager
async def stream_rig(
    folder: Path, clock: Clock | None = None, **settings: Any
) -> AsyncIterator[StreamRig]:
    values = {"public_url": PUBLIC, **settings}
    async with (
        running(settings_in(folder, **values), clock=clock) as own,
        stream_worker(own) as worker,
    ):
        yield StreamRig(own, worker)
