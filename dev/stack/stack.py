"""The whole system as local processes on free ports: for the demo, tests and laptops.

``async with Stack(StackOptions()) as stack`` starts a livekit-server without
Redis, the SIP bridge, the provider servers (unless real keys are given), the
gateway and a worker. All of them have ended when the block is left, also by an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import aiohttp
from livekit.api import LiveKitAPI

from core.settings import Settings
from core.tasks.first_of import first_of
from dev.process import ManagedProcess, Probe, inherited_environment
from dev.setup import livekit_server
from dev.stack.component import Component, Progress, State
from dev.stack.environment import as_variables
from dev.stack.options import HOST, ROOT, StackOptions, choose_settings, livekit_config
from dev.stack.ports import PORTS
from dev.stack.rundir import run_dir

if TYPE_CHECKING:
    from dev.providers import Control

PYTHON = (sys.executable, "-m")
PROBE_TIMEOUT_S = 2.0
LIVEKIT_GRACE_S = 0.5


class Stack:
    """The running system. Entering raises ProcessFailed or LiveKitServerMissing on failure."""

    run_dir: Path
    """Logs (``<component>.log``) and data; removed at the end unless ``keep``."""
    settings: Settings
    """The settings that the components were started with."""

    def __init__(self, options: StackOptions | None = None) -> None:
        self.options = options or StackOptions()
        self.components: dict[str, Component] = {}
        self._session: aiohttp.ClientSession
        self._cleanup = contextlib.AsyncExitStack()

    # --- Addresses and clients

    @property
    def gateway_url(self) -> str:
        """The first gateway's."""
        return f"http://{HOST}:{self.settings.gateway_port}"

    @property
    def bridge_url(self) -> str:
        return self.settings.sip_http_url

    @property
    def sip_address(self) -> str:
        """``host:port`` where the bridge accepts calls from phones."""
        return self.settings.bridge_sip_listen

    def api(self) -> LiveKitAPI:
        """Return a client of the LiveKit server; the caller closes it."""
        return self._client(self.settings.livekit_http_url)

    def sip_api(self) -> LiveKitAPI:
        """Return a client of the SIP service (``.sip``); the caller closes it."""
        return self._client(self.settings.sip_http_url)

    def _client(self, url: str) -> LiveKitAPI:
        secret = self.settings.livekit_api_secret
        return LiveKitAPI(
            url, self.settings.livekit_api_key, secret.get_secret_value() if secret else None
        )

    # --- Components

    @property
    def livekit(self) -> Component:
        return self.components["livekit-server"]

    @property
    def bridge(self) -> Component:
        return self.components["bridge"]

    @property
    def providers(self) -> Component:
        return self.components["providers"]

    @property
    def gateway(self) -> Component:
        return self.components["gateway"]

    @property
    def worker(self) -> Component:
        return self.components["worker"]

    @property
    def streams(self) -> Component:
        return self.components["streams"]

    def log_text(self, name: str) -> str:
        """Return everything that the component has printed."""
        return self.components[name].process.log_text()

    async def set_providers(self, control: Control) -> None:
        """Set what the local providers recognise, what they answer, and after which delay."""
        document = control.model_dump(mode="json")
        async with self._session.put(f"{self.providers.address}/control", json=document) as answer:
            answer.raise_for_status()

    async def provider_log(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the local providers' log entries after the one with that ``seq``."""
        address = f"{self.providers.address}/control/log"
        async with self._session.get(address, params={"since": since}) as answer:
            answer.raise_for_status()
            return list((await answer.json())["entries"])

    async def wait_unexpected_end(self) -> Component:
        """Wait until a component ends by itself; return it."""

        async def ended(component: Component) -> Component:
            await component.wait_unexpected_end()
            return component

        found = await first_of(*map(ended, self.components.values()))
        return next(component for component in found if component is not None)

    # --- Start and stop

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as cleanup:
            self.run_dir = cleanup.enter_context(run_dir(keep=self.options.keep))
            self._session = await cleanup.enter_async_context(
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S))
            )

            def take_port() -> int:
                port = PORTS.take(HOST)
                cleanup.callback(PORTS.give_back, port)
                return port

            self.settings, providers_port = choose_settings(self.options, self.run_dir, take_port)
            if self.options.livekit:
                config = livekit_config(self.settings, take_port())
                await self._add_livekit({**config, **self.options.livekit_config})
            if providers_port is not None:
                self._add_providers(providers_port)
            for number in range(1, int(self.options.gateway) + 1):
                self._add_gateway(number, take_port)
            if self.options.bridge:
                self._add_bridge()
            for number in range(1, int(self.options.worker) + 1):
                self._add_worker(number, take_port)
            for number in range(1, self.options.streams + 1):
                self._add_streams(number, take_port())
            cleanup.push_async_callback(self._kill)
            await self._start()
            self._cleanup = cleanup.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        async with self._cleanup:
            # The bridge first: it hangs up, so that the workers end their calls and report the
            # last events to the gateway.
            workers = [name for name in self.components if name.startswith(("worker", "streams"))]
            gateways = [name for name in self.components if name.startswith("gateway")]
            for layer in (["bridge"], workers, gateways, ["providers", "livekit-server"]):
                await asyncio.gather(
                    *(self.components[name].stop() for name in layer if name in self.components)
                )

    async def _start(self) -> None:
        try:
            async with asyncio.TaskGroup() as starting:
                for component in self.components.values():
                    starting.create_task(component.start())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _kill(self) -> None:
        await asyncio.gather(*(component.kill() for component in self.components.values()))

    # --- What is started

    async def _add_livekit(self, config: Mapping[str, object]) -> None:
        def report_build(line: str) -> None:
            self.options.report(Progress("livekit-server", State.STARTING, detail=line))

        settings = self.settings
        server = await livekit_server.ensure(settings.livekit_server_bin, report=report_build)
        self._add(
            "livekit-server",
            [str(server.path)],
            self._answers(settings.livekit_http_url),
            settings.livekit_url,
            # In a variable, so that neither the process list nor a file shows the secret.
            {"LIVEKIT_CONFIG": json.dumps(config)},
            # It would wait for rooms to close, but their participants have been stopped before.
            stop_grace_s=LIVEKIT_GRACE_S,
        )

    def _add_providers(self, port: int) -> None:
        base = f"http://{HOST}:{port}"
        command = [*PYTHON, "dev.providers", "--port", str(port)]
        self._add("providers", command, self._answers(f"{base}/control"), base)

    def _add_gateway(self, number: int, take_port: Callable[[], int]) -> None:
        name = "gateway" if number == 1 else f"gateway-{number}"
        port = self.settings.gateway_port if number == 1 else take_port()
        url = f"http://{HOST}:{port}"
        # Without a LiveKit server it runs but never becomes ready.
        path = "readyz" if self.options.livekit else "healthz"
        variables = {"GATEWAY_PORT": str(port)}
        self._add(name, [*PYTHON, "gateway"], self._answers(f"{url}/{path}"), url, variables)

    def _add_bridge(self) -> None:
        address = f"{self.bridge_url}, SIP {self.sip_address}"
        self._add("bridge", [*PYTHON, "sip.bridge"], self._answers(self.bridge_url), address)

    def _add_worker(self, number: int, take_port: Callable[[], int]) -> None:
        port = self.settings.worker_http_port if number == 1 else take_port()
        self._add_fleet("worker", number, "start", port, "WORKER_HTTP_PORT")

    def _add_streams(self, number: int, port: int) -> None:
        self._add_fleet("streams", number, "streams", port, "STREAMS_PORT")

    def _add_fleet(self, kind: str, number: int, command: str, port: int, variable: str) -> None:
        name = kind if number == 1 else f"{kind}-{number}"
        variables = {variable: str(port)}
        if self.settings.log_level in ("WARNING", "ERROR"):
            variables["LOG_LEVEL"] = "INFO"  # the probe looks for a line at level INFO
        self._add(
            name,
            [*PYTHON, "worker", command],
            self._free_for_calls(name),
            f"http://{HOST}:{port}",
            variables,
        )

    def _add(
        self,
        name: str,
        command: list[str],
        probe: Probe,
        address: str,
        variables: Mapping[str, str] = MappingProxyType({}),
        stop_grace_s: float | None = None,
    ) -> None:
        env = inherited_environment(without=list(Settings.model_fields))
        env |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        env |= {**as_variables(self.settings), **variables, **self.options.env.get(name, {})}
        self.components[name] = Component(
            ManagedProcess(name, command, env=env, log_path=self.run_dir / f"{name}.log"),
            probe,
            address=address,
            ready_timeout_s=self.options.ready_timeout_s,
            stop_grace_s=self.options.stop_grace_s if stop_grace_s is None else stop_grace_s,
            report=self.options.report,
        )

    # --- When is it ready

    def _answers(self, url: str) -> Probe:
        async def probe() -> bool:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self._session.get(url) as response:
                    return response.status == 200
            return False

        return probe

    def _free_for_calls(self, name: str) -> Probe:
        """Return a probe: LiveKit and, if there is one, the gateway know the worker.

        A stream worker knows the gateway only.
        """
        known = self.options.gateway or name.startswith("streams")
        line = "heartbeat taken" if known else "registered worker"

        async def probe() -> bool:
            return line in self.components[name].process.log_text(this_run=True)

        return probe
