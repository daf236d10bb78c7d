"""A call by phone goes on when its agent is killed."""

from __future__ import annotations

from functools import partial

import aiohttp
import pytest
from livekit.api import LiveKitAPI

from core.models import now
from core.tokens import TokenIssuer
from dev.bench.recovery.loop import Line, lose
from dev.phone import Phone
from dev.scenario import OPENING
from dev.stack import Stack
from tests.conftest import ACME, Gateway, bearer

# After so long LiveKit would have ended the next agent's job, too (Dispatcher.make_way).
LIVEKIT_TERMINATES_S = 17.0

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]


async def report(stack: Stack, http: aiohttp.ClientSession, call_id: str) -> None:
    """Report the loss, as the worker does, too: whoever is second changes nothing."""
    secret = stack.settings.livekit_api_secret
    assert secret is not None
    token = TokenIssuer(secret.get_secret_value()).for_call(call_id)
    body = {"why": "killed", "seenAt": now().isoformat()}
    path = f"/internal/calls/{call_id}/lost"
    async with http.post(path, json=body, headers=bearer(token)) as answer:
        assert (answer.status, await answer.json()) == (200, {"comes": True})


async def test_the_caller_hears_the_next_agent_and_never_two(
    stack: Stack, gateway: Gateway, livekit: LiveKitAPI, phone: Phone
) -> None:
    line = Line(stack, gateway.session, livekit, phone, "greeter", ACME)
    told = await lose(
        line,
        "job killed",
        OPENING,
        pending=False,
        report=partial(report, stack, gateway.session),
        held_s=LIVEKIT_TERMINATES_S,
    )
    assert told.problems == []
    assert told.silence_ms is not None
