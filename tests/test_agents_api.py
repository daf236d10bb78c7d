"""/v1/agents over HTTP: what is taken, what is shown, what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import jwt
import pytest
from agentphone.models import Agent as ClientAgent  # type: ignore[import-untyped]
from agentphone.models import AgentList as ClientAgentList

from core.database import Scope
from core.models import AgentConfig, PhoneNumber, new_id, now
from gateway.keys import AGENTS, NUMBER_LOOKUP, NUMBERS
from tests.conftest import JWT_SECRET, RIVAL, bearer, operator
from tests.inprocess import Running, running, settings_in
from tests.redis_server import redis_server

pytestmark = pytest.mark.store

TOOL = {"name": "look-up", "description": "Finds it", "url": "https://example.com/find?q=1"}
DEFAULTS = AgentConfig(name="x").wire()
UNSERVED = {
    "transferNumber": "+15551234567",
    "voicemailMessage": "Leave one",
    "ambientSound": "office",
    "sttMode": "fast",
    "denoisingMode": "noise-cancellation",
    "enableMessaging": False,
    "enableBackchannel": True,
    "callScreeningIdentity": "us",
    "callScreeningPurpose": None,
    "recording": {"enabled": True},
    "disclosure": {"text": "…"},
    "consent": {"mode": "none"},
}


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def code(self) -> str:
        return str(self.body["error"]["code"])

    @property
    def fields(self) -> list[str]:
        return [detail["field"] for detail in self.body["error"]["details"]]


class Api:
    """A tenant of its own for each test; the gateway is everybody's."""

    def __init__(self, gateway: Running) -> None:
        self.gateway = gateway
        self.tenant = new_id("tenant")
        claims = {"auth_id": self.tenant, "exp": now() + timedelta(hours=1)}
        self.headers = bearer(jwt.encode(claims, JWT_SECRET, algorithm="HS256"))

    @property
    def scope(self) -> Scope:
        return Scope(self.tenant)

    async def ask(
        self,
        method: str,
        path: str = "",
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        headers = self.headers if headers is None else headers
        options: dict[str, Any] = {"headers": headers}
        if isinstance(body, bytes):
            options["data"] = BytesIO(body)
            options["headers"] = {**headers, "Content-Type": "application/json"}
        elif body is not None:
            options["json"] = body
        async with self.gateway.http.request(method, f"/v1/agents{path}", **options) as response:
            return Answer(response.status, await response.json(), response.headers)

    async def made(self, **fields: Any) -> dict[str, Any]:
        answer = await self.ask("POST", body={"name": "One", **fields})
        assert answer.status == 200, answer.body
        made: dict[str, Any] = answer.body
        return made

    async def number(self, agent_id: str | None) -> PhoneNumber:
        number = PhoneNumber(
            id=new_id("num"),
            auth_id=self.tenant,
            phone_number=f"+1{int(new_id('n')[2:12], 16):012}",
            country="US",
            provider="sip",
            direction="both",
            status="active",
            agent_id=agent_id,
            bound_at=now() if agent_id else None,
            created_at=now(),
        )
        await self.gateway.app[NUMBERS].insert(number)
        return number


@pytest.fixture(scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running(settings_in(tmp_path_factory.mktemp("gateway"))) as gateway:
        yield gateway


@pytest.fixture
def api(gateway: Running) -> Api:
    return Api(gateway)


class TestCreate:
    async def test_the_name_is_enough(self, api: Api) -> None:
        made = await api.made(name="  Front desk ")
        assert made == {
            **DEFAULTS,
            "id": made["id"],
            "name": "Front desk",
            "voice": "default",
            "version": 1,
            "numbers": [],
            "createdAt": made["createdAt"],
            "updatedAt": made["createdAt"],
        }
        assert made["id"].startswith("agt_")
        assert made["createdAt"].endswith("Z")
        assert (await api.ask("GET", f"/{made['id']}")).body == made

    async def test_every_field_is_kept(self, api: Api) -> None:
        given = {
            "name": "Föö",
            "description": "d",
            "enabled": False,
            "voiceMode": "hosted",
            "systemPrompt": "p",
            "beginMessage": "Hi {{name}}",
            "language": "es-419",
            "voice": "a-voice",
            "stt": "deepgram/nova-2",
            "modelTier": "max",
            "model": "openai/gpt-4.1:x",
            "tts": "cartesia/sonic-2",
            "maxDurationMs": 1000,
            "maxSilenceMs": 10000,
            "voiceSpeed": 2,
            "interruptionSensitivity": 0,
            "customTools": [{**TOOL, "method": "GET", "timeoutMs": 120_000}],
        }
        made = await api.made(**given)
        tool = made.pop("customTools")[0]
        assert tool == {
            **TOOL,
            "method": "GET",
            "timeoutMs": 120_000,
            "parameters": {"type": "object", "properties": {}},
        }
        given.pop("customTools")
        assert {name: made[name] for name in given} == given

    async def test_null_is_the_default(self, api: Api) -> None:
        nulls = dict.fromkeys(DEFAULTS.keys() - {"name"})
        made = await api.made(**nulls)
        assert {name: made[name] for name in nulls if name != "voice"} == {
            name: DEFAULTS[name] for name in nulls if name != "voice"
        }
        tool = dict.fromkeys(("method", "parameters", "timeoutMs"))
        made = await api.made(customTools=[{**TOOL, **tool}])
        assert made["customTools"][0]["timeoutMs"] == 10_000

    async def test_what_is_not_served_is_accepted_and_named(self, api: Api) -> None:
        tool = {**TOOL, "headers": {"A": "b"}, "speakDuringExecution": True}
        answer = await api.ask("POST", body={"name": "One", **UNSERVED, "customTools": [tool]})
        assert answer.status == 200
        named = answer.headers["X-Ignored-Fields"].split(", ")
        assert named == sorted(
            [*UNSERVED, "customTools.headers", "customTools.speakDuringExecution"]
        )
        assert not UNSERVED.keys() & answer.body.keys()
        changed = await api.ask("PATCH", f"/{answer.body['id']}", {"sttMode": "accurate"})
        assert (changed.status, changed.body) == (200, answer.body)
        assert changed.headers["X-Ignored-Fields"] == "sttMode"

    @pytest.mark.parametrize(
        ("fields", "faulty"),
        [
            ({"name": None}, "name"),
            ({"name": ""}, "name"),
            ({"name": " \t\n"}, "name"),
            ({"name": 7}, "name"),
            ({"name": "x" * 201}, "name"),
            ({"description": "x" * 2001}, "description"),
            ({"description": ["x"]}, "description"),
            ({"enabled": "yes"}, "enabled"),
            ({"enabled": 1}, "enabled"),
            ({"voiceMode": "both"}, "voiceMode"),
            ({"systemPrompt": "x" * 50_001}, "systemPrompt"),
            ({"beginMessage": "x" * 2001}, "beginMessage"),
            ({"language": ""}, "language"),
            ({"language": "en_US"}, "language"),
            ({"language": "en\n"}, "language"),
            ({"language": "e" * 400}, "language"),
            ({"voice": ""}, "voice"),
            ({"voice": "x" * 201}, "voice"),
            ({"voice": {"id": "x"}}, "voice"),
            ({"stt": "whisper"}, "stt"),
            ({"stt": "deepgram/" + "x" * 300}, "stt"),
            ({"model": "gpt-4.1"}, "model"),
            ({"model": "openai/x y"}, "model"),
            ({"modelTier": "MAX"}, "modelTier"),
            ({"tts": "cartesia/../x"}, "tts"),
            ({"maxDurationMs": 999}, "maxDurationMs"),
            ({"maxDurationMs": 10**30}, "maxDurationMs"),
            ({"maxSilenceMs": 9_999}, "maxSilenceMs"),
            ({"maxSilenceMs": 3_600_001}, "maxSilenceMs"),
            ({"maxSilenceMs": "10000"}, "maxSilenceMs"),
            ({"maxSilenceMs": 10_000.5}, "maxSilenceMs"),
            ({"maxSilenceMs": True}, "maxSilenceMs"),
            ({"voiceSpeed": 0.49}, "voiceSpeed"),
            ({"voiceSpeed": 2.01}, "voiceSpeed"),
            ({"voiceSpeed": "1"}, "voiceSpeed"),
            ({"interruptionSensitivity": -0.1}, "interruptionSensitivity"),
            ({"interruptionSensitivity": 1.1}, "interruptionSensitivity"),
            ({"customTools": {}}, "customTools"),
            ({"customTools": [TOOL] * 2}, "customTools"),
            ({"customTools": [{**TOOL, "name": f"t{n}"} for n in range(21)]}, "customTools"),
            ({"customTools": [None]}, "customTools.0"),
            ({"customTools": [{}]}, "customTools.0.name"),
            ({"customTools": [{**TOOL, "name": "a b"}]}, "customTools.0.name"),
            ({"customTools": [{**TOOL, "name": "x" * 65}]}, "customTools.0.name"),
            ({"customTools": [{**TOOL, "timeoutMs": 1}]}, "customTools.0.timeoutMs"),
            ({"customTools": [{**TOOL, "method": "PUT"}]}, "customTools.0.method"),
            ({"customTools": [{**TOOL, "parameters": []}]}, "customTools.0.parameters"),
            (
                {"customTools": [{**TOOL, "parameters": {"type": "string"}}]},
                "customTools.0.parameters",
            ),
            (
                {"customTools": [{**TOOL, "parameters": {"properties": 1}}]},
                "customTools.0.parameters",
            ),
            ({"customTools": [{**TOOL, "color": 1}]}, "customTools.0.color"),
            ({"id": "agt_mine"}, "id"),
            ({"version": 7}, "version"),
            ({"authId": "rival"}, "authId"),
            ({"numbers": []}, "numbers"),
            ({"color": "red"}, "color"),
            ({"transfer_number": "+1"}, "transfer_number"),
        ],
    )
    async def test_a_field_that_is_wrong_is_named(
        self, api: Api, fields: dict[str, Any], faulty: str
    ) -> None:
        made = await api.made()
        for method, path in (("POST", ""), ("PATCH", f"/{made['id']}")):
            answer = await api.ask(method, path, {"name": "One", **fields})
            assert (answer.status, answer.code) == (422, "VALIDATION_ERROR")
            assert faulty in answer.fields
        assert (await api.ask("GET", f"/{made['id']}")).body == made
        assert (await api.ask("GET")).body["total"] == 1

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "example.com",
            "/path",
            "ftp://example.com",
            "file:///etc/passwd",
            "javascript:alert(1)",
            "http://",
            "http:///path",
            "https://h:99999/",
            "https://h:0/",
            "https://h:x/",
            "http://[::1",
            "https://exa mple.com",
            "https://h/\r\nX: y",
            "https://h/\tx",
            "https://h/" + "x" * 2048,
            None,
            7,
        ],
    )
    async def test_a_tool_has_an_http_address(self, api: Api, url: Any) -> None:
        answer = await api.ask("POST", body={"name": "One", "customTools": [{**TOOL, "url": url}]})
        assert (answer.status, answer.fields) == (422, ["customTools.0.url"])

    @pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "HTTPS://h/a?b=c#d", "http://[::1]/"])
    async def test_any_http_address_will_do(self, api: Api, url: str) -> None:
        made = await api.made(customTools=[{**TOOL, "url": url}])
        assert made["customTools"][0]["url"] == url

    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            (b"", 400, "INVALID_JSON"),
            (b"{", 400, "INVALID_JSON"),
            (b'{"name": NaN}', 400, "INVALID_JSON"),
            (b'{"name": "\xff"}', 400, "INVALID_JSON"),
            (b'{"name": "\\u0000"}', 400, "INVALID_JSON"),
            (b'{"name": "\\ud800"}', 400, "INVALID_JSON"),
            (b'{"customTools": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400, "INVALID_JSON"),
            (b"null", 422, "VALIDATION_ERROR"),
            (b"[]", 422, "VALIDATION_ERROR"),
            (b'["name"]', 422, "VALIDATION_ERROR"),
            (b'"name"', 422, "VALIDATION_ERROR"),
            (b'{"name": "' + b"x" * 1024 * 1024 + b'"}', 413, "PAYLOAD_TOO_LARGE"),
        ],
    )
    async def test_a_hostile_body_is_refused(
        self, api: Api, body: bytes, status: int, code: str
    ) -> None:
        made = await api.made()
        paths = (("POST", ""), ("PATCH", f"/{made['id']}"), ("POST", f"/{made['id']}/rollback"))
        for method, path in paths:
            answer = await api.ask(method, path, body)
            assert (answer.status, answer.code) == (status, code)
        assert (await api.ask("GET")).body["total"] == 1

    async def test_many_faults_make_a_short_answer(self, api: Api) -> None:
        fields = {f"field{number}": number for number in range(10_000)}
        answer = await api.ask("POST", body={"name": "One", **fields})
        assert answer.status == 422
        assert len(answer.fields) == 50

    async def test_one_effect_per_idempotency_key(self, api: Api) -> None:
        keyed = {**api.headers, "Idempotency-Key": "k1"}
        body = {"name": "One", "sttMode": "fast"}
        answers = await asyncio.gather(*(api.ask("POST", "", body, keyed) for _ in range(5)))
        assert {answer.status for answer in answers} == {200}
        assert len({answer.body["id"] for answer in answers}) == 1
        assert {answer.headers["X-Ignored-Fields"] for answer in answers} == {"sttMode"}
        assert (await api.ask("GET")).body["total"] == 1
        reused = await api.ask("POST", "", {"name": "Two"}, keyed)
        assert (reused.status, reused.code) == (409, "IDEMPOTENCY_KEY_REUSED")
        theirs = await api.ask("POST", "", body, {**RIVAL, "Idempotency-Key": "k1"})
        assert theirs.body["id"] != answers[0].body["id"]


