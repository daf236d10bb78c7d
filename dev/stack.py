"""The whole system as local processes on free ports: for the demo, tests and laptops.

``async with Stack(StackOptions()) as stack`` starts a livekit-server without
Redis, the SIP bridge, the provider servers (unless real keys are given), the
gateway and a worker; on the way out, by whatever way, all of them are ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
from livekit.api import LiveKitAPI

from core.settings import Settings
from dev import livekit_server
from dev.component import Component, Progress, Report, State
from dev.environment import GivenSettings, as_variables, given
from dev.ports import PORTS
from dev.process import ManagedProcess, Probe, inherited_environment

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent
PROBE_TIMEOUT_S = 2.0
PROVIDER_KEYS = ("deepgram_api_key", "openai_api_key", "cartesia_api_key")


def _ignore(_: Progress) -> None:
    """The report of those who do not want one."""


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """What to start, and with which settings.

    ``values`` are settings by field name, for all components; ``settings`` (as read from the
    environment) contributes what was set there, except where LiveKit is, which the stack decides:
    it starts one of its own. What neither sets, the stack chooses: free ports, new keys, a
    database in the run folder. ``env`` adds variables to single components, by name.
    """

    livekit: bool = True
    bridge: bool = True
    providers: bool | None = None
    """None: unless there are keys for all three real providers."""
    gateway: bool = True
    worker: int = 1
    """How many (True and False count as 1 and 0); the second is called ``worker-2``."""
    settings: Settings | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    livekit_config: Mapping[str, Any] = field(default_factory=dict)
    """Keys of livekit-server's own configuration, replacing ours at the top level."""
    keep: bool = False
    """Leave the run folder with the logs and the database behind."""
    ready_timeout_s: float = 60.0
    stop_grace_s: float = 10.0
    report: Report = _ignore


