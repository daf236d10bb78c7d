"""/v1/webhooks and /v1/agents/{id}/webhook: setting and testing webhooks, and their deliveries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from agentphone import (  # type: ignore[import-untyped]
    AgentPhone,
    NotFoundError,
    construct_event,
)
from aiohttp import web
from cryptography.fernet import Fernet

from core.events import ended
from core.models import Agent, AgentConfig, CallEvent, Turn
from gateway.keys import DELIVERIES
from gateway.store.reseal import reseal
from tests.conftest import ACME, RIVAL, SECRETS, Gateway, operator
from tests.support.inprocess import Running, running, settings_in
from tests.support.receiver import Received, Receiver, receiving

pytestmark = pytest.mark.store

URL = "/v1/webhooks"
HOOK = "https://hooks.example.com/voice?x=1"


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Running]:
    settings = settings_in(tmp_path, webhook_allow_private=True, shutdown_grace_s=1)
    async with running(settings) as own:
        yield own


@pytest.fixture
def gateway(own: Running) -> Gateway:
    return Gateway(own.http)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


async def put(gateway: Gateway, url: str, path: str = URL, **more: Any) -> dict[str, Any]:
    answer = await gateway.post(path, json={"url": url, **more})
    assert answer.status == 200, answer.body
    return dict(answer.body)


async def agent(gateway: Gateway, **options: Any) -> str:
    answer = await gateway.post("/v1/agents", json={"name": "Anna"}, **options)
    return str(answer.body["id"])


def database_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("test.db*"))


class TestSetting:
    async def test_set_shown_and_removed(self, gateway: Gateway) -> None:
        assert (await gateway.get(URL)).body is None
        made = await put(gateway, HOOK)
        assert {name: made[name] for name in ("url", "status", "contextLimit", "timeout")} == {
            "url": HOOK,
            "status": "active",
            "contextLimit": 10,
            "timeout": 30,
        }
        assert made["secret"].startswith("whsec_")
        assert (await gateway.get(URL)).body == made
        assert (await gateway.request("DELETE", URL)).body == {"success": True}
        assert (await gateway.get(URL)).body is None
        again = await gateway.request("DELETE", URL)
        assert (again.status, again.body["error"]["code"]) == (404, "WEBHOOK_NOT_FOUND")

    async def test_every_post_makes_a_new_secret(self, gateway: Gateway) -> None:
        first = await put(gateway, HOOK)
        second = await put(gateway, HOOK, contextLimit=0, timeout=120)
        assert second["id"] == first["id"]
        assert second["secret"] != first["secret"]
        assert (second["contextLimit"], second["timeout"]) == (0, 120)
        assert (await gateway.get(URL)).body == second

    async def test_a_repeated_post_has_the_same_secret(
        self, gateway: Gateway, tmp_path: Path
    ) -> None:
        options = {"json": {"url": HOOK}, "headers": {**ACME, "Idempotency-Key": "once"}}
        first = await gateway.post(URL, **options)
        again = await gateway.post(URL, **options)
        assert again.body == first.body
        assert again.headers["Idempotent-Replayed"] == "true"
        stored = database_bytes(tmp_path)
        assert first.body["secret"].encode() not in stored

    async def test_an_agents_own(self, gateway: Gateway) -> None:
        path = f"/v1/agents/{await agent(gateway)}/webhook"
        project = await put(gateway, HOOK)
        assert (await gateway.get(path)).body is None
        made = await put(gateway, HOOK, path)
        assert made["id"] != project["id"]
        assert (await gateway.get(path)).body == made
        assert (await gateway.get(URL)).body == project
        assert (await gateway.request("DELETE", path)).status == 200
        assert (await gateway.get(path)).body is None

    async def test_an_agent_that_is_a_file_has_one_for_each_tenant(self, gateway: Gateway) -> None:
        path = "/v1/agents/greeter/webhook"
        made = await put(gateway, HOOK, path)
        assert (await gateway.get(path, headers=RIVAL)).body is None
        assert (await gateway.get(path)).body == made

    async def test_tenants_do_not_meet(self, gateway: Gateway) -> None:
        await put(gateway, HOOK)
        theirs = await agent(gateway)
        await put(gateway, HOOK, f"/v1/agents/{theirs}/webhook")
        assert (await gateway.get(URL, headers=RIVAL)).body is None
        for method, path in [
            ("GET", "webhook"),
            ("DELETE", "webhook"),
            ("POST", "webhook"),
            ("POST", "webhook/test"),
            ("GET", "webhook/deliveries"),
        ]:
            body = {"url": HOOK} if (method, path) == ("POST", "webhook") else None
            answers = [
                await gateway.request(method, f"/v1/agents/{id_}/{path}", headers=RIVAL, json=body)
                for id_ in (theirs, "agt_000000000000000000000000")
            ]
            assert [answer.status for answer in answers] == [404, 404]
            assert answers[0].body == answers[1].body

    async def test_an_operator_sets_it_for_the_agents_owner(self, gateway: Gateway) -> None:
        path = f"/v1/agents/{await agent(gateway)}/webhook"
        answer = await gateway.post(path, json={"url": HOOK}, headers=operator())
        assert (await gateway.get(path)).body == answer.body

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "url"),
            ({"url": None}, "url"),
            ({"url": 7}, "url"),
            ({"url": ""}, "url"),
            ({"url": "example.com"}, "url"),
            ({"url": "ftp://example.com/"}, "url"),
            ({"url": "https://example.com/\r\nX: y"}, "url"),
            ({"url": "https://example.com/" + "x" * 2048}, "url"),
            ({"url": HOOK, "contextLimit": 51}, "contextLimit"),
            ({"url": HOOK, "contextLimit": -1}, "contextLimit"),
            ({"url": HOOK, "contextLimit": "10"}, "contextLimit"),
            ({"url": HOOK, "timeout": 4}, "timeout"),
            ({"url": HOOK, "timeout": 121}, "timeout"),
            ({"url": HOOK, "timeout": 30.5}, "timeout"),
            ({"url": HOOK, "secret": "whsec_mine"}, "secret"),
        ],
    )
    async def test_refused(self, gateway: Gateway, body: dict[str, Any], field: str) -> None:
        answer = await gateway.post(URL, json=body)
        assert answer.status == 422
        assert [each["field"] for each in answer.body["error"]["details"]] == [field]

    async def test_private_addresses_are_refused(self, tmp_path: Path) -> None:
        async with running(settings_in(tmp_path)) as own:
            gateway = Gateway(own.http)
            for url in ("http://127.0.0.1/", "http://localhost:80/", "http://2130706433/"):
                answer = await gateway.post(URL, json={"url": url})
                assert answer.status == 422
                assert answer.body["error"]["details"] == [
                    {
                        "field": "url",
                        "message": "must not lead to a private address",
                        "type": "url_refused",
                    }
                ]
            # A name is resolved for each delivery; a private address is refused then.
            await put(gateway, "http://localhost.localdomain:9/")
            tried = await gateway.post(f"{URL}/test", json={})
            assert tried.body["success"] is False
            assert tried.body["delivery"]["attemptCount"] == 1

    async def test_of_concurrent_posts_the_last_secret_counts(self, gateway: Gateway) -> None:
        made = await asyncio.gather(*(put(gateway, HOOK) for _ in range(10)))
        assert len({each["secret"] for each in made}) == 10
        assert len({each["id"] for each in made}) == 1
        assert (await gateway.get(URL)).body in made

    async def test_a_secret_is_encrypted_at_rest_and_sealed_anew(self, tmp_path: Path) -> None:
        old, new = (Fernet.generate_key().decode() for _ in range(2))
        request = {"json": {"url": HOOK}, "headers": {**ACME, "Idempotency-Key": "once"}}
        async with running(settings_in(tmp_path, secrets_key=old)) as own:
            made = (await Gateway(own.http).post(URL, **request)).body
        stored = database_bytes(tmp_path)
        assert made["secret"].encode() not in stored
        async with running(settings_in(tmp_path, secrets_key=new)) as own:
            gateway = Gateway(own.http)
            for answer in (await gateway.get(URL), await gateway.post(URL, **request)):
                assert (answer.status, answer.body["error"]["code"]) == (500, "SECRET_UNREADABLE")
        assert await reseal(settings_in(tmp_path, secrets_key=f"{new},{old}")) == 1
        async with running(settings_in(tmp_path, secrets_key=new)) as own:
            assert (await Gateway(own.http).get(URL)).body == made


class TestTrying:
    async def test_accepted(self, gateway: Gateway, receiver: Receiver) -> None:
        hook = await put(gateway, f"{receiver.url}/hook")
        answer = await gateway.post(
            f"{URL}/test", json={"message": "Hallo", "from": "+15105550123"}
        )
        assert answer.body["success"] is True
        [got] = receiver.received
        event = construct_event(
            got.raw,
            got.headers["X-Webhook-Signature"],
            hook["secret"],
            got.headers["X-Webhook-Timestamp"],
        )
        assert (event.event, event.test) == ("agent.message", True)
        assert (event.data.transcript, event.data.from_number) == ("Hallo", "+15105550123")
        delivery = answer.body["delivery"]
        assert delivery["id"] == got.id
        assert (delivery["status"], delivery["httpStatus"], delivery["responseBody"]) == (
            "success",
            200,
            "ok",
        )
        listed = await gateway.get(f"{URL}/deliveries")
        assert listed.body["items"] == [delivery]

    async def test_without_a_body(self, gateway: Gateway, receiver: Receiver) -> None:
        await put(gateway, receiver.url)
        assert (await gateway.post(f"{URL}/test")).body["success"] is True

    async def test_an_agent_in_it(self, gateway: Gateway, receiver: Receiver) -> None:
        await put(gateway, receiver.url)
        named = await agent(gateway)
        answer = await gateway.post(f"{URL}/test?agentId={named}", json={})
        assert answer.status == 200
        assert receiver.received[0].body["agentId"] == named
        unknown = await gateway.post(f"{URL}/test?agentId=agt_none", json={})
        assert (unknown.status, unknown.body["error"]["code"]) == (404, "AGENT_NOT_FOUND")

    async def test_none_set(self, gateway: Gateway) -> None:
        for path in (URL, f"/v1/agents/{await agent(gateway)}/webhook"):
            answer = await gateway.post(f"{path}/test", json={})
            assert (answer.status, answer.body["error"]["code"]) == (404, "WEBHOOK_NOT_FOUND")

    @pytest.mark.parametrize(
        ("status", "headers", "error"),
        [
            (500, {}, "The endpoint failed"),
            (404, {}, "The endpoint refused it"),
            (302, {"Location": "/elsewhere"}, "Redirects are not followed"),
        ],
    )
    async def test_refused_once(
        self,
        gateway: Gateway,
        receiver: Receiver,
        status: int,
        headers: dict[str, str],
        error: str,
    ) -> None:
        async def refuse(_received: Received) -> web.StreamResponse:
            return web.Response(status=status, headers=headers, body=b"no\0way \xff" + b"x" * 9_000)

        receiver.answers["/hook"] = refuse
        await put(gateway, f"{receiver.url}/hook")
        answer = await gateway.post(f"{URL}/test", json={})
        delivery = answer.body["delivery"]
        assert answer.body["success"] is False
        assert (delivery["status"], delivery["httpStatus"], delivery["errorMessage"]) == (
            "failed",
            status,
            error,
        )
        assert delivery["responseBody"].startswith("no\ufffdway \ufffdxxx")
        assert len(delivery["responseBody"]) == 1000
        assert (delivery["attemptCount"], delivery["nextRetryAt"]) == (1, None)
        assert len(receiver.received) == 1

    async def test_nobody_there(self, gateway: Gateway) -> None:
        await put(gateway, "http://127.0.0.1:9/")
        answer = await gateway.post(f"{URL}/test", json={})
        assert answer.body["delivery"]["errorMessage"] == "No connection"


ANNA = Agent(id="agt_anna", version=1, config=AgentConfig(name="Anna"))


async def talk(own: Running, call_id: str) -> None:
    turn = Turn(id="t1", transcript="When do you open", response="At nine", start_ms=100)
    over = CallEvent(type="call.ended", data=ended("completed", "user_hangup"))
    told = [
        CallEvent(type="call.ringing"),
        CallEvent(type="call.answered"),
        CallEvent(type="turn", data=turn.wire()),
        over,
    ]
    await own.store.append(call_id, told, "worker")


class TestEvents:
    async def test_a_call_from_begin_to_end(
        self, own: Running, gateway: Gateway, receiver: Receiver
    ) -> None:
        hook = await put(gateway, receiver.url)
        call = await own.call(agent=ANNA)
        await talk(own, call.id)
        await own.store.append(call.id, [CallEvent(type="call.ringing")], "livekit")  # late
        await receiver.until(lambda: len(receiver.received) == 4)
        assert [(got.body["event"], got.body["data"]["status"]) for got in receiver.received] == [
            ("call.started", "queued"),
            ("call.ringing", "ringing"),
            ("call.answered", "in-progress"),
            ("agent.call_ended", "completed"),
        ]
        last = receiver.received[-1]
        event = construct_event(
            last.raw,
            last.headers["X-Webhook-Signature"],
            hook["secret"],
            last.headers["X-Webhook-Timestamp"],
        )
        assert (event.agent_id, event.data.call_id) == ("agt_anna", call.id)
        assert (event.data.from_number, event.data.to_number) == ("+15105550123", "+15551234567")
        assert [(item.content, item.direction) for item in event.recent_history] == [
            ("When do you open", "inbound"),
            ("At nine", "outbound"),
        ]
        shown = (await gateway.get(f"/v1/calls/{call.id}")).body
        del shown["latency"]
        assert event.data.raw.items() >= shown.items()
        assert last.headers["X-Webhook-Event"] == "agent.call_ended"

    async def test_the_agents_overrides_the_projects(
        self, own: Running, gateway: Gateway, receiver: Receiver
    ) -> None:
        named = await agent(gateway)
        await put(gateway, f"{receiver.url}/project")
        await put(gateway, f"{receiver.url}/agent", f"/v1/agents/{named}/webhook")
        agents = await own.call(agent=ANNA.model_copy(update={"id": named}))
        others = await own.call(agent=ANNA)
        nobodys = await own.call(agent=None)
        rivals = await own.call(auth_id="rival", agent=None)
        await receiver.until(lambda: len(receiver.received) == 3)
        at = {
            path: {got.body["data"]["id"] for got in receiver.at(path)}
            for path in ("/project", "/agent")
        }
        assert at == {"/project": {others.id, nobodys.id}, "/agent": {agents.id}}
        listed = await gateway.get(f"/v1/agents/{named}/webhook/deliveries?limit=50")
        assert [each["eventType"] for each in listed.body] == ["call.started"]
        found = await gateway.get(f"{URL}/deliveries")
        assert (found.body["total"], found.body["hasMore"]) == (3, False)
        assert (await own.app[DELIVERIES].page("rival", limit=9, offset=0)) == ([], 0)
        assert rivals.id

    async def test_no_history_where_none_is_wanted(
        self, own: Running, gateway: Gateway, receiver: Receiver
    ) -> None:
        await put(gateway, receiver.url, contextLimit=0)
        await talk(own, (await own.call()).id)
        await receiver.until(lambda: len(receiver.received) == 4)
        assert receiver.received[-1].body["recentHistory"] == []

    async def test_a_refusal_is_two_events(
        self, own: Running, gateway: Gateway, receiver: Receiver
    ) -> None:
        """A call that ends as soon as it is stored is reported as started and as ended."""
        await put(gateway, receiver.url)
        call = await own.call()
        over = CallEvent(type="call.ended", data=ended("failed", "dial_failed"))
        await own.store.append(call.id, [over], "gateway")
        await receiver.until(lambda: len(receiver.received) == 2)
        assert receiver.received[-1].body["data"]["disconnectionReason"] == "dial_failed"


class TestDeliveries:
    async def test_replayed_under_the_same_id(
        self, own: Running, gateway: Gateway, receiver: Receiver
    ) -> None:
        await put(gateway, receiver.url)
        await own.call()
        await receiver.until(lambda: len(receiver.received) == 1)
        first = receiver.received[0]
        path = f"{URL}/deliveries/{first.id}/replay"
        await delivered(gateway, first.id)
        answer = await gateway.post(path)
        assert (answer.status, answer.body["status"]) == (202, "pending")
        await receiver.until(lambda: len(receiver.received) == 2)
        second = receiver.received[1]
        assert (second.id, second.raw) == (first.id, first.raw)
        assert (await delivered(gateway, first.id))["attemptCount"] == 2
        await gateway.request("DELETE", URL)
        gone = await gateway.post(path)
        assert (gone.status, gone.body["error"]["code"]) == (409, "NO_WEBHOOK")

    async def test_one_in_progress_or_unknown_or_anothers(
        self, own: Running, gateway: Gateway
    ) -> None:
        await put(gateway, "http://127.0.0.1:9/")
        await own.call()
        [delivery] = (await gateway.get(f"{URL}/deliveries")).body["items"]
        path = f"{URL}/deliveries/{delivery['id']}/replay"
        busy = await gateway.post(path)
        assert (busy.status, busy.body["error"]["code"]) == (409, "DELIVERY_PENDING")
        theirs = await gateway.post(path, headers=RIVAL)
        unknown = await gateway.post(f"{URL}/deliveries/msg_none/replay", headers=RIVAL)
        assert (theirs.status, theirs.body) == (404, unknown.body)

    async def test_counted(self, own: Running, gateway: Gateway, receiver: Receiver) -> None:
        empty = (await gateway.get(f"{URL}/deliveries/stats")).body
        assert (empty["total"], empty["successRate"], empty["byHour"]) == (0, 0.0, [])
        await put(gateway, receiver.url)
        await talk(own, (await own.call()).id)
        await receiver.until(lambda: len(receiver.received) == 4)
        await delivered(gateway, receiver.received[-1].id)
        await put(gateway, "http://127.0.0.1:9/")
        await gateway.post(f"{URL}/test", json={})
        stats = (await gateway.get(f"{URL}/deliveries/stats?hours=1")).body
        assert {name: stats[name] for name in ("total", "success", "failed", "pending")} == {
            "total": 5,
            "success": 4,
            "failed": 1,
            "pending": 0,
        }
        assert stats["successRate"] == 0.8
        assert stats["byEventType"]["agent.message"]["failed"] == 1
        assert stats["byEventType"]["call.started"]["success"] == 1
        assert sum(hour["total"] for hour in stats["byHour"]) == 5
        everything = (await gateway.get(f"{URL}/deliveries/all-time")).body
        assert everything == {"total": 5, "success": 4, "failed": 1, "successRate": 0.8}
        rival = (await gateway.get(f"{URL}/deliveries/stats", headers=RIVAL)).body
        assert rival["total"] == 0

    async def test_pages(self, own: Running, gateway: Gateway, receiver: Receiver) -> None:
        await put(gateway, receiver.url)
        for _ in range(3):
            await own.call()
        page = (await gateway.get(f"{URL}/deliveries?limit=2&offset=0&hours=1")).body
        assert (len(page["items"]), page["total"], page["hasMore"]) == (2, 3, True)
        rest = (await gateway.get(f"{URL}/deliveries?limit=2&offset=2")).body
        assert (len(rest["items"]), rest["hasMore"]) == (1, False)
        for query in ("limit=0", "limit=101", "offset=-1", "hours=0", "hours=721", "what=1"):
            assert (await gateway.get(f"{URL}/deliveries?{query}")).status == 422


async def delivered(gateway: Gateway, delivery_id: str) -> dict[str, Any]:
    """Return the delivery once it is over; the outbox records it after the receiver's answer."""
    async with asyncio.timeout(10):
        while True:
            items = (await gateway.get(f"{URL}/deliveries")).body["items"]
            [found] = [each for each in items if each["id"] == delivery_id]
            if found["status"] != "pending":
                return dict(found)
            await asyncio.sleep(0.02)


