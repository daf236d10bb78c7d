"""Both sides of the answer benchmark: our stack, and a bare worker on its LiveKit server.

Our side answers a tenant's number, with authentication and a store (SQLite). The bare side is
what LiveKit's documentation describes for telephony: inbound, a trunk and a dispatch rule that
names the agent, made by plain livekit-api requests; outbound, a room with a dispatch, whose agent
dials. Both sides use the same SIP service, LiveKit server and providers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from baresip import BaresipError
from livekit.protocol.agent_dispatch import RoomAgentDispatch
from livekit.protocol.room import RoomConfiguration
from livekit.protocol.sip import (
    CreateSIPDispatchRuleRequest,
    CreateSIPInboundTrunkRequest,
    SIPDispatchRule,
    SIPDispatchRuleIndividual,
    SIPDispatchRuleInfo,
    SIPInboundTrunkInfo,
)

from core.settings import Settings
from dev.bench import sides
from dev.bench.api import answering
from dev.bench.first_word import FirstWord, Found
from dev.bench.rig import (
    AGENT,
    IDLE_PROCESSES,
    LLM_FIRST_TOKEN_MS,
    TTS_FIRST_BYTE_MS,
    Pair,
    pair,
    running,
)
from dev.peers.bare_worker import AGENT_NAME, GREETING
from dev.phone import Answer, CallEnded, CallRefused, PhoneCall
from dev.providers import Cartesia, Control, OpenAI
from dev.stack import Stack

Side = Literal["ours", "bare"]
SIDES: Final[tuple[Side, Side]] = ("ours", "bare")
# A person takes longer to answer; the agent must be ready by then.
RINGING_S: Final = 1.5
_NUMBERS: Final[dict[Side, str]] = {"ours": "+15105550199", "bare": "+15105550198"}
_CALLER: Final = "+15105550123"
_WAIT_S: Final = 20.0
_IDLE_WITHIN_S: Final = 60.0
# For the processes of the last calls to end.
_QUIET_S: Final = 0.3
# For the remains of a failed call to end.
_LOST_QUIET_S: Final = 5.0
# After the word's duration, for its end to arrive.
_HEAR_OUT_S: Final = 0.2
# livekit-agents' log line if LiveKit assigned the job to no worker or to another one.
_NOT_ASSIGNED: Final = re.compile(r"assignment for job \S+ timed out")


@dataclass(frozen=True, slots=True)
class Heard:
    """One call, ms. ``answered_ms``: INVITE → 200, 0 for outbound; ``word_ms``: from the INVITE
    (outbound: from the 200) to the first voiced frame."""

    answered_ms: float
    word_ms: float
    word: Found | None


class CallLost(Exception):
    """The call was refused, cut off, or silent for 20 s."""


class Rig:
    """A stack and a bare worker with one agent each, and one phone. Made by ``run``."""

    def __init__(self, pair: Pair, agent_id: str) -> None:
        self._sip_address = pair.sip_address
        self._workers = {"ours": pair.stack.worker.process, "bare": pair.bare}
        self._http = pair.http
        self._phone = pair.phone
        self._agent_id = agent_id
        self._greetings = dict.fromkeys(SIDES, FirstWord(GREETING))
        self._rooms = 0
        changes = {
            "from_phone_number": _NUMBERS["ours"],
            "to_phone_number": _CALLER,
            "agent": agent_id,
        }
        pids = {side: running(process.pid) for side, process in self._workers.items()}
        address = pair.phone.address
        ours = sides.ours(pair.http, pids["ours"], address, **changes)
        bare = sides.bare(pair.livekit, pids["bare"], address, _NUMBERS["bare"])
        self._place = {"ours": ours.place, "bare": bare.place}

    @classmethod
    @contextlib.asynccontextmanager
    async def run(cls, settings: Settings, *, livekit_sip: str = "") -> AsyncIterator[Rig]:
        """Run a rig with the bridge, or with the livekit-sip at that path."""
        secret = secrets.token_hex(16)
        values = {
            "worker_max_calls": 100,  # the bare worker has no limit
            "auth_required": True,
            "sip_numbers_need_approval": False,  # there is no operator
            "auth_api_secrets_json": json.dumps([{"id": "bench", "secret": secret}]),
        }
        async with pair(settings, values, token=secret, livekit_sip=livekit_sip) as both:
            both.phone.behave(Answer(after_s=RINGING_S))
            control = Control(
                openai=OpenAI(first_token_ms=LLM_FIRST_TOKEN_MS),
                cartesia=Cartesia(first_byte_ms=TTS_FIRST_BYTE_MS),
            )
            await both.stack.set_providers(control)
            await _answer_bare(both.stack)
            yield cls(both, await answering(both.http, _NUMBERS["ours"], AGENT))

    async def publish(self, greeting: str) -> None:
        """Publish a new version of our agent."""
        path = f"/v1/agents/{self._agent_id}"
        async with self._http.patch(path, json={"beginMessage": greeting}) as response:
            response.raise_for_status()
        self._greetings["ours"] = FirstWord(greeting)

    async def idle(self) -> None:
        """Wait until both workers have all their idle processes again, so that no call is slowed
        down by the one before. Raise ProcessFailed."""
        for side in SIDES:
            probe = partial(self._is_idle, side)
            await self._workers[side].wait_ready(probe, timeout_s=_IDLE_WITHIN_S)
        await asyncio.sleep(_QUIET_S)

    async def inbound(self, side: Side) -> Heard:
        """Dial the side's number, hear the first word, hang up. Raise CallLost."""
        invited = time.monotonic()
        uri = f"sip:{_NUMBERS[side]}@{self._sip_address}"
        call = await self._phone.dial(uri, caller=_CALLER)
        async with _unless_lost(call):
            await call.answered(_WAIT_S)
            answered_ms = 1000 * (call.media.zero - invited)
            word_ms, word = await self._first_word(side, call)
        return Heard(answered_ms, answered_ms + word_ms, word)

    async def outbound(self, side: Side) -> Heard:
        """Have the side call the phone, answer, hear the first word, hang up. Raise CallLost."""
        self._rooms += 1
        await self._place[side](f"bench-{self._rooms}")
        async with _unless_lost():
            call = await self._phone.next_call(_WAIT_S)
        async with _unless_lost(call):
            await call.answered(_WAIT_S)
            return Heard(0.0, *await self._first_word(side, call))

    async def _first_word(self, side: Side, call: PhoneCall) -> tuple[float, Found | None]:
        """Hear the first word and hang up; return its start (ms since the answer) and the match."""
        word = self._greetings[side]
        heard_ms = await call.speech_begins(_WAIT_S)
        await asyncio.sleep(word.duration_s + _HEAR_OUT_S)
        await call.hangup()
        await call.ended(_WAIT_S)
        return heard_ms, word.find(call.media.received.timeline())

    async def _is_idle(self, side: Side) -> bool:
        log = self._workers[side].log_text()
        # Each used process is replaced. A job that was not assigned uses none.
        taken = log.count("received job request") - len(_NOT_ASSIGNED.findall(log))
        return log.count("process initialized") >= taken + IDLE_PROCESSES


