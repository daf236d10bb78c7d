"""Fixtures: one provider server per test module, reset for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest_asyncio

from dev.providers import Providers
from tests.support import provider_rig as rig


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def server() -> AsyncIterator[Providers]:
    async with rig.serve() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def providers(server: Providers) -> Providers:
    await server.set_control(rig.fresh())
    return server


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session
