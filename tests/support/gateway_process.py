"""A gateway as a process of its own, to be killed. LiveKit is unreachable."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from core.settings import Settings
from dev.process import ManagedProcess
from dev.stack.environment import as_variables
from dev.stack.options import HOST, ROOT
from dev.stack.ports import PORTS
from tests.support.inprocess import settings_in


class GatewayProcess:
    """It has the same address after every restart."""

    def __init__(self, settings: Settings, folder: Path, code: Path = ROOT) -> None:
        self.settings = settings
        self.url = settings.gateway_base_url
        self.process = ManagedProcess(
            "gateway",
            [sys.executable, "-m", "gateway"],
            env=as_variables(settings),
            cwd=code,
            log_path=folder / ("gateway.log" if code is ROOT else "former.log"),
        )

    async def start(self) -> None:
        await self.process.start()
        await self.process.wait_ready(self._answers, timeout_s=60)

    async def _answers(self) -> bool:
        try:
            async with aiohttp.request("GET", f"{self.url}/healthz") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False


@asynccontextmanager
async def killable(
    folder: Path, url: str, *, code: Path = ROOT, **changes: Any
) -> AsyncIterator[GatewayProcess]:
    """Yield a gateway of the database at ``url``, not started yet, with its data in ``folder``.

    ``code``: the folder with its modules.
    """
    port = PORTS.take(HOST)
    settings = settings_in(
        folder,
        database_url=url,
        gateway_host=HOST,
        gateway_port=port,
        webhook_allow_private=True,
        sip_allow_private=True,
        **changes,
    )
    gateway = GatewayProcess(settings, folder, code)
    try:
        yield gateway
    finally:
        await gateway.process.kill()
        PORTS.give_back(port)
