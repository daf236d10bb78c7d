"""``python -m sip.bridge``: the embedded SIP service, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from dataclasses import replace
from typing import NoReturn

import baresip
import uvloop
from aiohttp import web

from core import logs, rtc_sdk, settings
from core.owner_only import keep_private
from core.settings import Settings
from sip.bridge.api.server import create_app
from sip.bridge.calls import leftovers
from sip.bridge.calls.service import SipService
from sip.bridge.calls.sweeper import settle
from sip.bridge.registry import Registry
from sip.bridge.stack.endpoint import Endpoint
from sip.guard import SipGuard, sip_listeners
from sip.participant import LiveKit

log = logging.getLogger("sip.bridge")


async def serve(config: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError, ValueError, BaresipError if startup fails."""
    if not config.livekit_configured:
        raise ValueError("LIVEKIT_API_KEY and LIVEKIT_API_SECRET must be set")
    assert config.livekit_api_key is not None and config.livekit_api_secret is not None
    livekit = LiveKit(
        config.livekit_url, config.livekit_api_key, config.livekit_api_secret.get_secret_value()
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await rtc_sdk.load()
    registry = Registry(config.data_dir / "bridge.json")
    registry.load()
    endpoint = Endpoint(config.bridge_sip_listen)
    await endpoint.start()
    livekit = replace(livekit, mark=leftovers.mark_of(endpoint.address))
    await leftovers.remove(livekit)
    host, _, port = endpoint.address.rpartition(":")
    own = sip_listeners(host.strip("[]"), int(port))  # the setting's port may be 0
    service = SipService(endpoint, registry, livekit, SipGuard.from_settings(config, also_own=own))
    addresses: dict[str, str] = {}
    runner = web.AppRunner(create_app(service, registry, livekit, lambda: addresses))
    try:
        await runner.setup()
        site = web.TCPSite(runner, config.bridge_host, config.bridge_port)
        await site.start()
        host, port = runner.addresses[0][:2]
        shown = f"[{host}]" if ":" in host else host
        addresses |= {"http": f"http://{shown}:{port}", "sip": endpoint.address}
        log.info("ready", extra=addresses)
        print(f"sip.bridge ready http={addresses['http']} sip={addresses['sip']}", flush=True)
        settle()
        await stop.wait()
        log.info("stopping", extra={"calls": service.live_calls})
    finally:
        await service.close(config.shutdown_grace_s)
        await runner.cleanup()
        await endpoint.close()


def main() -> int:
    config = settings.load()
    logs.configure(config, "bridge")
    keep_private(config)
    # Below WARNING their logs hold phone numbers (baresip's final statistics) or nothing useful.
    for name in ("baresip", "livekit"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        uvloop.run(serve(config))
    except (OSError, ValueError, baresip.BaresipError) as error:
        print(f"sip.bridge: {error}", file=sys.stderr)
        return 1
    return 0


def leave(code: int) -> NoReturn:
    """End the process without finalizing the interpreter.

    LiveKit's native threads may still call into Python during that, which aborts the process
    (SIGABRT, one stop in thirty). All our own resources are closed by now.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
