"""``python -m dev.bench.requests.idle_streams``: the cost of idle event streams for a gateway.

It starts a gateway with unfinished calls, and follows the events of each. Once all streams have
received the past events, it measures the gateway's CPU time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import sys
from urllib.parse import urlsplit

from core import settings
from core.models import CallEvent, new_id
from core.settings import Settings
from dev.bench.requests import lone_gateway
from dev.bench.usage import cpu_s, pss_mib
from dev.stack import Stack
from gateway.store.calls import NewCall, Store
from gateway.store.database import Database

_TRUNK = "127.0.0.1:9"  # never dialled
_CONNECTING = 50
_FIRST = b"event: call.queued"


async def measure(config: Settings, streams: int, calls: int, seconds: float) -> str:
    secret = secrets.token_hex(16)
    options = lone_gateway.options(config, secret, _TRUNK, livekit_url="ws://127.0.0.1:9")
    async with Stack(options) as stack, contextlib.AsyncExitStack() as cleanup:
        database = await Database.open(stack.settings.database_url)
        cleanup.push_async_callback(database.close)
        ids = [await _call(Store(database)) for _ in range(calls)]
        address = urlsplit(stack.gateway_url)
        gate = asyncio.Semaphore(_CONNECTING)

        async def follow(call_id: str) -> None:
            async with gate:
                reader, writer = await asyncio.open_connection(address.hostname, address.port)
                cleanup.callback(writer.close)
                writer.write(
                    f"GET /v1/calls/{call_id}/events HTTP/1.1\r\nHost: localhost\r\n"
                    f"Authorization: Bearer {secret}\r\n\r\n".encode()
                )
                await reader.readuntil(_FIRST)

        await asyncio.gather(*(follow(ids[number % calls]) for number in range(streams)))
        pid = stack.gateway.pid or 0
        before = cpu_s(pid)
        await asyncio.sleep(seconds)
        cores = (cpu_s(pid) - before) / seconds
        return (
            f"{streams} streams of {calls} calls: {cores:.1%} of a core, {pss_mib(pid):.0f} MiB "
            f"(over {seconds:g} s)"
        )


async def _call(store: Store) -> str:
    new = NewCall(
        id=new_id("call"),
        auth_id="bench",
        direction="outbound",
        room_name=new_id("room"),
        participant_identity="caller",
        from_number="+15105550123",
        to_number="+15551234567",
        max_duration_ms=3_600_000,
        metadata={},
    )
    return (await store.insert_call(new, CallEvent(type="call.queued"))).id


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dev.bench.requests.idle_streams")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--calls", type=int, default=1000, help="number of calls that are followed")
    parser.add_argument("--seconds", type=float, default=20)
    given = parser.parse_args()
    print(asyncio.run(measure(settings.load(), given.streams, given.calls, given.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