class TestClient:
    """The public ``agentphone`` library for Python, unchanged."""

    async def test_webhooks(self, own: Running, gateway: Gateway, receiver: Receiver) -> None:
        named = await agent(gateway)
        base_url = str(own.http._base_url)
        with closing(AgentPhone(SECRETS["acme"], base_url=base_url)) as client:
            await asyncio.to_thread(self.use, client, named, receiver.url)

    def use(self, client: AgentPhone, agent_id: str, url: str) -> None:
        assert client.webhooks.get() is None
        hook = client.webhooks.set(url, context_limit=5, timeout=20)
        assert client.webhooks.get() == hook
        assert (hook.context_limit, hook.timeout) == (5, 20)
        assert client.webhooks.test(message="Hallo")["success"] is True
        [delivery] = client.webhooks.list_deliveries(hours=1)
        assert (delivery.status, delivery.http_status) == ("success", 200)
        stats = client.webhooks.get_delivery_stats()
        assert (stats.total, stats.success_rate) == (1, 1.0)
        assert client.webhooks.get_all_time_stats()["total"] == 1
        assert client.webhooks.delete() == {"success": True}
        assert client.agents.get_webhook(agent_id) is None
        own_hook = client.agents.set_webhook(agent_id, url)
        assert client.agents.get_webhook(agent_id) == own_hook
        assert client.agents.test_webhook(agent_id)["success"] is True
        [delivery] = client.agents.list_webhook_deliveries(agent_id)
        assert delivery.event_type == "agent.message"
        assert client.agents.delete_webhook(agent_id) == {"success": True}
        with pytest.raises(NotFoundError):
            client.agents.get_webhook("agt_none")
