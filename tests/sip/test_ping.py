"""A participant's sign of life, by a real LiveKit server: running, frozen, gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from livekit.api import AccessToken, LiveKitAPI, VideoGrants
from livekit.protocol.room import RoomParticipantIdentity

from core.models import new_id
from dev.stack import Stack, StackOptions
from sip.ping import responds

pytestmark = pytest.mark.stack

# Its event loop hangs: whether it still responds is not a question to Python.
_JOINS = """
import asyncio, sys, time
from livekit import rtc
async def main():
    room = rtc.Room()
    await room.connect(sys.argv[1], sys.argv[2])
    print("joined", flush=True)
    time.sleep(60)
asyncio.run(main())
"""


@asynccontextmanager
async def joined(stack: Stack, whom: RoomParticipantIdentity) -> AsyncIterator[int]:
    """Yield the id of a process that is in the room."""
    secret = stack.settings.livekit_api_secret
    assert secret is not None and stack.settings.livekit_api_key is not None
    token = (
        AccessToken(stack.settings.livekit_api_key, secret.get_secret_value())
        .with_identity(whom.identity)
        .with_grants(VideoGrants(room_join=True, room=whom.room))
        .to_jwt()
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _JOINS, stack.settings.livekit_url, token,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 20) == b"joined\n"
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_who_runs_responds_and_who_is_frozen_or_gone_does_not() -> None:
    options = StackOptions(bridge=False, providers=False, gateway=0, worker=0)
    async with Stack(options) as stack, stack.api() as livekit:
        await asked(stack, livekit)


async def asked(stack: Stack, livekit: LiveKitAPI) -> None:
    whom = RoomParticipantIdentity(room=new_id("room"), identity="agent")
    assert await responds(livekit, whom, 1) is False, "no such room"
    async with joined(stack, whom) as pid:
        assert await responds(livekit, whom, 5) is True
        other = RoomParticipantIdentity(room=whom.room, identity="other")
        assert await responds(livekit, other, 1) is False
        os.kill(pid, signal.SIGSTOP)
        assert await responds(livekit, whom, 1) is False
        os.kill(pid, signal.SIGCONT)
        assert await responds(livekit, whom, 5) is True
        os.kill(pid, signal.SIGKILL)
        assert await responds(livekit, whom, 1) is False


async def test_without_livekit_it_is_not_known() -> None:
    whom = RoomParticipantIdentity(room="room", identity="agent")
    async with LiveKitAPI("http://127.0.0.1:9", "key", "s" * 32, failover=False) as nowhere:
        assert await responds(nowhere, whom, 1) is None
