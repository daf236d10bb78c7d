"""/v1/agents over HTTP: the tools and MCP servers of an agent, and the secrets in them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from redis.asyncio import Redis
from sqlalchemy import Text, cast, select

from core.models import AgentConfig, CallEvent, new_id
from gateway.keys import AGENTS, DATABASE, STORE
from gateway.store.agent_secrets import MARK, AgentSecrets
from gateway.store.calls import NewCall
from gateway.store.credentials import Unreadable, Vault
from gateway.store.database import Database
from gateway.store.reseal import reseal
from gateway.store.tables import AgentRow, AgentVersionRow, CallRow, IdempotencyRow
from tests.support.agents_rig import Api, api, gateway
from tests.support.inprocess import running, settings_in
from tests.support.redis_server import redis_server

pytestmark = pytest.mark.store

__all__ = ["api", "gateway"]

SECRET = "s3cret-of-the-book"
TOOL = {"name": "look-up", "description": "Finds it", "url": "https://example.com/find?q=1"}
WITH_HEADERS = {**TOOL, "headers": {"Authorization": f"Bearer {SECRET}", "X-Shop": "7"}}
SERVER = {"url": "https://mcp.example.com/mcp", "headers": {"X-Api-Key": SECRET}}


class TestShape:
    async def test_a_tool_is_shown_as_it_was_given(self, api: Api) -> None:
        tool = {
            **WITH_HEADERS,
            "method": "GET",
            "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
            "timeoutMs": 1000,
            "speakDuringExecution": True,
            "executionMessage": "One moment.",
        }
        server = {**SERVER, "timeoutMs": 2000, "allowedTools": ["find", "a.b/c"]}
        made = await api.made(customTools=[tool], mcpServers=[server])
        assert (made["customTools"], made["mcpServers"]) == ([tool], [server])
        assert (await api.ask("GET", f"/{made['id']}")).body == made
        own = {"id", "version", "numbers", "createdAt", "updatedAt"}
        again = {name: value for name, value in made.items() if name not in own}
        assert (await api.ask("PATCH", f"/{made['id']}", again)).body == made

    async def test_null_is_the_default(self, api: Api) -> None:
        nulls = {"headers": None, "timeoutMs": None, "allowedTools": None}
        made = await api.made(
            customTools=[{**TOOL, "headers": {"A": None, "B": "b"}, "executionMessage": None}],
            mcpServers=[{"url": SERVER["url"], **nulls}],
        )
        assert made["customTools"][0]["headers"] == {"B": "b"}
        expected = {"headers": {}, "timeoutMs": 10_000, "allowedTools": None}
        assert made["mcpServers"] == [{"url": SERVER["url"], **expected}]

    @pytest.mark.parametrize(
        ("fields", "faulty"),
        [
            ({"customTools": [{**TOOL, "headers": headers}]}, field)
            for headers, field in [
                ({"Host": "x"}, "customTools.0.headers"),
                ({"content-LENGTH": "1"}, "customTools.0.headers"),
                ({"X-Call-Id": "call_1"}, "customTools.0.headers"),
                ({"Transfer-Encoding": "chunked"}, "customTools.0.headers"),
                ({"Connection": "close"}, "customTools.0.headers"),
                ({"A": "b", "a": "c"}, "customTools.0.headers"),
                ({"A": "b\r\nX: y"}, "customTools.0.headers"),
                ({"A": " b"}, "customTools.0.headers"),
                ({"A": "b\t"}, "customTools.0.headers"),
                ({"A": "ü"}, "customTools.0.headers"),
                ({"A": "x" * 4097}, "customTools.0.headers"),
                ({"A b": "x"}, "customTools.0.headers"),
                ({"A:": "x"}, "customTools.0.headers"),
                ({"": "x"}, "customTools.0.headers"),
                ({"x" * 129: "x"}, "customTools.0.headers"),
                ({f"H{number}": "x" for number in range(21)}, "customTools.0.headers"),
                ({"A": 7}, "customTools.0.headers.A"),
                (["A"], "customTools.0.headers"),
            ]
        ]
        + [
            ({"customTools": [TOOL, TOOL]}, "customTools"),
            ({"customTools": [{**TOOL, "executionMessage": "x" * 501}]}, "executionMessage"),
            ({"customTools": [{**TOOL, "speakDuringExecution": 1}]}, "speakDuringExecution"),
            ({"mcpServers": [SERVER] * 6}, "mcpServers"),
            ({"mcpServers": [{}]}, "mcpServers.0.url"),
            ({"mcpServers": [{"url": "stdio://x"}]}, "mcpServers.0.url"),
            ({"mcpServers": [{**SERVER, "headers": {"Host": "x"}}]}, "mcpServers.0.headers"),
            ({"mcpServers": [{**SERVER, "timeoutMs": 99}]}, "mcpServers.0.timeoutMs"),
            ({"mcpServers": [{**SERVER, "allowedTools": ["a b"]}]}, "mcpServers.0.allowedTools"),
            ({"mcpServers": [{**SERVER, "command": "sh"}]}, "mcpServers.0.command"),
        ],
    )
    async def test_a_field_that_is_wrong_is_named(
        self, api: Api, fields: dict[str, Any], faulty: str
    ) -> None:
        made = await api.made()
        for method, path in (("POST", ""), ("PATCH", f"/{made['id']}")):
            answer = await api.ask(method, path, {"name": "One", **fields})
            assert (answer.status, answer.code) == (422, "VALIDATION_ERROR")
            assert all(faulty in field for field in answer.fields), answer.fields
            assert "X: y" not in str(answer.body)

    @pytest.mark.parametrize(
        "schema",
        [
            {"properties": {"a": {"type": "strin"}}},
            {"properties": {"a": {"pattern": "("}}},
            {"properties": {"a": {"pattern": "(" * 3000 + ")" * 3000}}},
            {"properties": {"a": {"minimum": "1"}}},
            {"required": "a"},
            {"properties": {"a": {"$ref": "https://example.com/schema.json"}}},
            {"properties": {"a": {"$ref": "file:///etc/passwd"}}},
            {"properties": {"a": {"$ref": "#/$defs/missing"}}},
            {"$ref": "#"},
            {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}},
            {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
            {"oneOf": []},
            {"allOf": [{}]},
            {"enum": [{}]},
            {"not": {}},
            {"$schema": 7},
            {"description": "x" * 20_000},
        ],
    )
    async def test_a_schema_that_is_none_is_refused(self, api: Api, schema: dict[str, Any]) -> None:
        made = await api.made()
        tools = [TOOL, {**TOOL, "name": "other", "parameters": {"type": "object", **schema}}]
        for method, path in (("POST", ""), ("PATCH", f"/{made['id']}")):
            answer = await api.ask(method, path, {"name": "One", "customTools": tools})
            assert (answer.status, answer.fields) == (422, ["customTools.1.parameters"])

    @pytest.mark.parametrize(
        "url", ["http://127.0.0.1:8000/", "http://[::1]/", "http://2130706433/", "http://localhost"]
    )
    async def test_a_private_address_is_refused(self, api: Api, url: str) -> None:
        for fields, place in (
            ({"customTools": [{**TOOL, "url": url}]}, "customTools.0.url"),
            ({"mcpServers": [{"url": url}]}, "mcpServers.0.url"),
        ):
            answer = await api.ask("POST", body={"name": "One", **fields})
            assert (answer.status, answer.fields) == (422, [place])

    async def test_unless_private_ones_are_allowed(self, tmp_path: Path) -> None:
        async with running(settings_in(tmp_path, webhook_allow_private=True)) as gateway:
            url = "http://127.0.0.1:8000/mcp"
            await Api(gateway).made(customTools=[{**TOOL, "url": url}], mcpServers=[{"url": url}])


async def kept(database: Database) -> str:
    """Return all that the database holds of agents, calls and stored answers."""
    columns = (
        AgentRow.config,
        AgentVersionRow.config,
        CallRow.agent,
        IdempotencyRow.body,
    )
    async with database.read() as connection:
        found = [(await connection.scalars(select(cast(each, Text)))).all() for each in columns]
    return "\n".join(str(text) for texts in found for text in texts)


class TestSecrets:
    async def test_nothing_is_kept_in_the_open(self, api: Api, tmp_path: Path) -> None:
        keyed = {**api.headers, "Idempotency-Key": "make"}
        body = {"name": "One", "customTools": [WITH_HEADERS], "mcpServers": [SERVER]}
        made = await api.ask("POST", "", body, keyed)
        again = await api.ask("POST", "", body, keyed)
        assert (made.status, made.body) == (200, again.body)
        assert again.headers["Idempotent-Replayed"] == "true"
        path = f"/{made.body['id']}"
        await api.ask("PATCH", path, {"name": "Two"})
        await api.ask("POST", f"{path}/rollback", {"version": 1})
        agent = await api.gateway.app[AGENTS].get(api.scope, made.body["id"])
        assert agent is not None and agent.config.custom_tools[0].headers["X-Shop"] == "7"
        store = api.gateway.app[STORE]
        new = NewCall(
            id=new_id("call"),
            auth_id=api.tenant,
            direction="outbound",
            room_name=new_id("room"),
            participant_identity="phone",
            from_number=None,
            to_number=None,
            max_duration_ms=1000,
            agent=agent,
            metadata={},
        )
        await store.insert_call(new, CallEvent(type="call.queued"))
        found = await store.call_and_agent(new.id)
        assert found is not None and found[1] == agent
        text = await kept(api.gateway.app[DATABASE])
        assert text.count(MARK) >= 2 * 5
        assert SECRET not in text
        versions = (await api.ask("GET", f"{path}/versions")).body["data"]
        assert [each["customTools"] for each in versions] == [made.body["customTools"]] * 3
        listed = (await api.ask("GET")).body["data"][0]
        assert listed["mcpServers"] == made.body["mcpServers"]

    async def test_a_change_of_nothing_makes_no_version(self, api: Api) -> None:
        made = await api.made(customTools=[WITH_HEADERS])
        answer = await api.ask("PATCH", f"/{made['id']}", {"customTools": [WITH_HEADERS]})
        assert answer.body == made

    async def test_nor_in_redis(self, tmp_path: Path) -> None:
        async with redis_server(tmp_path) as port:
            url = f"redis://127.0.0.1:{port}"
            settings = settings_in(tmp_path, cache_url=url)
            async with running(settings) as gateway:
                own = Api(gateway)
                made = await own.made(customTools=[WITH_HEADERS], voiceMode="hosted")
                for _ in range(2):
                    agent = await gateway.app[AGENTS].get(own.scope, made["id"])
                    assert agent is not None
                    assert agent.config.custom_tools[0].headers == WITH_HEADERS["headers"]
            text = b"".join([value async for value in values(url)])
            assert MARK.encode() in text
            assert SECRET.encode() not in text

    async def test_nor_does_a_configuration_show_them(self) -> None:
        config = AgentConfig.model_validate({"name": "x", "customTools": [WITH_HEADERS]})
        assert SECRET not in repr(config) + str(config)

    async def test_a_key_can_be_changed_and_lost(self, tmp_path: Path) -> None:
        old, new = (Fernet.generate_key().decode() for _ in range(2))
        async with running(settings_in(tmp_path, secrets_key=old)) as gateway:
            own = Api(gateway)
            made = await own.made(customTools=[WITH_HEADERS], voiceMode="hosted")
            await own.ask("PATCH", f"/{made['id']}", {"name": "Two"})
            bare = await own.made(name="Bare", voiceMode="hosted")
        assert await reseal(settings_in(tmp_path, secrets_key=f"{new},{old}")) == 3
        async with running(settings_in(tmp_path, secrets_key=new)) as gateway:
            own.gateway = gateway
            shown = (await own.ask("GET", f"/{made['id']}")).body
            assert shown["customTools"] == made["customTools"]
            versions = (await own.ask("GET", f"/{made['id']}/versions")).body["data"]
            assert len(versions) == 2
        async with running(settings_in(tmp_path, secrets_key=old)) as gateway:
            own.gateway = gateway
            for path in ("", f"/{made['id']}", f"/{made['id']}/versions"):
                answer = await own.ask("GET", path)
                assert (answer.status, answer.code) == (500, "CREDENTIAL_UNREADABLE")
            assert (await own.ask("GET", f"/{bare['id']}")).body == bare
            assert (await own.ask("DELETE", f"/{made['id']}")).status == 200
            assert (await own.ask("GET")).status == 200
        with pytest.raises(ValueError, match="headers cannot be kept"):
            AgentSecrets(None).seal({"customTools": [WITH_HEADERS]})

    async def test_sealed_with_one_key_is_not_opened_with_another(self) -> None:
        one, other = (AgentSecrets(Vault([Fernet.generate_key().decode()])) for _ in range(2))
        config = {"name": "x", "customTools": [WITH_HEADERS, TOOL], "mcpServers": [SERVER]}
        sealed = one.seal(config)
        assert SECRET not in json.dumps(sealed)
        assert one.open(sealed) == config
        with pytest.raises(Unreadable):
            other.open(sealed)


async def values(url: str) -> AsyncIterator[bytes]:
    """Yield all values in a Redis."""
    async with Redis.from_url(url) as client:
        async for key in client.scan_iter():
            yield str(await client.get(key)).encode()
