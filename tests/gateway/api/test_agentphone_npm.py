"""The public ``agentphone`` library for Node, unchanged: tests/npm/walk.mjs calls a phone."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from dev.phone import Phone
from dev.stack import Stack
from dev.stack.options import ROOT
from tests.conftest import SECRETS, Gateway

FOLDER = ROOT / "tests/npm"
NODE = shutil.which("node")

pytestmark = [
    pytest.mark.stack,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(NODE is None, reason="there is no node here"),
    pytest.mark.skipif(
        not (FOLDER / "node_modules/agentphone").exists(),
        reason="npm ci has not been run in tests/npm (make test does)",
    ),
]


async def test_the_walk(stack: Stack, gateway: Gateway, phone: Phone) -> None:
    credential = {"name": "npm-trunk", "provider": "sip", "address": phone.address}
    assert (await gateway.post("/api/v1/credentials", json=credential)).status == 201
    attached = await gateway.post(
        "/api/v1/phone-numbers/attach",
        json={"provider": "sip", "phoneNumber": "+15105550299", "credentialsRef": "npm-trunk"},
    )
    assert attached.status == 201, attached.body
    number_id = attached.body["data"]["id"]
    assert NODE is not None
    walk = await asyncio.create_subprocess_exec(
        *(NODE, str(FOLDER / "walk.mjs"), stack.gateway_url, SECRETS["acme"], number_id),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    walked = asyncio.create_task(walk.communicate())
    picking_up = asyncio.create_task(pick_up(phone))
    try:
        # If one fails, the other cannot succeed.
        await asyncio.wait({walked, picking_up}, timeout=120, return_when=asyncio.FIRST_COMPLETED)
        output, _ = await asyncio.wait_for(walked, 120)
        assert walk.returncode == 0, output.decode()
        await asyncio.wait_for(picking_up, 10)
    finally:
        picking_up.cancel()
        if walk.returncode is None:
            walk.kill()
        await asyncio.gather(walked, picking_up, return_exceptions=True)


async def pick_up(phone: Phone) -> None:
    """Hang up after the first call's greeting; let the other side end the second call."""
    greeted = await phone.next_call(60)
    await greeted.answered(10)
    await greeted.listen(20)
    await greeted.hangup()
    ended = await phone.next_call(60)
    await ended.answered(10)
    await ended.ended(60)
