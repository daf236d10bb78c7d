"""One call by phone whose agent is lost on the way: what the caller hears, and what is recorded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.models import ParticipantInfo
from livekit.protocol.room import ListParticipantsRequest

from core.models import new_id
from dev.bench.recovery.faults import Agent, Fault
from dev.phone import Phone, PhoneCall
from dev.stack import Stack

_WAIT_S: Final = 20.0
_BACK_WITHIN_S: Final = 40.0
_END_SILENCE_MS: Final = 700.0
_LOOK_EVERY_S: Final = 0.1
UNDER_WAY_MS: Final = 500.0
"""After a loss: what the lost agent had said is still on its way, and no other can speak yet."""


@dataclass(slots=True)
class Round:
    """What became of one call."""

    fault: Fault
    call_id: str
    silence_ms: float | None = None
    """From the fault to the next agent's first voiced frame, at the phone; None: none came."""
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Line:
    """The stack, and a phone that is called. ``headers`` authenticate to the gateway."""

    stack: Stack
    http: aiohttp.ClientSession
    livekit: LiveKitAPI
    phone: Phone
    agent: str
    headers: Mapping[str, str] = field(default_factory=dict)

    async def get(self, path: str, **params: str) -> Any:
        async with self.http.get(path, params=params, headers=self.headers) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def dial(self) -> tuple[str, str]:
        """Call the phone; return the call's id and its room."""
        body = {
            "room_name": new_id("room"),
            "participant_name": "Callee",
            "participant_identity": "callee",
            "from_phone_number": "+15105550123",
            "to_phone_number": "+15551234567",
            "sip": {"outbound_address": self.phone.address},
            "agent": self.agent,
        }
        async with self.http.post("/sip/call", json=body, headers=self.headers) as answer:
            placed = await answer.json()
            assert answer.status == 200, placed
        return placed["call_id"], str(body["room_name"])


async def lose(
    line: Line,
    fault: Fault,
    question: str,
    *,
    pending: bool,
    report: Any = None,
    held_s: float = 0.0,
) -> Round:
    """Place a call, let ``fault`` happen to its agent, and go on talking with the next one.

    ``pending``: the caller has just spoken, and waits for the answer. ``report``: awaited with the
    call's id after the fault, to report the loss where the worker does not. ``held_s``: how long
    the call goes on with the next agent before the caller speaks again.
    """
    call_id, room = await line.dial()
    told = Round(fault, call_id)
    call = await line.phone.next_call(_WAIT_S)
    await converse(call, question)
    agent = await _agent(line.stack, call_id)
    async with _watched(line.livekit, room, told):
        if pending:
            await call.say(question)
        lost_ms = call.now_ms()
        try:
            await agent.suffer(fault)
            if report is not None:
                await report(call_id)
            since_ms = lost_ms + UNDER_WAY_MS
            began_ms = await call.speech_begins(_BACK_WITHIN_S, since_ms=since_ms)
            told.silence_ms = began_ms - lost_ms
            await call.listen(_WAIT_S, since_ms=since_ms, end_silence_ms=2 * _END_SILENCE_MS)
            agent.wake()  # what was frozen, and must not do anything now
            await asyncio.sleep(held_s)
            await call.say(question)
            await call.listen(_WAIT_S, end_silence_ms=_END_SILENCE_MS)
        except Exception as error:
            told.problems.append(f"{type(error).__name__}: {error}")
        finally:
            with contextlib.suppress(Exception):
                await call.hangup()
                await call.ended(_WAIT_S)
    await _check(line, told)
    await agent.repair()
    return told


async def converse(call: PhoneCall, question: str) -> None:
    """Answer the agent's call, hear its greeting, ask, and hear the answer."""
    await call.answered(_WAIT_S)
    await call.listen(_WAIT_S, end_silence_ms=_END_SILENCE_MS)
    await call.say(question)
    await call.listen(_WAIT_S, end_silence_ms=_END_SILENCE_MS)


async def _agent(stack: Stack, call_id: str) -> Agent:
    async with asyncio.timeout(_WAIT_S):
        while True:
            found = await asyncio.to_thread(Agent.find, stack, call_id)
            if found is not None:
                return found
            await asyncio.sleep(_LOOK_EVERY_S)


@contextlib.asynccontextmanager
async def _watched(livekit: LiveKitAPI, room: str, told: Round) -> AsyncIterator[None]:
    """Look who is in the room all the time: never two agents."""

    async def look() -> None:
        while True:
            with contextlib.suppress(ServerError, aiohttp.ClientError, TimeoutError):
                listed = await livekit.room.list_participants(ListParticipantsRequest(room=room))
                agents = [
                    one for one in listed.participants if one.kind == ParticipantInfo.Kind.AGENT
                ]
                if len(agents) > 1 and "two agents" not in told.problems:
                    told.problems.append("two agents")
            await asyncio.sleep(_LOOK_EVERY_S)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.wait({looking})


async def _check(line: Line, told: Round) -> None:
    """Compare the record with what happened."""
    record = await line.get(f"/v1/calls/{told.call_id}", wait="true", timeout="30")
    end = (record["status"], record["disconnectionReason"])
    if end != ("completed", "user_hangup"):
        told.problems.append(f"recorded as {end}")
    diagnosis = await line.get(f"/v1/calls/{told.call_id}/diagnosis")
    seen = [event["type"] for event in diagnosis["timeline"]]
    if seen.count("agent.lost") != 1:
        told.problems.append(f"{seen.count('agent.lost')} agents lost")
    spoken = [turn for turn in record["transcripts"] if turn["transcript"] and turn["response"]]
    if len(spoken) < 2:
        told.problems.append(f"{len(spoken)} answered turns")
    for turn in record["transcripts"]:
        if not turn["transcript"] and not turn["response"]:
            told.problems.append("an empty turn")
