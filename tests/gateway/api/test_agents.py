"""/v1/agents over HTTP: creating and changing agents, and what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from core.models import AgentConfig
from gateway.keys import AGENTS
from tests.conftest import RIVAL
from tests.support.agents_rig import Api, api, gateway

pytestmark = pytest.mark.store

__all__ = ["api", "gateway"]

TOOL = {"name": "look-up", "description": "Finds it", "url": "https://example.com/find?q=1"}
DEFAULTS = AgentConfig(name="x").wire()
UNSERVED = {
    "sttMode": "fast",
    "denoisingMode": "noise-cancellation",
    "enableMessaging": False,
    "enableBackchannel": True,
    "callScreeningIdentity": "us",
    "callScreeningPurpose": None,
}


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
            "voicemailMessage": "Please call {{name}} back.",
            "onVoicemail": "leave_message",
            "onIvr": "hang_up",
            "customTools": [{**TOOL, "method": "GET", "timeoutMs": 120_000}],
        }
        made = await api.made(**given)
        tool = made.pop("customTools")[0]
        assert tool == {
            **TOOL,
            "method": "GET",
            "headers": {},
            "timeoutMs": 120_000,
            "parameters": {"type": "object", "properties": {}},
            "speakDuringExecution": False,
            "executionMessage": None,
        }
        given.pop("customTools")
        assert {name: made[name] for name in given} == given

    async def test_null_is_the_default(self, api: Api) -> None:
        nulls = dict.fromkeys(DEFAULTS.keys() - {"name"})
        made = await api.made(**nulls)
        assert {name: made[name] for name in nulls if name != "voice"} == {
            name: DEFAULTS[name] for name in nulls if name != "voice"
        }
        tool = dict.fromkeys(
            ("method", "headers", "parameters", "timeoutMs", "speakDuringExecution")
        )
        made = await api.made(customTools=[{**TOOL, **tool}])
        assert made["customTools"][0]["timeoutMs"] == 10_000

    async def test_what_is_not_served_is_accepted_and_named(self, api: Api) -> None:
        answer = await api.ask("POST", body={"name": "One", **UNSERVED})
        assert answer.status == 200
        assert answer.headers["X-Ignored-Fields"].split(", ") == sorted(UNSERVED)
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
            ({"voicemailMessage": "x" * 2001}, "voicemailMessage"),
            ({"voicemailMessage": 1}, "voicemailMessage"),
            ({"onVoicemail": "leave_message"}, "onVoicemail"),
            ({"onVoicemail": "stop", "voicemailMessage": "x"}, "onVoicemail"),
            ({"onIvr": "leave_message"}, "onIvr"),
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

    @pytest.mark.parametrize("url", ["http://h:8000", "HTTPS://h/a?b=c#d", "http://8.8.8.8/"])
    async def test_any_public_http_address_will_do(self, api: Api, url: str) -> None:
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
            {"recording": {"enabled": False}, "denoisingMode": "off"},
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
                # Its name can be compared only once the answer with its version has come.
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