class TestPatch:
    async def test_what_is_left_out_stays_and_null_resets(self, api: Api) -> None:
        made = await api.made(voiceMode="hosted", voice="v", voiceSpeed=1.5, customTools=[TOOL])
        path = f"/{made['id']}"
        renamed = (await api.ask("PATCH", path, {"name": "Two"})).body
        assert renamed == {
            **made,
            "name": "Two",
            "version": 2,
            "updatedAt": renamed["updatedAt"],
        }
        reset = (await api.ask("PATCH", path, {"voice": None, "voiceSpeed": None})).body
        assert (reset["voice"], reset["voiceSpeed"], reset["version"]) == ("default", 1.0, 3)
        assert (reset["voiceMode"], reset["customTools"]) == ("hosted", made["customTools"])
        cleared = (await api.ask("PATCH", path, {"customTools": []})).body
        assert (cleared["customTools"], cleared["version"]) == ([], 4)

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"name": "One"},
            {"name": " One "},
            {"voice": "default"},
            {"voice": None},
            {"description": None, "beginMessage": None, "customTools": []},
            {"voiceSpeed": 1},
            {"recording": {"enabled": True}},
        ],
    )
    async def test_a_change_of_nothing_makes_no_version(
        self, api: Api, body: dict[str, Any]
    ) -> None:
        made = await api.made()
        answer = await api.ask("PATCH", f"/{made['id']}", body)
        assert (answer.status, answer.body) == (200, made)

    async def test_what_was_read_can_be_written_back(self, api: Api) -> None:
        made = await api.made(voiceMode="hosted", customTools=[TOOL])
        own = {"id", "version", "numbers", "createdAt", "updatedAt"}
        again = {name: value for name, value in made.items() if name not in own}
        assert (await api.ask("PATCH", f"/{made['id']}", again)).body == made

    async def test_of_a_thousand_changes_none_is_lost(self, api: Api) -> None:
        made = await api.made()
        path = f"/{made['id']}"
        names = [f"change {number}" for number in range(1000)]
        left = iter(names)
        versions: dict[int, str] = {1: "One"}

        async def client() -> None:
            for name in left:
                answer = await api.ask("PATCH", path, {"name": name})
                assert (answer.status, answer.body["name"]) == (200, name)
                assert answer.body["version"] not in versions
                versions[answer.body["version"]] = name

        async def caller() -> None:
            while len(versions) < 1001:
                await asyncio.sleep(0.01)
                answered = max(versions)
                agent = await agents.get(api.scope, made["id"])
                assert agent is not None and agent.version >= answered
                # One that is newer than its answer is known when that has come, too.
                assert versions.get(agent.version, agent.config.name) == agent.config.name

        agents = api.gateway.app[AGENTS]
        await asyncio.gather(*(client() for _ in range(25)), caller(), caller())
        assert sorted(versions) == [*range(1, 1002)]
        told: dict[int, str] = {}
        for offset in range(0, 1001, 100):
            page = (await api.ask("GET", f"{path}/versions?limit=100&offset={offset}")).body
            assert (page["total"], page["hasMore"]) == (1001, offset < 1000)
            told.update({one["version"]: one["name"] for one in page["data"]})
        assert told == versions
        last = (await api.ask("GET", path)).body
        assert (last["version"], last["name"]) == (1001, versions[1001])

    async def test_the_next_call_gets_the_change(self, api: Api) -> None:
        made = await api.made(voiceMode="hosted")
        agents = api.gateway.app[AGENTS]
        for version, name in ((2, "Two"), (3, "Three")):
            await api.ask("PATCH", f"/{made['id']}", {"name": name})
            agent = await agents.get(api.scope, made["id"])
            assert agent is not None
            assert (agent.version, agent.config.name) == (version, name)


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