async def _answer_bare(stack: Stack) -> None:
    """Create the trunk and the dispatch rule of the bare worker's number."""
    async with stack.sip_api() as sip:
        trunk = await sip.sip.create_inbound_trunk(
            CreateSIPInboundTrunkRequest(
                trunk=SIPInboundTrunkInfo(name="bare", numbers=[_NUMBERS["bare"]])
            )
        )
        agent = RoomAgentDispatch(agent_name=AGENT_NAME)
        await sip.sip.create_dispatch_rule(
            CreateSIPDispatchRuleRequest(
                dispatch_rule=SIPDispatchRuleInfo(
                    trunk_ids=[trunk.sip_trunk_id],
                    rule=SIPDispatchRule(
                        dispatch_rule_individual=SIPDispatchRuleIndividual(room_prefix="call-")
                    ),
                    room_config=RoomConfiguration(agents=[agent]),
                )
            )
        )


@contextlib.asynccontextmanager
async def _unless_lost(call: PhoneCall | None = None) -> AsyncIterator[None]:
    try:
        yield
    except (CallEnded, CallRefused, TimeoutError, BaresipError) as error:
        if call is not None:
            with contextlib.suppress(CallEnded, BaresipError, TimeoutError):
                await call.hangup()
        await asyncio.sleep(_LOST_QUIET_S)
        raise CallLost(f"{type(error).__name__} {error}".strip()) from error
