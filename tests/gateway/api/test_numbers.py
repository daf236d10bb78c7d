"""Phone numbers over HTTP, in both families of paths: attach, bind, buy, detach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from agentphone import AgentPhone  # type: ignore[import-untyped]

from gateway.keys import NUMBER_LOOKUP
from gateway.store.database import Scope
from tests.conftest import ACME, RIVAL, SECRETS, operator
from tests.support.inprocess import running, settings_in
from tests.support.number_rig import (
    ACCOUNT,
    API,
    ATTACH,
    NUMBER,
    OFFICE,
    PUBLIC,
    TWILIO,
    V1,
    Rig,
    code,
    number_rig,
)

pytestmark = pytest.mark.store


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with number_rig(tmp_path) as rig:
        yield rig


class TestAttach:
    async def test_from_any_trunk(self, rig: Rig) -> None:
        await rig.credential(OFFICE)
        agent = await rig.agent()
        answer = await rig.attach(credentialsRef="office", agentId=agent, direction="inbound")
        assert (answer.status, answer.body["success"], answer.body["meta"]) == (201, True, {})
        view = answer.body["data"]
        assert view == {
            "id": view["id"],
            "phoneNumber": NUMBER,
            "country": "US",
            "status": "active",
            "type": "voice",
            "agentId": agent,
            "provider": "sip",
            "credentialsRef": "office",
            "direction": "inbound",
            "via": "sip",
            "record": False,
            "inboundCallsEnabled": True,
            "authId": "acme",
            "createdAt": view["createdAt"],
        }
        (trunk,), (rule,) = rig.sip.registry.inbound.values(), rig.sip.registry.rules.values()
        assert (trunk.name, rule.name) == (view["id"], view["id"])
        assert list(trunk.numbers) == [NUMBER, NUMBER[1:]]
        assert list(trunk.allowed_addresses) == ["203.0.113.0/24"]
        assert list(rule.trunk_ids) == [trunk.sip_trunk_id]
        assert rule.room_config.agents[0].agent_name == "switchroom"
        for path in (f"{API}/{view['id']}", API, f"{V1}/{view['id']}", V1):
            body = (await rig.api.get(path)).body
            shown = body.get("data", body)
            assert (shown[0] if isinstance(shown, list) else shown) == view

    async def test_from_twilio_and_back(self, rig: Rig) -> None:
        await rig.credential(TWILIO)
        theirs = rig.twilio.make_trunk(ACCOUNT, "theirs")["sid"]
        row = rig.twilio.give(ACCOUNT, NUMBER, trunk_sid=theirs)
        view = await rig.attached("twilio", credentialsRef="main")
        (url,) = rig.twilio.urls.values()
        assert (url["sip_url"], url["trunk_sid"]) == (f"sip:{PUBLIC}", row["trunk_sid"])
        gone = await rig.api.request("DELETE", f"{API}/{view['id']}")
        assert gone.status == 200
        assert gone.body["data"]["status"] == "detached"
        assert row["trunk_sid"] == theirs
        assert rig.sip.names == [[], []]
        assert await rig.rows() == []
        missing = await rig.api.request("DELETE", f"{API}/{view['id']}")
        assert (missing.status, code(missing)) == (404, "NUMBER_NOT_FOUND")

    async def test_an_agent_of_a_file(self, rig: Rig) -> None:
        assert (await rig.attached(agentId="greeter"))["agentId"] == "greeter"

    async def test_by_an_operator(self, rig: Rig) -> None:
        view = await rig.attached(headers=operator())
        assert (await rig.api.get(f"{V1}/{view['id']}")).status == 404
        assert (await rig.api.get(f"{V1}/{view['id']}", headers=operator())).status == 200

    @pytest.mark.parametrize(
        ("fields", "status", "wanted"),
        [
            ({"credentialsRef": "nothing"}, 404, "CREDENTIAL_NOT_FOUND"),
            ({"credentialsRef": "theirs"}, 404, "CREDENTIAL_NOT_FOUND"),
            ({"credentialsRef": "main"}, 422, "VALIDATION_ERROR"),
            ({"provider": "twilio"}, 422, "VALIDATION_ERROR"),
            ({"provider": "twilio", "credentialsRef": "main"}, 422, "NUMBER_NOT_IN_ACCOUNT"),
            ({"agentId": "agt_nothing"}, 404, "AGENT_NOT_FOUND"),
            ({"agentId": "../greeter"}, 404, "AGENT_NOT_FOUND"),
            ({"direction": "sideways"}, 422, "VALIDATION_ERROR"),
            ({"direction": None}, 422, "VALIDATION_ERROR"),
            ({"provider": "vonage"}, 422, "VALIDATION_ERROR"),
            ({"unknown": 1}, 422, "VALIDATION_ERROR"),
            ({"phoneNumber": None}, 422, "VALIDATION_ERROR"),
            ({"phoneNumber": 14155550123}, 422, "VALIDATION_ERROR"),
            ({"phoneNumber": ""}, 422, "VALIDATION_ERROR"),
            ({"phoneNumber": "14155550123"}, 422, "VALIDATION_ERROR"),
            ({"phoneNumber": "+1 415 555 0123"}, 422, "VALIDATION_ERROR"),
            ({"phoneNumber": "+14155550123;ext=1"}, 422, "VALIDATION_ERROR"),
            ({"phoneNumber": "tel:+14155550123"}, 422, "VALIDATION_ERROR"),
            ({"phoneNumber": "+141555501234567"}, 422, "VALIDATION_ERROR"),
            ({"phoneNumber": "+1415"}, 422, "VALIDATION_ERROR"),
            ({"phoneNumber": "+999123456789"}, 422, "VALIDATION_ERROR"),
            ({"phoneNumber": "+１４１５５５５０１２３"}, 422, "VALIDATION_ERROR"),
            ({"phoneNumber": "+1415555\x000123"}, 400, "INVALID_JSON"),
            ({"phoneNumber": "+" + "1" * 5000}, 422, "VALIDATION_ERROR"),
        ],
    )
    async def test_refused(
        self, rig: Rig, fields: dict[str, Any], status: int, wanted: str
    ) -> None:
        await rig.credential(TWILIO)
        await rig.credential({**OFFICE, "name": "theirs"}, headers=RIVAL)
        answer = await rig.attach(**fields)
        assert (answer.status, code(answer)) == (status, wanted), answer.body
        assert await rig.rows() == []
        assert rig.sip.names == [[], []]

    async def test_one_of_many_at_once(self, rig: Rig) -> None:
        answers = await asyncio.gather(
            *(rig.attach(headers=ACME if turn % 2 else RIVAL) for turn in range(10))
        )
        assert sorted(answer.status for answer in answers) == [201] + [409] * 9
        assert {code(a) for a in answers if a.status == 409} == {"NUMBER_ATTACHED"}
        assert [len(names) for names in rig.sip.names] == [1, 1]

    async def test_the_same_key_attaches_once(self, rig: Rig) -> None:
        headers = {**ACME, "Idempotency-Key": "k"}
        first, second = [await rig.attached(headers=headers) for _ in range(2)]
        assert first == second
        again = await rig.attach()
        assert (again.status, code(again)) == (409, "NUMBER_ATTACHED")

    async def test_somebody_elses_trunk_for_the_number(self, rig: Rig) -> None:
        await rig.attached()
        (trunk,) = rig.sip.registry.inbound.values()
        (row,) = await rig.rows()
        await rig.own.app[NUMBER_LOOKUP].warm(row.id)
        trunk.metadata = ""
        rig.sip.registry.rules.clear()
        await rig.provisioner.numbers.delete(row.id)
        answer = await rig.attach()
        assert (answer.status, code(answer)) == (409, "TRUNK_CONFLICT")
        assert await rig.rows() == []

    async def test_twilio_without_a_public_address(self, tmp_path: Path) -> None:
        async with number_rig(tmp_path, sip_public_address=None) as rig:
            await rig.credential(TWILIO)
            answer = await rig.attach("twilio", credentialsRef="main")
            assert (answer.status, code(answer)) == (409, "SIP_ADDRESS_NOT_CONFIGURED")
            bought = await rig.api.post(V1, json={})
            assert (bought.status, code(bought)) == (409, "SIP_ADDRESS_NOT_CONFIGURED")

    async def test_without_livekit(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path, livekit_api_key=None, livekit_api_secret=None)
        async with running(settings) as own:
            body = {"provider": "sip", "phoneNumber": NUMBER}
            async with own.http.post(ATTACH, json=body, headers=ACME) as answer:
                assert answer.status == 500
                assert (await answer.json())["meta"]["code"] == "LIVEKIT_NOT_CONFIGURED"
            async with own.http.get(API, headers=ACME) as answer:
                assert (await answer.json())["data"] == []


class TestBinding:
    async def test_to_another_agent_and_to_none(self, rig: Rig) -> None:
        first, second = await rig.agent(), await rig.agent()
        view = await rig.attached(agentId=first)
        looked_up = rig.own.app[NUMBER_LOOKUP]
        bound = await rig.api.post(f"/v1/agents/{second}/numbers", json={"numberId": view["id"]})
        assert bound.status == 200
        number = {"id": view["id"], "phoneNumber": NUMBER, "status": "active", "type": "voice"}
        assert bound.body == {"agentId": second, "number": number}
        found = await looked_up.get(Scope("acme"), view["id"])
        assert found is not None and found.agent_id == second
        agent = (await rig.api.get(f"/v1/agents/{second}")).body
        assert [each["id"] for each in agent["numbers"]] == [view["id"]]
        wrong = await rig.api.request("DELETE", f"/v1/agents/{first}/numbers/{view['id']}")
        assert (wrong.status, code(wrong)) == (404, "NUMBER_NOT_FOUND")
        freed = await rig.api.request("DELETE", f"/v1/agents/{second}/numbers/{view['id']}")
        assert (freed.status, freed.body) == (200, {"agentId": second, "number": number})
        found = await looked_up.get(Scope("acme"), view["id"])
        assert found is not None and found.agent_id is None

    async def test_patch(self, rig: Rig) -> None:
        agent = await rig.agent()
        view = await rig.attached()
        url = f"{API}/{view['id']}"

        async def patched(**fields: Any) -> Any:
            answer = await rig.api.request("PATCH", url, json=fields)
            assert answer.status == 200, answer.body
            return answer.body["data"]

        assert await patched() == view
        assert await patched(direction="outbound") == {
            **view,
            "direction": "outbound",
            "inboundCallsEnabled": False,
        }
        assert await patched(record=True) == {
            **view,
            "record": True,
            "direction": "outbound",
            "inboundCallsEnabled": False,
        }
        assert (await patched(record=False))["record"] is False
        both = await patched(agentId=agent, direction="both")
        assert both == {**view, "agentId": agent}
        assert await patched(agentId=None) == view
        for fields, status in (
            ({"agentId": "agt_nothing"}, 404),
            ({"direction": None}, 422),
            ({"agentId": ""}, 422),
            ({"phoneNumber": NUMBER}, 422),
        ):
            assert (await rig.api.request("PATCH", url, json=fields)).status == status
        assert (await rig.api.get(url)).body["data"] == view

    async def test_the_first_bound_stays_the_first(self, rig: Rig) -> None:
        """Binding a number again does not change which of the agent's numbers is the caller ID."""
        agent = await rig.agent()
        first = await rig.attached(agentId=agent)
        await rig.attached(agentId=agent, phoneNumber="+14155550124")
        await rig.api.request("PATCH", f"{API}/{first['id']}", json={"agentId": agent})
        numbers = (await rig.api.get(f"/v1/agents/{agent}")).body["numbers"]
        assert [number["id"] for number in numbers] == [
            first["id"],
            *(n["id"] for n in numbers if n["id"] != first["id"]),
        ]

    async def test_what_is_anothers_is_not_there(self, rig: Rig) -> None:
        mine, agent = await rig.attached(), await rig.agent()
        theirs = await rig.agent(headers=RIVAL)
        requests: list[tuple[str, str, Any]] = [
            ("GET", f"{API}/%s", None),
            ("PATCH", f"{API}/%s", {"agentId": None}),
            ("PATCH", f"{API}/%s", {"agentId": theirs}),
            ("DELETE", f"{API}/%s", None),
            ("GET", f"{V1}/%s", None),
            ("DELETE", f"{V1}/%s", None),
            ("DELETE", f"/v1/agents/{theirs}/numbers/%s", None),
        ]
        for method, path, body in requests:
            answers = [
                await rig.api.request(method, path % number, json=body, headers=RIVAL)
                for number in (mine["id"], "num_000000000000000000000000")
            ]
            assert answers[0].status == 404
            assert answers[0].body == answers[1].body
        bind = {"json": {"numberId": mine["id"]}}
        for owner, path in ((RIVAL, f"/v1/agents/{theirs}"), (ACME, f"/v1/agents/{theirs}")):
            answer = await rig.api.post(f"{path}/numbers", headers=owner, **bind)
            assert answer.status == 404
        # Not even an operator may bind a tenant's number to another tenant's agent.
        answer = await rig.api.post(f"/v1/agents/{theirs}/numbers", headers=operator(), **bind)
        assert (answer.status, code(answer)) == (404, "AGENT_NOT_FOUND")
        answer = await rig.api.post(f"/v1/agents/{agent}/numbers", headers=operator(), **bind)
        assert answer.status == 200
        listed = (await rig.api.get(API, headers=RIVAL)).body
        assert (listed["data"], listed["meta"]["total"]) == ([], 0)


