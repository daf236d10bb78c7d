"""Sessions of Twilio's calls: TwiML by JSON and by Twilio's own request, and the stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from core.events import ended
from core.models import CallEvent
from core.streams.messages import LOST
from core.tokens import TokenIssuer
from gateway.calls.streams.twilio import call_id_of
from gateway.keys import STOPPING, TIMELINE
from tests.conftest import ACME, RIVAL, operator
from tests.support.clock import Clock
from tests.support.inprocess import SECRET, running, settings_in
from tests.support.number_rig import ACCOUNT, NUMBER
from tests.support.numbers import make_agent
from tests.support.stream_worker import stream_worker
from tests.support.twilio_calls import (
    CALL_SID,
    CALLER,
    CONNECTED,
    PATH,
    PUBLIC,
    STREAM_URL,
    StreamRig,
    Twiml,
    close_code,
    form,
    signature,
    start,
    stream_rig,
)

pytestmark = pytest.mark.store

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def rig(tmp_path: Path, clock: Clock) -> AsyncIterator[StreamRig]:
    async with stream_rig(tmp_path, clock) as rig:
        yield rig


async def post(rig: StreamRig, body: Any, headers: dict[str, str] = ACME) -> tuple[int, Any]:
    async with rig.own.http.post(PATH, json=body, headers=headers) as response:
        return response.status, await response.json()


class TestJson:
    async def test_a_session_is_a_call(self, rig: StreamRig) -> None:
        agent = await rig.agent(begin_message="Hello {{who}}.")
        answer = await rig.create(
            agent, instanceId="inst_1", variables={"who": "Ann"}, metadata={"lead": 7}
        )
        assert answer["streamUrl"] == STREAM_URL
        call = await rig.record(answer["sessionId"])
        assert (call.direction, call.type, call.status) == ("inbound", "stream", "queued")
        assert (call.room_name, call.participant_identity) == (call.id, "caller")
        assert (call.from_number, call.to_number) == (CALLER, NUMBER)
        assert call.metadata == {"lead": 7, "instanceId": "inst_1"}
        found = await rig.own.store.call_and_agent(call.id)
        assert found is not None and found[1] is not None
        assert found[1].config.begin_message == "Hello Ann."

    async def test_the_twiml_has_the_token_as_a_parameter_only(self, rig: StreamRig) -> None:
        answer = await rig.create(await rig.agent())
        twiml = Twiml.of(answer["twiml"])
        assert twiml.verbs == ["Connect", "Redirect"]
        assert twiml.stream == STREAM_URL
        callbacks = f"{PUBLIC}{PATH}/{answer['sessionId']}"
        assert (twiml.status or "").startswith(f"{callbacks}/status?key=")
        assert (twiml.resume or "").startswith(f"{callbacks}/resume?key=")
        assert twiml.token and answer["twiml"].count(twiml.token) == 1

    async def test_xml_on_request(self, rig: StreamRig) -> None:
        agent = await rig.agent()
        body = {"agentId": agent.id, "from": CALLER, "to": NUMBER}
        headers = {**ACME, "Accept": "text/xml", "Idempotency-Key": "k1"}
        texts = []
        for _ in range(2):
            async with rig.own.http.post(PATH, json=body, headers=headers) as response:
                assert (response.status, response.content_type) == (200, "text/xml")
                texts.append(await response.text())
        assert Twiml.of(texts[0]).stream == STREAM_URL
        assert texts[0] == texts[1]
        assert response.headers["Idempotent-Replayed"] == "true"

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"from": None}, "from"),
            ({"to": ""}, "to"),
            ({"to": "+1 415 555"}, "to"),
            ({"instanceId": 7}, "instanceId"),
            ({"room": "x"}, "room"),
        ],
    )
    async def test_fields_are_checked(
        self, rig: StreamRig, changes: dict[str, Any], field: str
    ) -> None:
        body = {"agentId": "greeter", "from": CALLER, "to": NUMBER, **changes}
        status, answer = await post(rig, body)
        assert (status, answer["error"]["code"]) == (422, "VALIDATION_ERROR")
        assert [each["field"] for each in answer["error"]["details"]] == [field]

    async def test_another_tenants_agent_does_not_exist(self, rig: StreamRig) -> None:
        agent = await rig.agent()
        body = {"agentId": agent.id, "from": CALLER, "to": NUMBER}
        status, answer = await post(rig, body, RIVAL)
        assert (status, answer["error"]["code"]) == (404, "AGENT_NOT_FOUND")

    async def test_without_a_token(self, rig: StreamRig) -> None:
        status, answer = await post(rig, {}, {})
        assert (status, answer["error"]["code"]) == (401, "MISSING_AUTH_HEADER")

    @pytest.mark.parametrize("beat", [{"capacity": 0}, {"draining": True}, {"address": None}])
    async def test_no_stream_worker_is_free(self, rig: StreamRig, beat: dict[str, Any]) -> None:
        await rig.worker.beat(rig.own, **beat)
        agent = await rig.agent()
        body = {"agentId": agent.id, "from": CALLER, "to": NUMBER}
        status, answer = await post(rig, body)
        assert (status, answer["error"]["code"]) == (503, "AGENT_UNAVAILABLE")
        async with rig.own.http.get(f"/v1/calls?agentId={agent.id}", headers=operator()) as found:
            (call,) = (await found.json())["data"]
        assert (call["status"], call["disconnectionReason"]) == ("failed", "agent_unavailable")

    async def test_too_many_calls(self, tmp_path: Path) -> None:
        async with stream_rig(tmp_path, max_concurrent_calls=1) as rig:
            agent = await rig.agent()
            await rig.create(agent)
            body = {"agentId": agent.id, "from": CALLER, "to": NUMBER}
            status, answer = await post(rig, body)
            assert (status, answer["error"]["code"]) == (429, "CONCURRENCY_LIMIT")


class TestVoiceUrl:
    """Twilio's own form, for a number's call."""

    async def test_the_numbers_agent_answers(self, rig: StreamRig) -> None:
        agent = await rig.agent()
        number = await rig.number(agent)
        twiml = await rig.ring()
        assert twiml.verbs == ["Connect", "Redirect"]
        call = await rig.record(call_id_of(number, CALL_SID))
        assert (call.direction, call.type, call.status) == ("inbound", "stream", "ringing")
        assert (call.from_number, call.to_number) == (CALLER, NUMBER)
        assert (call.agent_id, call.phone_number_id) == (agent.id, number.id)
        assert call.auth_id == "acme"

    async def test_a_repeated_request_gets_the_same_session_and_another_token(
        self, rig: StreamRig
    ) -> None:
        await rig.number(await rig.agent())
        first, *others = await asyncio.gather(*(rig.ring() for _ in range(5)))
        last = await rig.ring()
        assert {twiml.resume for twiml in others} == {first.resume} == {last.resume}
        assert len({twiml.token for twiml in [first, *others, last]}) == 6
        headers = {"X-Twilio-Signature": signature(STREAM_URL)}
        for stale in (first, *others):
            async with rig.stream(CONNECTED, start(stale.token), headers=headers) as socket:
                assert await close_code(socket) == 1008
        async with rig.stream(CONNECTED, start(last.token), headers=headers):
            await rig.worker.session()

    @pytest.mark.parametrize(
        ("language", "said"), [("en", "nobody can take your call"), ("de-AT", "niemand")]
    )
    async def test_no_worker(self, rig: StreamRig, language: str, said: str) -> None:
        number = await rig.number(await rig.agent(language=language))
        await rig.worker.beat(rig.own, draining=True)
        twiml = await rig.ring()
        assert twiml.verbs == ["Say", "Hangup"]
        assert said in (twiml.said or "")
        assert (twiml.language or "").startswith(language[:2])
        verdict = await rig.verdict(call_id_of(number, CALL_SID))
        assert verdict == ("failed", "agent_unavailable")

    async def test_no_agent(self, rig: StreamRig) -> None:
        number = await rig.number(None)
        twiml = await rig.ring()
        assert twiml.verbs == ["Say", "Hangup"]
        events = await rig.own.store.events(call_id_of(number, CALL_SID), types=["call.ended"])
        assert [event.data["note"] for event in events] == ["number_without_agent"]

    @pytest.mark.parametrize("changes", [{"status": "detaching"}, {"credential_id": None}])
    async def test_a_number_that_takes_no_such_calls(
        self, rig: StreamRig, changes: dict[str, Any]
    ) -> None:
        await rig.number(None, **changes)
        assert (await rig.post(f"{PUBLIC}{PATH}", form()))[0] == 403


class TestStream:
    async def test_audio_passes_both_ways(self, rig: StreamRig) -> None:
        answer = await rig.create(await rig.agent())
        call_id, token = answer["sessionId"], Twiml.of(answer["twiml"]).token
        async with rig.stream(CONNECTED, start(token)) as socket:
            session = await rig.worker_session(call_id)
            (attach,) = session.attaches
            assert TokenIssuer(SECRET).verify(attach.pop("token"), "switchroom:call") == call_id
            stream_sid = "MZ" + "3" * 32
            assert attach == {
                "kind": "twilio",
                "epoch": 0,
                "streamSid": stream_sid,
                "resume": False,
                "moved": False,
                "twilio": {"accountSid": ACCOUNT, "callSid": CALL_SID, "streamSid": stream_sid},
            }
            await socket.send_str('{"event":"media"}')
            assert await session.frames.get() == b'{"event":"media"}'
            await session.send(b'{"event":"clear"}')
            assert await socket.receive_str() == '{"event":"clear"}'
            await session.close(1000)
            assert await close_code(socket) == 1000

    async def test_an_ended_call_is_not_attached(self, rig: StreamRig) -> None:
        answer = await rig.create(await rig.agent())
        over = CallEvent(type="call.ended", data=ended("canceled", "canceled"))
        await rig.own.app[TIMELINE].append(answer["sessionId"], [over], "gateway")
        async with rig.stream(CONNECTED, start(Twiml.of(answer["twiml"]).token)) as socket:
            assert await close_code(socket) == 1000
        assert not rig.worker.sessions

    async def test_no_worker_takes_it(self, rig: StreamRig) -> None:
        answer = await rig.create(await rig.agent())
        twiml = Twiml.of(answer["twiml"])
        rig.worker.refusing = 503
        async with rig.stream(CONNECTED, start(twiml.token)) as socket:
            assert await close_code(socket) == 1013
        assert await rig.verdict(answer["sessionId"]) == ("failed", "agent_unavailable")
        _, text = await rig.post(twiml.resume or "", form())
        assert Twiml.of(text).verbs == ["Say", "Hangup"]

    async def test_the_next_worker_takes_it(self, rig: StreamRig) -> None:
        """The least loaded one is asked first."""
        rig.worker.refusing = 503
        async with stream_worker(rig.own, active=5) as other:
            answer = await rig.create(await rig.agent())
            async with rig.stream(CONNECTED, start(Twiml.of(answer["twiml"]).token)):
                await other.session()
            assert [line.split()[0] for line in rig.worker.asked] == ["GET"]

    async def test_many_at_once(self, rig: StreamRig) -> None:
        agent = await rig.agent()
        made = await asyncio.gather(*(rig.create(agent) for _ in range(20)))
        async with AsyncExitStack() as stack:
            streams = []
            for index, answer in enumerate(made):
                token = Twiml.of(answer["twiml"]).token
                first = start(token, callSid=f"CA{index}")
                streams.append(await stack.enter_async_context(rig.stream(CONNECTED, first)))
            for index, socket in enumerate(streams):
                await socket.send_str(str(index))
            async with asyncio.timeout(10):
                while len(rig.worker.sessions) < 20:  # noqa: ASYNC110 (there is no event)
                    await asyncio.sleep(0.01)
                for index, answer in enumerate(made):
                    heard = await rig.worker.sessions[answer["sessionId"]].frames.get()
                    assert heard == str(index).encode()
            async with rig.own.http.get("/metrics") as response:
                assert "switchroom_streams 20.0" in await response.text()

    async def test_the_gateway_stops(self, rig: StreamRig) -> None:
        answer = await rig.create(await rig.agent())
        async with rig.stream(CONNECTED, start(Twiml.of(answer["twiml"]).token)) as socket:
            session = await rig.worker.session()
            rig.own.app[STOPPING].set()
            assert await close_code(socket) == 1012
            assert await session.closes.get() == LOST
        assert (await rig.record(answer["sessionId"])).status == "queued"

    async def test_the_api_ends_it(self, rig: StreamRig) -> None:
        answer = await rig.create(await rig.agent())
        call_id, twiml = answer["sessionId"], Twiml.of(answer["twiml"])
        async with rig.stream(CONNECTED, start(twiml.token)) as socket:
            await rig.worker.session()
            await rig.own.app[TIMELINE].append(call_id, [CallEvent(type="call.answered")], "worker")
            end = f"/v1/calls/{call_id}/end"
            async with rig.own.http.post(end, headers=ACME) as response:
                assert (response.status, (await response.json())["status"]) == (200, "completed")
            assert await close_code(socket) == 1000
        assert rig.worker.ended == [call_id]
        _, text = await rig.post(twiml.resume or "", form())
        assert Twiml.of(text).verbs == ["Hangup"]

    async def test_ended_before_a_socket_came(self, rig: StreamRig) -> None:
        call_id = (await rig.create(await rig.agent()))["sessionId"]
        async with rig.own.http.post(f"/v1/calls/{call_id}/end", headers=ACME) as response:
            assert (response.status, (await response.json())["status"]) == (200, "canceled")
        assert not rig.worker.asked

    async def test_a_worker_that_does_not_answer_cannot_end_it(self, rig: StreamRig) -> None:
        answer = await rig.create(await rig.agent())
        call_id = answer["sessionId"]
        async with rig.stream(CONNECTED, start(Twiml.of(answer["twiml"]).token)):
            await rig.worker.session()
            await rig.worker.stop()
            end = f"/v1/calls/{call_id}/end"
            async with rig.own.http.post(end, headers=ACME) as response:
                code = (await response.json())["error"]["code"]
                assert (response.status, code) == (503, "AGENT_UNAVAILABLE")
            assert (await rig.record(call_id)).status == "queued"

    async def test_not_a_websocket(self, rig: StreamRig) -> None:
        async with rig.own.http.get(f"{PATH}/stream") as response:
            assert response.status == 400


async def test_workers_are_counted_apart(rig: StreamRig) -> None:
    async with rig.own.http.get("/readyz") as response:
        answer = await response.json()
    assert answer["workers"] == {"live": 0, "free": 0}
    assert answer["streamWorkers"] == {"live": 1, "free": 10_000}


async def test_two_gateways_and_one_session(tmp_path: Path, rig: StreamRig) -> None:
    """The token of one gateway is good at the other, once."""
    settings = settings_in(tmp_path, public_url=PUBLIC)
    async with running(settings) as other:
        agent = await make_agent(rig.own)
        answer = await rig.create(agent)
        messages = [CONNECTED, start(Twiml.of(answer["twiml"]).token)]
        async with StreamRig(other, rig.worker).stream(*messages):
            await rig.worker_session(answer["sessionId"])
            async with rig.stream(*messages) as socket:
                assert await close_code(socket) == 1008


def test_the_validators_vector() -> None:
    """Twilio's documentation has this example."""
    fields = {
        "CallSid": "CA1234567890ABCDE",
        "Caller": "+14158675309",
        "Digits": "1234",
        "From": "+14158675309",
        "To": "+18005551212",
    }
    url = "https://mycompany.com/myapp.php?foo=1&bar=2"
    assert signature(url, fields, "12345") == "RSOYDt4T1cUTdK1PDd93/VVr8B8="
