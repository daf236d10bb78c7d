"""A recorded call on each line, and its far end: a phone, the simulated Twilio, a socket."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final

import aiohttp

from core.audio import Pcm
from core.models import Turn
from core.settings import Settings
from core.streams.messages import SocketAttach
from dev.alignment.conversation import GREETING, control
from dev.alignment.far_ends import FarEnd, PhoneEnd, socket_end, twilio_end
from dev.alignment.offsets import read_channels
from dev.bench.api import hosted, post, sip_call
from dev.bench.rig import ENDPOINTING_MS
from dev.bench.streams.voice_urls import VoiceUrls
from dev.phone import Phone
from dev.phone.loss import NoLoss, loss
from dev.phone.wire import wire
from dev.stack import Stack, StackOptions
from dev.standins.socket import SocketFarEnd
from dev.standins.twilio import Network, TwilioServer

NETWORK: Final = Network(drift_ppm=200, loss=2, seed=1)
"""That of Twilio's calls."""

LOSS: Final = 2.0
"""Percent of the phone's packets that are lost, in each direction."""

_HUMAN: Final = "+15105550177"
_ACCOUNT, _TOKEN, _NUMBER, _CALLER = "AC" + 32 * "1", 32 * "2", "+15105551000", "+14155550100"
_WAIT_S = 30.0
_STORED_WITHIN_S = 60.0

Talk = tuple[str, FarEnd]
"""A call's id and its far end."""

Place = Callable[[], AbstractAsyncContextManager[Talk]]


@dataclass(frozen=True, slots=True)
class Lines:
    """The stack, with an agent that records, and what its lines need."""

    stack: Stack
    http: aiohttp.ClientSession
    phone: Phone
    twilio: TwilioServer
    urls: VoiceUrls
    agent_id: str
    notes: list[str] = field(default_factory=list)
    """What the report must say of the calls so far."""

    @classmethod
    @contextlib.asynccontextmanager
    async def run(cls, settings: Settings) -> AsyncIterator[Lines]:
        values = {"endpointing_ms": ENDPOINTING_MS}
        options = StackOptions(settings=settings, streams=1, providers=True, values=values)
        async with (
            Stack(options) as stack,
            aiohttp.ClientSession(stack.gateway_url) as http,
            Phone() as phone,
            TwilioServer({_ACCOUNT: _TOKEN}) as twilio,
            VoiceUrls() as urls,
        ):
            await stack.set_providers(control())
            made = await post(
                http,
                "/v1/agents",
                hosted(
                    GREETING,
                    recording={"enabled": True},
                    maxSilenceMs=60_000,
                    transferNumber=_HUMAN,
                    transferMode="warm",
                ),
            )
            yield cls(stack, http, phone, twilio, urls, str(made["id"]))

    @contextlib.asynccontextmanager
    async def room(self) -> AsyncIterator[Talk]:
        sip = {"outbound_address": self.phone.address}
        body = sip_call("alignment", sip=sip, agent=self.agent_id, record=True)
        async with wire() as packets:
            placed = await post(self.http, "/sip/call", body)
            call = await self.phone.next_call(_WAIT_S)
            await call.answered(_WAIT_S)
            async with self._loss(call.audio_port):
                yield str(placed["call_id"]), PhoneEnd(call, packets, self.phone)
            await call.hangup()

    @contextlib.asynccontextmanager
    async def _loss(self, port: int) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as losing:
            try:
                lost = await losing.enter_async_context(loss(port, LOSS))
            except NoLoss as why:
                self.notes.append(f"The phone's packets were not lost: {why}.")
                yield
                return
            yield
            there, back = await lost.count()
            self.notes.append(
                f"{LOSS:g} % of the phone's packets are lost at random in each direction, behind "
                f"the wire: {there} to the phone, {back} from it."
            )

    @contextlib.asynccontextmanager
    async def stream(self) -> AsyncIterator[Talk]:
        made: list[str] = []

        async def session(form: Mapping[str, str]) -> str:
            body = {"agentId": self.agent_id, "from": form["From"], "to": form["To"]}
            answer = await post(self.http, "/v1/sessions/twilio", {**body, "record": True})
            made.append(str(answer["sessionId"]))
            return str(answer["twiml"])

        self.twilio.give(_ACCOUNT, _NUMBER, voice_url=self.urls.add(session))
        call = await self.twilio.call(_NUMBER, _CALLER, network=NETWORK)
        await call.streaming(timeout_s=_WAIT_S)
        yield made[0], twilio_end(call)
        call.hang_up()
        await call.ended(_WAIT_S)

    @contextlib.asynccontextmanager
    async def socket(self) -> AsyncIterator[Talk]:
        async def connect(_: SocketAttach) -> aiohttp.ClientWebSocketResponse:
            socket = await self.http.ws_connect(f"/v1/agents/{self.agent_id}/session")
            await socket.send_json({"type": "session.update", "record": True})
            return socket

        client = SocketFarEnd(connect, "")
        await client.attach()
        ready = await client.event("ready", _WAIT_S)
        yield str(ready["callId"]), socket_end(client)
        await client.close()

    def all(self) -> dict[str, Place]:
        return {
            "room, a phone": self.room,
            f"Twilio, {NETWORK.drift_ppm:g} ppm drift, {NETWORK.loss:g} % lost": self.stream,
            "socket": self.socket,
        }

    async def stored(self, call_id: str) -> tuple[tuple[Pcm, Pcm], list[Turn]]:
        """Return the recording's channels and the turns. Raise TimeoutError."""
        path = f"/v1/calls/{call_id}"
        async with asyncio.timeout(_STORED_WITHIN_S):
            while True:
                async with self.http.get(f"{path}/recording?format=wav") as answer:
                    if answer.status == 200:
                        wav = io.BytesIO(await answer.read())
                        break
                await asyncio.sleep(1)
        async with self.http.get(f"{path}/transcript") as answer:
            answer.raise_for_status()
            turns = [Turn.model_validate(each) for each in (await answer.json())["transcripts"]]
        return await asyncio.to_thread(read_channels, wav), turns
