"""/v1/agents over HTTP: versions, lists, deletion, tenants, and several gateways."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from agentphone.models import Agent as ClientAgent  # type: ignore[import-untyped]
from agentphone.models import AgentList as ClientAgentList

from core.models import new_id
from gateway.keys import AGENTS, NUMBER_LOOKUP
from gateway.store.database import Scope
from tests.conftest import RIVAL, operator
from tests.support.agents_rig import Api, api, gateway
from tests.support.inprocess import running, settings_in
from tests.support.redis_server import redis_server

pytestmark = pytest.mark.store

__all__ = ["api", "gateway"]

TOOL = {"name": "look-up", "description": "Finds it", "url": "https://example.com/find?q=1"}


class TestVersions:
    async def test_they_are_listed_newest_first_and_never_change(self, api: Api) -> None:
        made = await api.made(name="v1")
        path = f"/{made['id']}"
        second = (await api.ask("PATCH", path, {"name": "v2", "voice": "v"})).body
        listed = (await api.ask("GET", f"{path}/versions")).body
        own = {"id", "numbers", "updatedAt"}

        def version(agent: dict[str, Any]) -> dict[str, Any]:
            shown = {name: value for name, value in agent.items() if name not in own}
            return {**shown, "createdAt": agent["updatedAt"]}

        expected = [version(second), version(made)]
        assert listed == {"data": expected, "hasMore": False, "total": 2}
        await api.ask("PATCH", path, {"name": "v3"})
        await api.ask("POST", f"{path}/rollback", {"version": 1})
        page = (await api.ask("GET", f"{path}/versions?limit=2&offset=2")).body
        assert page == {"data": expected, "hasMore": False, "total": 4}

    async def test_a_rollback_is_a_new_version(self, api: Api) -> None:
        made = await api.made(customTools=[TOOL])
        path = f"/{made['id']}"
        await api.ask("PATCH", path, {"name": "Two", "customTools": []})
        back = await api.ask("POST", f"{path}/rollback", {"version": 1})
        assert back.status == 200
        assert back.body == {**made, "version": 3, "updatedAt": back.body["updatedAt"]}
        assert (await api.ask("GET", path)).body == back.body
        agent = await api.gateway.app[AGENTS].get(api.scope, made["id"])
        assert agent is not None and agent.version == 3
        again = await api.ask("POST", f"{path}/rollback", {"version": 3})
        assert (again.status, again.body["version"]) == (200, 3)

    @pytest.mark.parametrize("version", [2, 999, 2**31 - 1])
    async def test_an_unknown_version_is_not_found(self, api: Api, version: int) -> None:
        made = await api.made()
        answer = await api.ask("POST", f"/{made['id']}/rollback", {"version": version})
        assert (answer.status, answer.code) == (404, "VERSION_NOT_FOUND")
        assert (await api.ask("GET", f"/{made['id']}")).body == made

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"version": None},
            {"version": 0},
            {"version": -1},
            {"version": 2**31},
            {"version": 10**40},
            {"version": "1"},
            {"version": 1.0},
            {"version": True},
            {"version": [1]},
            {"version": 1, "force": True},
        ],
    )
    async def test_what_is_no_version_is_refused(self, api: Api, body: dict[str, Any]) -> None:
        made = await api.made()
        answer = await api.ask("POST", f"/{made['id']}/rollback", body)
        assert (answer.status, answer.code) == (422, "VALIDATION_ERROR")

    async def test_one_rollback_per_idempotency_key(self, api: Api) -> None:
        made = await api.made()
        path = f"/{made['id']}"
        await api.ask("PATCH", path, {"name": "Two"})
        keyed = {**api.headers, "Idempotency-Key": "back"}
        first = await api.ask("POST", f"{path}/rollback", {"version": 1}, keyed)
        await api.ask("PATCH", path, {"name": "Three"})
        second = await api.ask("POST", f"{path}/rollback", {"version": 1}, keyed)
        assert second.body == first.body
        assert (await api.ask("GET", path)).body["name"] == "Three"


class TestList:
    async def test_it_is_paged_newest_first(self, api: Api) -> None:
        made = [await api.made(name=str(number)) for number in range(5)]
        newest = sorted(made, key=lambda one: (one["createdAt"], one["id"]), reverse=True)
        assert (await api.ask("GET")).body == {"data": newest, "hasMore": False, "total": 5}
        page = (await api.ask("GET", "?limit=2&offset=2")).body
        assert page == {"data": newest[2:4], "hasMore": True, "total": 5}
        assert (await api.ask("GET", "?offset=9")).body == {
            "data": [],
            "hasMore": False,
            "total": 5,
        }

    @pytest.mark.parametrize(
        ("query", "field"),
        [("limit=101", "limit"), ("limit=0", "limit"), ("offset=-1", "offset"), ("page=2", "page")],
    )
    async def test_a_wrong_page_is_refused(self, api: Api, query: str, field: str) -> None:
        made = await api.made()
        for path in ("", f"/{made['id']}/versions"):
            answer = await api.ask("GET", f"{path}?{query}")
            assert (answer.status, answer.fields) == (422, [field])

    async def test_numbers_are_shown_with_their_agent(self, api: Api) -> None:
        one, other = await api.made(), await api.made()
        number = await api.number(one["id"])
        shown = {
            "id": number.id,
            "phoneNumber": number.phone_number,
            "status": "active",
            "type": "voice",
        }
        listed = (await api.ask("GET")).body["data"]
        assert {agent["id"]: agent["numbers"] for agent in listed} == {
            one["id"]: [shown],
            other["id"]: [],
        }
        assert (await api.ask("GET", f"/{one['id']}")).body["numbers"] == [shown]
        patched = await api.ask("PATCH", f"/{one['id']}", {"name": "Two"})
        assert patched.body["numbers"] == [shown]

    async def test_files_are_not_listed(self, api: Api) -> None:
        assert (await api.ask("GET")).body["total"] == 0
        assert (await api.ask("GET", "/greeter")).code == "AGENT_NOT_FOUND"


class TestDelete:
    async def test_its_numbers_are_unbound_and_its_calls_stay(self, api: Api) -> None:
        made = await api.made(voiceMode="hosted")
        number = await api.number(made["id"])
        lookup = api.gateway.app[NUMBER_LOOKUP]
        await lookup.warm(number.id)
        agent = await api.gateway.app[AGENTS].get(api.scope, made["id"])
        call = await api.gateway.call(auth_id=api.tenant, agent=agent)
        gone = await api.ask("DELETE", f"/{made['id']}")
        assert gone.status == 200
        assert gone.body == {"success": True, "id": made["id"], "name": "One"}
        unbound = await lookup.get(api.scope, number.id)
        assert unbound is not None and unbound.agent_id is None
        kept = await api.gateway.store.call(api.scope, call.id)
        assert kept is not None and kept.agent_id == made["id"]
        assert await api.gateway.app[AGENTS].get(api.scope, made["id"]) is None
        assert (await api.ask("GET")).body["total"] == 0

    async def test_changes_that_meet_a_deletion(self, api: Api) -> None:
        for _ in range(5):
            made = await api.made()
            path = f"/{made['id']}"
            answers = await asyncio.gather(
                *(api.ask("PATCH", path, {"name": f"n{number}"}) for number in range(5)),
                api.ask("DELETE", path),
                api.ask("POST", f"{path}/rollback", {"version": 1}),
                api.ask("DELETE", path),
                api.ask("GET", path),
            )
            assert {answer.status for answer in answers} <= {200, 404}
            assert sorted((answers[5].status, answers[7].status)) == [200, 404]
            assert (await api.ask("GET", path)).status == 404
            assert await api.gateway.app[AGENTS].get(Scope(None), made["id"]) is None


class TestTenancy:
    async def test_anothers_agent_is_as_good_as_none(self, api: Api) -> None:
        made = await api.made()
        operators = (await api.ask("POST", "", {"name": "Own"}, operator())).body
        ids = (made["id"], new_id("agt"), "greeter", "x" * 500, "agt_%27--", "voices/")
        asked = [
            ("GET", "", None),
            ("PATCH", "", {"name": "Theirs"}),
            ("PATCH", "", {}),
            ("GET", "/versions", None),
            ("POST", "/rollback", {"version": 1}),
            ("DELETE", "", None),
        ]
        for method, tail, body in asked:
            answers = [await api.ask(method, f"/{one}{tail}", body, RIVAL) for one in ids[:5]]
            assert {answer.status for answer in answers} == {404}
            assert len({json.dumps(answer.body) for answer in answers}) == 1
            assert answers[0].code == "AGENT_NOT_FOUND"
            of_operator = await api.ask(method, f"/{operators['id']}{tail}", body)
            assert (of_operator.status, of_operator.body) == (404, answers[0].body)
        assert (await api.ask("GET", f"/{made['id']}")).body == made
        assert (await Api(api.gateway).ask("GET")).body["total"] == 0
        for one in (made, operators):
            assert (await api.ask("GET", f"/{one['id']}", headers=operator())).body == one

    async def test_without_a_token_nothing(self, api: Api) -> None:
        made = await api.made()
        for method, path in (
            ("POST", ""),
            ("GET", ""),
            ("GET", "/voices"),
            ("GET", f"/{made['id']}"),
            ("PATCH", f"/{made['id']}"),
            ("DELETE", f"/{made['id']}"),
            ("GET", f"/{made['id']}/versions"),
            ("POST", f"/{made['id']}/rollback"),
        ):
            answer = await api.ask(method, path, b"{", {})
            assert (answer.status, answer.code) == (401, "MISSING_AUTH_HEADER")


async def test_the_public_client_reads_the_answers(api: Api) -> None:
    made = await api.made(beginMessage="Hi", voiceMode="hosted", customTools=[TOOL])
    await api.number(made["id"])
    agent = ClientAgent.from_dict((await api.ask("GET", f"/{made['id']}")).body)
    assert (agent.id, agent.voice, agent.begin_message) == (made["id"], "default", "Hi")
    assert [number.type for number in agent.numbers] == ["voice"]
    listed = ClientAgentList.from_dict((await api.ask("GET")).body)
    assert (listed.data, listed.total, listed.has_more) == ([agent], 1, False)


async def test_the_voices_are_those_that_can_be_had(api: Api) -> None:
    voices = (await api.ask("GET", "/voices")).body["data"]
    assert [voice["id"] for voice in voices] == ["default"]
    for voice in voices:
        made = await api.made(voice=voice["id"])
        assert made["voice"] == voice["id"]


async def test_two_gateways_agree_through_redis(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as port:
        settings = settings_in(tmp_path, cache_url=f"redis://127.0.0.1:{port}")
        async with running(settings) as first, running(settings) as second:
            one, other = Api(first), second.app[AGENTS]
            made = await one.made()
            number = await one.number(made["id"])
            for version in range(2, 12):
                before = await other.get(one.scope, made["id"])
                assert before is not None and before.version == version - 1
                await one.ask("PATCH", f"/{made['id']}", {"name": f"v{version}"})
            bound = await second.app[NUMBER_LOOKUP].get(one.scope, number.id)
            assert bound is not None and bound.agent_id == made["id"]
            await one.ask("DELETE", f"/{made['id']}")
            assert await other.get(one.scope, made["id"]) is None
            unbound = await second.app[NUMBER_LOOKUP].get(one.scope, number.id)
            assert unbound is not None and unbound.agent_id is None
