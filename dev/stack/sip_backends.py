"""A livekit-server with a SIP service: the bridge, or livekit-sip with its Redis.

For the SIP contract and the benchmarks, which compare the two.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from livekit import api
from livekit.api import LiveKitAPI

from core.settings import Settings
from dev.process import ManagedProcess, inherited_environment
from dev.stack.options import StackOptions
from dev.stack.ports import PORTS, listening
from dev.stack.stack import Stack

WAIT: Final = 15.0  # a deadline, not an expectation


@dataclass(frozen=True)
class Backend:
    """A running livekit-server with a SIP service."""

    name: str
    url: str
    sip_url: str
    key: str
    secret: str = field(repr=False)
    sip_address: str = ""

    def api(self) -> LiveKitAPI:
        return LiveKitAPI(self.url, self.key, self.secret)

    def sip_api(self) -> LiveKitAPI:
        return LiveKitAPI(self.sip_url, self.key, self.secret)

    def token(self, room: str, identity: str, kind: Any = "standard") -> str:
        grants = api.VideoGrants(room_join=True, room=room, can_update_own_metadata=True)
        token = api.AccessToken(self.key, self.secret).with_identity(identity)
        return token.with_kind(kind).with_grants(grants).to_jwt()


def _backend(name: str, stack: Stack, sip_url: str, sip_address: str) -> Backend:
    key, secret = stack.settings.livekit_api_key, stack.settings.livekit_api_secret
    assert key is not None and secret is not None
    return Backend(
        name, stack.settings.livekit_url, sip_url, key, secret.get_secret_value(), sip_address
    )


@contextlib.asynccontextmanager
async def bridge_backend() -> AsyncIterator[Backend]:
    """Run livekit-server without Redis, and the bridge."""
    options = StackOptions(worker=0, gateway=False, providers=False, livekit_config={"webhook": {}})
    async with Stack(options) as stack:
        yield _backend("bridge", stack, stack.bridge_url, stack.sip_address)


@contextlib.asynccontextmanager
async def livekit_sip_backend(directory: Path, binary: str) -> AsyncIterator[Backend]:
    """Run livekit-server with Redis, and livekit-sip; their logs go to ``directory``."""
    options = StackOptions(worker=0, gateway=False, providers=False, livekit_config={"webhook": {}})
    async with livekit_sip_stack(directory, binary, options) as (stack, sip_address):
        yield _backend("livekit-sip", stack, stack.bridge_url, sip_address)


@contextlib.asynccontextmanager
async def livekit_sip_stack(
    directory: Path, binary: str, options: StackOptions
) -> AsyncIterator[tuple[Stack, str]]:
    """Run a stack with livekit-sip and Redis for the bridge; yield it and its SIP address."""
    redis = shutil.which("redis-server")
    if redis is None:
        raise FileNotFoundError("redis-server")
    ports = [PORTS.take() for _ in range(3)]
    redis_port, sip_port, health_port = ports
    env = inherited_environment()
    async with contextlib.AsyncExitStack() as cleanup:
        for port in ports:
            cleanup.callback(PORTS.give_back, port)
        command = [redis, "--port", str(redis_port), "--bind", "127.0.0.1", "--save", ""]
        store = ManagedProcess("redis", command, log_path=directory / "redis.log", env=env)
        cleanup.push_async_callback(store.kill)
        await store.start()
        await store.wait_ready(lambda: listening(redis_port), timeout_s=WAIT)
        address = {"address": f"127.0.0.1:{redis_port}"}
        options = replace(
            options, bridge=False, livekit_config={**options.livekit_config, "redis": address}
        )
        stack = await cleanup.enter_async_context(Stack(options))
        secret = stack.settings.livekit_api_secret
        config = {
            "api_key": stack.settings.livekit_api_key,
            "api_secret": secret.get_secret_value() if secret else "",
            "ws_url": stack.settings.livekit_url,
            "redis": address,
            "sip_port": sip_port,
            "listen_ip": "127.0.0.1",
            "nat_1_to_1_ip": "127.0.0.1",
            "use_external_ip": False,
            "rtp_port": "32100-32499",
            "rtp_draining_idle_timeout": "-1s",
            "rtp_draining_duration": "-1s",
            "max_cpu_utilization": 1.0,
            "health_port": health_port,
        }
        service = ManagedProcess(
            "livekit-sip",
            [binary],
            log_path=directory / "livekit-sip.log",
            env={**env, "SIP_CONFIG_BODY": json.dumps(config)},
        )
        cleanup.push_async_callback(service.kill)  # SIGTERM would wait for live calls
        await service.start()
        await service.wait_ready(lambda: listening(health_port), timeout_s=WAIT)
        yield stack, f"127.0.0.1:{sip_port}"


@contextlib.asynccontextmanager
async def sip_stack(options: StackOptions, livekit_sip: str) -> AsyncIterator[tuple[Stack, str]]:
    """Run a stack with the livekit-sip at that path, or with the bridge if the path is empty.

    Yield the stack and the SIP address that phones call.
    """
    async with contextlib.AsyncExitStack() as cleanup:
        if livekit_sip:
            logs = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
            yield await cleanup.enter_async_context(livekit_sip_stack(logs, livekit_sip, options))
        else:
            stack = await cleanup.enter_async_context(Stack(options))
            yield stack, stack.sip_address


def livekit_sip_binary(settings: Settings) -> str:
    """Return the path of livekit-sip; empty if it or the Redis that it needs is missing."""
    binary = str(settings.livekit_sip_bin or shutil.which("livekit-sip") or "")
    return binary if shutil.which("redis-server") else ""
