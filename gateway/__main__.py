"""``python -m gateway``: serve until SIGTERM or SIGINT, then drain.

``python -m gateway reseal`` re-encrypts all secrets with the first key of SECRETS_KEY.
``python -m gateway explain call_…`` says why a call failed; its exit status is 0 if nothing went
wrong, 1 if something did, 2 if the call cannot be found or read.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

import uvloop
from aiohttp import web

from core import logs, settings
from core.errors import AppError
from core.owner_only import keep_private
from gateway.app import create_app, metrics_route
from gateway.diagnosis.explain import explain
from gateway.diagnosis.page import page
from gateway.http.connection import Runner
from gateway.http.errors import add_request_id, error_middleware
from gateway.http.host_names import check_listen_address
from gateway.http.route import register
from gateway.keys import METRICS, STOPPING
from gateway.lookup.agent_files import BadAgentFile
from gateway.store.reseal import reseal

log = logging.getLogger("gateway")


async def serve(config: settings.Settings) -> None:
    check_listen_address(config)
    app = await create_app(config)
    runner = Runner(app, access_log=None, shutdown_timeout=config.shutdown_grace_s)
    await runner.setup()
    runners: list[web.AppRunner] = [runner]
    try:
        site = web.TCPSite(runner, config.listen_host, config.gateway_port)
        await site.start()
        if config.metrics_port is not None:
            runners.append(await _serve_metrics(app, config))
        host, port = runner.addresses[0][:2]
        log.info("gateway ready", extra={"address": f"http://{host}:{port}"})
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await stop.wait()
        log.info("gateway stopping")
        app[STOPPING].set()
    finally:
        for each in reversed(runners):
            await each.cleanup()


async def _serve_metrics(app: web.Application, config: settings.Settings) -> web.AppRunner:
    own = web.Application(middlewares=[error_middleware])
    own.on_response_prepare.append(add_request_id)
    register(own, [metrics_route(app[METRICS])])
    runner = Runner(own, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, config.listen_host, config.metrics_port).start()
    return runner


def _explain(config: settings.Settings, arguments: list[str]) -> int:
    logs.configure(config, "gateway")
    try:
        if len(arguments) != 1:
            raise ValueError("usage: python -m gateway explain call_…")
        found = uvloop.run(explain(config, arguments[0]))
    except (AppError, OSError, ValueError) as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 2
    if found is None:
        print("gateway: no such call", file=sys.stderr)
        return 2
    print(page(found), end="")
    return 0 if found.verdict in ("good", "running") else 1


def main(arguments: list[str]) -> int:
    config = settings.load()
    if arguments[:1] == ["explain"]:
        return _explain(config, arguments[1:])
    logs.configure(config, "gateway")
    keep_private(config)
    try:
        if arguments == ["reseal"]:
            print(f"resealed {uvloop.run(reseal(config))} secrets")
        elif arguments:
            raise ValueError("the commands are: reseal, explain")
        else:
            uvloop.run(serve(config))
    except (ValueError, BadAgentFile) as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 2
    except (AppError, OSError) as error:
        print(f"gateway: cannot start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