class Stack:
    """The running system. Raises ProcessFailed or LiveKitServerMissing when it does not come up."""

    def __init__(self, options: StackOptions | None = None) -> None:
        self.options = options or StackOptions()
        self.components: dict[str, Component] = {}
        self.run_dir: Path
        """Logs (``<component>.log``) and data; removed at the end unless ``keep``."""
        self.settings: Settings
        """What the components were started with."""
        self._ports: list[int] = []
        self._session: aiohttp.ClientSession

    # --- Addresses and clients

    @property
    def gateway_url(self) -> str:
        return self.settings.gateway_base_url

    @property
    def bridge_url(self) -> str:
        return self.settings.sip_http_url

    @property
    def sip_address(self) -> str:
        """``host:port`` where the bridge takes calls from phones."""
        return self.settings.bridge_sip_listen

    def api(self) -> LiveKitAPI:
        """A client of the LiveKit server; the caller closes it."""
        return self._client(self.settings.livekit_http_url)

    def sip_api(self) -> LiveKitAPI:
        """A client of the SIP service (``.sip``); the caller closes it."""
        return self._client(self.settings.sip_http_url)

    def _client(self, url: str) -> LiveKitAPI:
        secret = self.settings.livekit_api_secret
        assert secret is not None
        return LiveKitAPI(url, self.settings.livekit_api_key, secret.get_secret_value())

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

    def log_text(self, name: str) -> str:
        """Everything the component has printed."""
        return self.components[name].process.log_text()

    async def wait_unexpected_end(self) -> Component:
        """Wait until a component ends by itself; return it."""
        tasks = {
            asyncio.create_task(component.wait_unexpected_end()): component
            for component in self.components.values()
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return tasks[done.pop()]
        finally:
            for task in tasks:
                task.cancel()

    # --- Start and stop

    async def __aenter__(self) -> Self:
        self.run_dir = Path(tempfile.mkdtemp(prefix="switchroom-"))
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S))
        try:
            self.settings = self._choose_settings()
            await self._plan()
            try:
                async with asyncio.TaskGroup() as starting:
                    for component in self.components.values():
                        starting.create_task(component.start())
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None
        except BaseException:
            await self._close(grace=False)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close(grace=True)

    async def _close(self, *, grace: bool) -> None:
        components = self.components
        try:
            if grace:
                # The bridge first: it ends the calls, which lets the workers end theirs, whose
                # last events the gateway still takes.
                workers = [name for name in components if name.startswith("worker")]
                for layer in (["bridge"], workers, ["gateway"], ["providers", "livekit-server"]):
                    await asyncio.gather(
                        *(components[name].stop() for name in layer if name in components)
                    )
        finally:
            await asyncio.gather(*(component.kill() for component in components.values()))
            await self._session.close()
            while self._ports:
                PORTS.give_back(self._ports.pop())
            if not self.options.keep:
                shutil.rmtree(self.run_dir, ignore_errors=True)

    # --- What is started

    def _choose_settings(self) -> Settings:
        chosen = given(self.options.settings) if self.options.settings else {}
        chosen.update(self.options.values)
        livekit_port = self._own_port(chosen.pop("livekit_url", None))
        chosen.pop("livekit_sip_url", None)
        if not (chosen.get("livekit_api_key") and chosen.get("livekit_api_secret")):
            chosen["livekit_api_key"] = f"API{secrets.token_hex(6)}"
            chosen["livekit_api_secret"] = secrets.token_hex(32)
        for name in ("gateway_port", "bridge_port", "worker_http_port"):
            if not chosen.get(name):  # port 0 too: the others have to know the real one
                chosen[name] = self._port()
        chosen.setdefault("bridge_sip_listen", f"{HOST}:{self._port()}")
        chosen.setdefault("gateway_url", f"http://{HOST}:{chosen['gateway_port']}")
        chosen.setdefault("data_dir", self.run_dir / "data")
        chosen.setdefault("database_url", f"sqlite:///{self.run_dir / 'data' / 'switchroom.db'}")
        chosen.setdefault("agents_dir", ROOT / "agents")
        if self._wants_providers(chosen):
            self._providers_port = self._port()
            base = f"http://{HOST}:{self._providers_port}"
            chosen["deepgram_base_url"] = f"{base}/v1/listen"
            chosen["openai_base_url"] = f"{base}/v1"
            chosen["cartesia_base_url"] = base
            for name in PROVIDER_KEYS:
                chosen.setdefault(name, "local")
        return GivenSettings(
            **chosen,
            livekit_url=f"ws://{HOST}:{livekit_port}",
            livekit_sip_url=f"http://{HOST}:{chosen['bridge_port']}",
        )

    def _wants_providers(self, chosen: Mapping[str, Any]) -> bool:
        if self.options.providers is not None:
            return self.options.providers
        return not all(chosen.get(name) for name in PROVIDER_KEYS)

    def _own_port(self, url: str | None) -> int:
        """The port of LIVEKIT_URL when that is an address of this machine, else a free one."""
        parts = urlsplit(url or "")
        if parts.hostname in {HOST, "localhost"} and parts.port:
            return parts.port
        return self._port()

    def _port(self) -> int:
        port = PORTS.take(HOST)
        self._ports.append(port)
        return port

    async def _plan(self) -> None:
        options, settings = self.options, self.settings
        variables = as_variables(settings)
        module = [sys.executable, "-m"]
        if options.livekit:
            server = await livekit_server.ensure(
                settings.livekit_server_bin, report=self._report_build
            )
            self._add(
                "livekit-server",
                [str(server.path)],
                {"LIVEKIT_CONFIG": json.dumps(self._livekit_config())},
                self._answers(settings.livekit_http_url),
                f"{settings.livekit_url} ({server.origin})",
            )
        if self._wants_providers(given(settings)):
            base = settings.cartesia_base_url
            command = [*module, "dev.providers", "--port", str(self._providers_port)]
            self._add("providers", command, variables, self._answers(f"{base}/control"), base)
        if options.gateway:
            self._add(
                "gateway",
                [*module, "gateway"],
                variables,
                self._answers(f"{self.gateway_url}/readyz"),
                self.gateway_url,
            )
        if options.bridge:
            self._add(
                "bridge",
                [*module, "sip.bridge"],
                variables,
                self._answers(self.bridge_url),
                f"{self.bridge_url}, SIP {self.sip_address}",
            )
        for number in range(1, int(options.worker) + 1):
            name = "worker" if number == 1 else f"worker-{number}"
            port = settings.worker_http_port if number == 1 else self._port()
            self._add(
                name,
                [*module, "worker", "start"],
                variables | {"WORKER_HTTP_PORT": str(port)},
                self._registered(name),
                f"http://{HOST}:{port}",
            )

    def _add(
        self,
        name: str,
        command: list[str],
        variables: Mapping[str, str],
        probe: Probe,
        address: str,
    ) -> None:
        env = inherited_environment(without=list(Settings.model_fields))
        env |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        env |= {**variables, **self.options.env.get(name, {})}
        process = ManagedProcess(name, command, env=env, log_path=self.run_dir / f"{name}.log")
        self.components[name] = Component(
            process,
            probe,
            address=address,
            ready_timeout_s=self.options.ready_timeout_s,
            stop_grace_s=self.options.stop_grace_s,
            report=self.options.report,
        )

    def _livekit_config(self) -> dict[str, Any]:
        key, secret = self.settings.livekit_api_key, self.settings.livekit_api_secret
        assert key is not None and secret is not None
        return {
            "port": urlsplit(self.settings.livekit_url).port,
            "bind_addresses": [HOST],
            "keys": {key: secret.get_secret_value()},
            "rtc": {
                "udp_port": self._port(),
                "tcp_port": 0,  # it would listen on every interface
                "node_ip": HOST,
                "use_external_ip": False,
                # Media too stays on this machine.
                "enable_loopback_candidate": True,
                "interfaces": {"includes": ["lo"]},
            },
            "webhook": {"api_key": key, "urls": [f"{self.gateway_url}/livekit/webhook"]},
            "logging": {"level": "info", "json": True},
            **self.options.livekit_config,
        }

    def _report_build(self, line: str) -> None:
        self.options.report(Progress("livekit-server", State.STARTING, detail=line))

    # --- When is it ready

    def _answers(self, url: str) -> Probe:
        async def probe() -> bool:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self._session.get(url) as response:
                    return response.status == 200
            return False

        return probe

    def _registered(self, name: str) -> Probe:
        async def probe() -> bool:
            return "registered worker" in self.log_text(name)

        return probe