class TestBuying:
    @pytest.fixture(autouse=True)
    def offers(self, rig: Rig) -> None:
        for last in range(3):
            rig.twilio.offer(f"+1415555010{last}", locality="San Francisco", region="CA")

    async def test_what_there_is(self, rig: Rig) -> None:
        await rig.credential(TWILIO)
        wanted = {"country": "US", "areaCode": "415"}
        one, other = [(await rig.api.get(f"{path}/available", params=wanted)) for path in (API, V1)]
        assert one.status == other.status == 200
        assert one.body["data"] == other.body["data"]
        assert one.body["data"][0] == {
            "phoneNumber": "+14155550100",
            "country": "US",
            "city": "San Francisco",
            "state": "CA",
            "postalCode": None,
            "rateCenter": None,
            "areaCode": "415",
        }
        for query in ({"country": "DE"}, {"areaCode": "212"}, {"state": "NY"}):
            assert (await rig.api.get(f"{V1}/available", params=query)).body["data"] == []
        for query in ({"country": "usa"}, {"areaCode": "4a5"}, {"limit": "51"}, {"x": "1"}):
            assert (await rig.api.get(f"{API}/available", params=query)).status == 422

    async def test_bought_bound_and_released(self, rig: Rig) -> None:
        await rig.credential(TWILIO)
        agent = await rig.agent()
        answer = await rig.api.post(
            V1, json={"country": "US", "areaCode": "415", "agentId": agent, "type": "sms"}
        )
        assert answer.status == 200, answer.body
        assert answer.headers["X-Ignored-Fields"] == "type"
        view = answer.body
        (row,) = rig.twilio.numbers.values()
        assert row["phone_number"] == view["phoneNumber"] == "+14155550100"
        assert (view["agentId"], view["credentialsRef"]) == (agent, "main")
        assert row["trunk_sid"] in rig.twilio.trunks
        gone = await rig.api.request("DELETE", f"{V1}/{view['id']}")
        assert gone.body == {
            "success": True,
            "id": view["id"],
            "phoneNumber": "+14155550100",
            "status": "released",
        }
        assert (rig.twilio.numbers, rig.sip.names) == ({}, [[], []])

    async def test_bought_by_number_and_kept_when_detached(self, rig: Rig) -> None:
        await rig.credential(TWILIO)
        body = {"country": "US", "phoneNumber": "+14155550102", "credentialsRef": "main"}
        answer = await rig.api.post(f"{API}/buy", json=body)
        assert (answer.status, answer.body["data"]["phoneNumber"]) == (201, "+14155550102")
        gone = await rig.api.request("DELETE", f"{API}/{answer.body['data']['id']}")
        assert gone.body["data"]["status"] == "detached"
        (row,) = rig.twilio.numbers.values()
        assert row["trunk_sid"] is None

    async def test_an_attached_number_is_never_released(self, rig: Rig) -> None:
        await rig.credential(TWILIO)
        rig.twilio.give(ACCOUNT, NUMBER)
        view = await rig.attached("twilio", credentialsRef="main")
        gone = await rig.api.request("DELETE", f"{V1}/{view['id']}")
        assert gone.body["status"] == "detached"
        assert len(rig.twilio.numbers) == 1

    async def test_which_credential(self, rig: Rig) -> None:
        for body in ({}, {"credentialsRef": "nothing"}):
            answer = await rig.api.post(V1, json=body)
            wanted = (404, "CREDENTIAL_NOT_FOUND") if body else (409, "CREDENTIAL_REQUIRED")
            assert (answer.status, code(answer)) == wanted
        await rig.credential(TWILIO)
        await rig.credential(OFFICE)
        await rig.credential({**TWILIO, "name": "second"})
        for ref in (None, "office"):
            body = {} if ref is None else {"credentialsRef": ref}
            answer = await rig.api.post(V1, json=body)
            assert (answer.status, code(answer)) == (409, "CREDENTIAL_REQUIRED")
        assert (await rig.api.post(V1, json={"credentialsRef": "second"})).status == 200

    async def test_nothing_to_be_had(self, rig: Rig) -> None:
        await rig.credential(TWILIO)
        for fields in ({"areaCode": "212"}, {"country": "DE"}, {"phoneNumber": NUMBER}):
            answer = await rig.api.post(f"{API}/buy", json={"credentialsRef": "main", **fields})
            assert (answer.status, code(answer)) == (409, "NUMBER_UNAVAILABLE")
        assert await rig.rows() == []
        assert rig.sip.names == [[], []]

    async def test_somebody_was_faster(self, rig: Rig) -> None:
        await rig.credential(TWILIO)
        rig.twilio.fail("POST .*/IncomingPhoneNumbers.json", status=400, code=21422, times=1)
        answer = await rig.api.post(V1, json={})
        assert (answer.status, answer.body["phoneNumber"]) == (200, "+14155550101")
        assert [len(names) for names in rig.sip.names] == [1, 1]


async def test_the_public_client(rig: Rig) -> None:
    """agentphone from PyPI works unchanged."""
    await rig.credential(TWILIO)
    rig.twilio.offer("+14155550100")
    agent = await rig.agent()
    base = str(rig.own.http._base_url).rstrip("/")

    def use() -> None:
        with AgentPhone(api_key=SECRETS["acme"], base_url=base) as client:
            (offer,) = client.numbers.available(area_code="415", country="US", limit=5)
            assert offer.phone_number == "+14155550100"
            number = client.numbers.buy(country="US", area_code="415")
            assert (number.country, number.status, number.agent_id) == ("US", "active", None)
            attached = client.agents.attach_number(agent, number.id)
            assert attached["number"]["id"] == number.id
            assert client.numbers.get(number.id).agent_id == agent
            listed = client.numbers.list(limit=1)
            assert (listed.total, listed.data[0].id) == (1, number.id)
            client.agents.detach_number(agent, number.id)
            assert client.numbers.get(number.id).agent_id is None
            assert client.numbers.release(number.id)["status"] == "released"
            assert client.numbers.list().total == 0

    await asyncio.to_thread(use)
