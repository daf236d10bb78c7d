"""A gateway that is killed repeatedly while it delivers a thousand events."""

from __future__ import annotations

import asyncio
import itertools
import random
from pathlib import Path

import aiohttp
import pytest
from agentphone import WebhookVerificationError, verify_webhook  # type: ignore[import-untyped]
from standardwebhooks import Webhook
from standardwebhooks import WebhookVerificationError as StandardError

from core.models import CallEvent
from core.tokens import TokenIssuer
from gateway.store.credentials import Vault
from gateway.store.database import Database
from gateway.store.webhooks import PROJECT, WebhookStore
from tests.gateway.store.test_outbox import KINDS, Rig, by_call, rest_of_call
from tests.support.databases import OnPostgres, OnSqlite
from tests.support.gateway_process import GatewayProcess, killable
from tests.support.inprocess import SECRET
from tests.support.receiver import Received, Receiver, receiving

pytestmark = pytest.mark.store

CALLS = 250
EVENTS = CALLS * len(KINDS)
KILLS = 3


def killing_points() -> list[int]:
    """Return the random counts of received events at which the gateway is killed."""
    return sorted(random.sample(range(1, EVENTS - 100), KILLS))


async def tell(
    session: aiohttp.ClientSession, token: str, call_id: str, *posts: list[CallEvent]
) -> None:
    """Post as a worker does: in order, and each again until the gateway confirms it."""
    for events in posts:
        while True:
            try:
                async with session.post(
                    f"/internal/calls/{call_id}/events",
                    json={"events": [event.model_dump(mode="json") for event in events]},
                    headers={"Authorization": f"Bearer {token}"},
                ) as response:
                    if response.status == 200:
                        break
                    assert response.status == 503, await response.text()
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


async def kill_again_and_again(
    gateway: GatewayProcess, receiver: Receiver, points: list[int]
) -> None:
    for count in points:
        await receiver.until(lambda n=count: len(ids(receiver)) >= n, timeout=120)  # type: ignore[misc]
        await gateway.process.kill()
        await gateway.start()


def ids(receiver: Receiver) -> set[str]:
    return {each.id for each in receiver.received}


def verify(received: list[Received], secret: str) -> None:
    """Verify as receivers do, by both signatures; one more byte makes each of them fail."""
    for each in received:
        headers = each.headers
        signed = (headers["X-Webhook-Signature"], secret, headers["X-Webhook-Timestamp"])
        Webhook(secret).verify(each.raw, headers)
        verify_webhook(each.raw, *signed)
        with pytest.raises(StandardError):
            Webhook(secret).verify(each.raw + b" ", headers)
        with pytest.raises(WebhookVerificationError):
            verify_webhook(each.raw + b" ", *signed)


class Contract:
    async def test_nothing_is_lost_and_order_holds(self, url: str, tmp_path: Path) -> None:
        points = killing_points()
        async with receiving() as receiver, killable(tmp_path, url) as gateway:
            database = await Database.open(url)
            try:
                rig = Rig(database)
                hooks = WebhookStore(database, Vault.from_settings(gateway.settings))
                hook = await hooks.put(
                    "acme", PROJECT, url=receiver.url, context_limit=0, timeout_s=30
                )
                calls = [await rig.call() for _ in range(CALLS)]
            finally:
                await database.close()
            tokens = TokenIssuer(SECRET)
            await gateway.start()
            async with aiohttp.ClientSession(gateway.url) as session, asyncio.TaskGroup() as group:
                group.create_task(kill_again_and_again(gateway, receiver, points))
                for call_id in calls:
                    token = tokens.for_call(call_id)
                    ringing, *rest = rest_of_call()
                    group.create_task(tell(session, token, call_id, [ringing], rest))
            await receiver.until(lambda: len(ids(receiver)) >= EVENTS, timeout=120)
            assert len(ids(receiver)) == EVENTS, points
            order = by_call(receiver.received)
            assert set(order) == set(calls), points
            for told in order.values():
                # An event in flight when the gateway died arrives twice, in its place.
                assert [kind for kind, _ in itertools.groupby(told)] == KINDS, points
            verify(receiver.received[-50:], hook.secret)


class TestSqlite(OnSqlite, Contract):
    pass


class TestPostgres(OnPostgres, Contract):
    pass
