"""Calls of the REST API, by Twilio's own client: outcomes, callbacks, changes, refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from twilio.base.exceptions import TwilioRestException  # type: ignore[import-untyped]
from twilio.rest import Client  # type: ignore[import-untyped]

from dev.standins.twilio import Answer, Busy, Call, RingOut, Unreachable
from gateway.numbers.twilio import TwilioHttp
from tests.dev.standins.twilio.rig import ACCOUNT, CALLER, NUMBER, STREAM, TOKEN, Rig, rig

pytestmark = pytest.mark.unit

CALLEE = "+14155550177"
EVERY = ["initiated", "ringing", "answered", "completed"]


class Outbound:
    def __init__(self, rig: Rig, client: Client) -> None:
        self.rig, self.client = rig, client
        rig.voice(STREAM)

    async def create(self, **options: Any) -> Call:
        url = None if "twiml" in options else f"{self.rig.app.url}/voice"
        given = {"to": CALLEE, "from_": NUMBER, "url": url, **options}
        made = await self.client.calls.create_async(**given)
        assert made.status == "queued" and made.direction == "outbound-api"
        return self.rig.twilio.calls[made.sid]

    async def with_events(self, **options: Any) -> Call:
        return await self.create(
            status_callback=f"{self.rig.app.url}/status", status_callback_event=EVERY, **options
        )

    def events(self) -> list[str]:
        return [form["CallStatus"] for form in self.rig.app.forms("/status")]


@pytest_asyncio.fixture
async def out() -> AsyncIterator[Outbound]:
    async with rig() as here:
        http = TwilioHttp(here.twilio.url)
        try:
            yield Outbound(here, Client(ACCOUNT, TOKEN, http_client=http))
        finally:
            await http.close()


class TestOutcomes:
    async def test_an_answer_and_every_callback(self, out: Outbound) -> None:
        call = await out.with_events()
        await call.streaming()
        assert (await out.client.calls(call.sid).fetch_async()).status == "in-progress"
        (form,) = out.rig.app.forms("/voice")
        assert form["Direction"] == "outbound-api" and form["CallStatus"] == "in-progress"
        call.hang_up()
        await call.ended()
        forms = out.rig.app.forms("/status")
        assert out.events() == ["initiated", "ringing", "in-progress", "completed"]
        assert [form["SequenceNumber"] for form in forms] == ["0", "1", "2", "3"]
        assert {form["CallbackSource"] for form in forms} == {"call-progress-events"}
        assert all(form["Timestamp"].endswith("+0000") for form in forms)
        assert "CallDuration" not in forms[2] and forms[3]["CallDuration"] == "0"
        shown = await out.client.calls(call.sid).fetch_async()
        assert (shown.status, shown.duration, shown.to) == ("completed", "0", CALLEE)

    @pytest.mark.parametrize(
        ("callee", "status"),
        [(Busy(), "busy"), (RingOut(), "no-answer"), (Unreachable(), "failed")],
    )
    async def test_nobody_answers(
        self, out: Outbound, callee: Busy | RingOut | Unreachable, status: str
    ) -> None:
        out.rig.twilio.callee(CALLEE, callee)
        call = await out.with_events()
        assert await call.ended() == status
        assert out.events() == ["initiated", "ringing", status]
        assert out.rig.app.forms("/voice") == []

    async def test_each_call_meets_the_next_callee(self, out: Outbound) -> None:
        out.rig.twilio.callee(CALLEE, Busy(), RingOut(), Answer())
        statuses = []
        for _ in range(4):
            call = await out.create(twiml="<Response><Hangup/></Response>")
            statuses.append(await call.ended())
        assert statuses == ["busy", "no-answer", "completed", "completed"]

    async def test_only_the_end_is_told_by_default(self, out: Outbound) -> None:
        call = await out.create(status_callback=f"{out.rig.app.url}/status", twiml="<Response/>")
        await call.ended()
        assert out.events() == ["completed"]

    async def test_a_callback_can_come_twice(self, out: Outbound) -> None:
        call = await out.with_events(twiml="<Response/>")
        await call.ended()
        sent = [each for each in out.rig.twilio.webhooks.sent if each.url.endswith("/status")]
        again = await out.rig.twilio.webhooks.replay(sent[1])
        assert again.form == sent[1].form and again.status == 200
        assert out.events() == ["initiated", "ringing", "in-progress", "completed", "ringing"]

    async def test_the_timeout(self, out: Outbound) -> None:
        out.rig.twilio.callee(CALLEE, Answer(after_ms=None))
        call = await out.create(timeout=1)
        assert await call.ended() == "no-answer"

    async def test_the_callee_picks_up_when_the_test_says(self, out: Outbound) -> None:
        out.rig.twilio.callee(CALLEE, Answer(after_ms=None))
        call = await out.create()
        await call.reached("ringing")
        call.pick_up()
        await call.streaming()


class TestMachines:
    async def test_the_url_is_asked_with_the_result(self, out: Outbound) -> None:
        out.rig.twilio.callee(CALLEE, Answer(by="machine"))
        call = await out.with_events(machine_detection="Enable")
        await call.streaming()
        assert out.rig.app.forms("/voice")[0]["AnsweredBy"] == "machine_start"
        call.hang_up()
        await call.ended()
        assert out.rig.app.forms("/status")[-1]["AnsweredBy"] == "machine_start"
        shown = await out.client.calls(call.sid).fetch_async()
        assert shown.answered_by == "machine_start"

    async def test_the_result_comes_later_if_asked_so(self, out: Outbound) -> None:
        out.rig.twilio.callee(CALLEE, Answer(by="human", detection_ms=100))
        await out.create(
            machine_detection="DetectMessageEnd",
            async_amd="true",
            async_amd_status_callback=f"{out.rig.app.url}/amd",
        )
        (form,) = await out.rig.app.until("/amd")
        assert form["AnsweredBy"] == "human" and form["MachineDetectionDuration"] == "100"
        assert "AnsweredBy" not in out.rig.app.forms("/voice")[0]

    async def test_the_end_of_the_message(self, out: Outbound) -> None:
        out.rig.twilio.callee(CALLEE, Answer(by="machine"))
        call = await out.create(machine_detection="DetectMessageEnd")
        await call.streaming()
        assert out.rig.app.forms("/voice")[0]["AnsweredBy"] == "machine_end_beep"

    async def test_without_detection_nobody_knows(self, out: Outbound) -> None:
        out.rig.twilio.callee(CALLEE, Answer(by="machine"))
        call = await out.create()
        await call.streaming()
        assert "AnsweredBy" not in out.rig.app.forms("/voice")[0]


class TestChanges:
    async def test_a_live_call_is_completed(self, out: Outbound) -> None:
        call = await out.rig.twilio.call(NUMBER, CALLER)
        peer = await out.rig.app.peer()
        shown = await out.client.calls(call.sid).update_async(status="completed")
        assert shown.sid == call.sid
        assert await call.ended() == "completed"
        await peer.ended()
        assert peer.got[-1]["event"] == "stop"

    async def test_a_ringing_call_is_cancelled(self, out: Outbound) -> None:
        out.rig.twilio.callee(CALLEE, Answer(after_ms=None))
        for status in ("canceled", "completed"):
            call = await out.create()
            await call.reached("ringing")
            await out.client.calls(call.sid).update_async(status=status)
            assert await call.ended() == "canceled"

    async def test_a_live_call_goes_elsewhere(self, out: Outbound) -> None:
        call = await out.rig.twilio.call(NUMBER, CALLER)
        peer = await out.rig.app.peer()
        await out.client.calls(call.sid).update_async(url=f"{out.rig.app.url}/voice")
        again = await out.rig.app.peer(2)
        await peer.ended()
        assert peer.got[-1]["event"] == "stop"
        twiml = "<Response><Say>Moved.</Say></Response>"
        await out.client.calls(call.sid).update_async(twiml=twiml)
        await call.ended()
        assert again.got[-1]["event"] == "stop" and call.said == ["Moved."]

    async def test_a_call_that_is_over_is_not_changed(self, out: Outbound) -> None:
        call = await out.create(twiml="<Response/>")
        await call.ended()
        for change in ({"status": "completed"}, {"twiml": "<Response/>"}):
            with pytest.raises(TwilioRestException) as refused:
                await out.client.calls(call.sid).update_async(**change)
            assert (refused.value.status, refused.value.code) == (400, 21220)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "code"),
        [
            ({"to": ""}, 21201),
            ({"to": "911"}, 21211),
            ({"from_": ""}, 21213),
            ({"from_": "here"}, 21212),
            ({"from_": "+14155550166"}, 21210),
            ({"url": None}, 21205),
            ({"url": "/voice"}, 21205),
            ({"twiml": "<Response/>", "url": "http://127.0.0.1/voice"}, 21205),
            ({"timeout": 0}, 21208),
            ({"status_callback": "status"}, 21609),
            ({"status_callback_event": ["gone"]}, 21626),
            ({"method": "PUT"}, 21403),
        ],
    )
    async def test_what_twilio_refuses(
        self, out: Outbound, options: dict[str, Any], code: int
    ) -> None:
        with pytest.raises(TwilioRestException) as refused:
            await out.create(**options)
        assert (refused.value.status, refused.value.code) == (400, code)
        assert out.rig.twilio.calls == {}

    async def test_anothers_call_does_not_exist(self, out: Outbound) -> None:
        call = await out.create()
        out.rig.twilio.accounts["AC2"] = "other"
        http = TwilioHttp(out.rig.twilio.url)
        with pytest.raises(TwilioRestException) as refused:
            await Client("AC2", "other", http_client=http).calls(call.sid).fetch_async()
        await http.close()
        assert refused.value.status == 404


class TestNumbers:
    async def test_the_urls_of_a_number_are_kept_and_shown(self, out: Outbound) -> None:
        (number,) = await out.client.incoming_phone_numbers.list_async()
        changed = await out.client.incoming_phone_numbers(number.sid).update_async(
            voice_url="https://voice.example.com/voice",
            voice_method="GET",
            status_callback="https://voice.example.com/status",
        )
        shown = await out.client.incoming_phone_numbers(number.sid).fetch_async()
        for each in (changed, shown):
            assert each.voice_url == "https://voice.example.com/voice"
            assert each.voice_method == "GET"
            assert each.status_callback == "https://voice.example.com/status"
            assert each.status_callback_method == "POST"
        cleared = await out.client.incoming_phone_numbers(number.sid).update_async(voice_url="")
        assert cleared.voice_url == ""

    @pytest.mark.parametrize(
        ("change", "code"), [({"voice_url": "voice"}, 21402), ({"voice_method": "PUT"}, 21403)]
    )
    async def test_what_is_refused(self, out: Outbound, change: dict[str, str], code: int) -> None:
        (number,) = await out.client.incoming_phone_numbers.list_async()
        with pytest.raises(TwilioRestException) as refused:
            await out.client.incoming_phone_numbers(number.sid).update_async(**change)
        assert refused.value.code == code
        assert out.rig.twilio.numbers[number.sid]["voice_method"] == "POST"
