"""Calls that come in: the voice URL, the verbs, the ends, and what fails a test loudly."""

from __future__ import annotations

from collections.abc import AsyncIterator
from html import escape

import pytest
import pytest_asyncio

from dev.standins.twilio import Answer, Busy, RingOut, Unreachable
from dev.standins.twilio.call import Document
from tests.dev.standins.twilio.rig import ACCOUNT, CALLER, NUMBER, STREAM, Rig, rig

pytestmark = pytest.mark.unit

DOCUMENT = f"<Response>{STREAM}</Response>"
AGENT = "+14155550199"


@pytest_asyncio.fixture
async def here() -> AsyncIterator[Rig]:
    async with rig() as made:
        yield made


class TestVoiceUrl:
    async def test_it_is_asked_with_a_signed_form(self, here: Rig) -> None:
        here.voice("<Hangup/>")
        call = await here.twilio.call(NUMBER, CALLER)
        assert await call.ended() == "completed"
        assert here.app.forms("/voice") == [
            {
                "AccountSid": ACCOUNT,
                "ApiVersion": "2010-04-01",
                "CallSid": call.sid,
                "CallStatus": "ringing",
                "Called": NUMBER,
                "Caller": CALLER,
                "Direction": "inbound",
                "From": CALLER,
                "To": NUMBER,
            }
        ]

    async def test_get_has_its_parameters_in_the_signed_url(self, here: Rig) -> None:
        here.twilio.give(
            ACCOUNT, "+14155550124", voice_url=f"{here.app.url}/voice?a=b", voice_method="GET"
        )
        here.voice("<Hangup/>")
        call = await here.twilio.call("+14155550124", CALLER)
        await call.ended()
        (form,) = here.app.forms("/voice")
        assert form["a"] == "b" and form["CallSid"] == call.sid

    async def test_a_public_host_is_reached_where_the_test_says(self, here: Rig) -> None:
        local = here.app.url.removeprefix("http://")
        here.twilio.hosts["voice.example.com"] = local
        here.twilio.give(ACCOUNT, "+14155550124", voice_url="https://voice.example.com/voice")
        here.app.url = "https://voice.example.com"
        here.voice('<Connect><Stream url="wss://voice.example.com/stream"/></Connect>')
        call = await here.twilio.call("+14155550124", CALLER)
        # The application checks the signatures with its public URLs.
        await call.streaming()
        assert call.alerts == []

    async def test_the_number_has_its_own_status_callback(self, here: Rig) -> None:
        here.twilio.give(
            ACCOUNT,
            "+14155550124",
            voice_url=f"{here.app.url}/voice",
            status_callback=f"{here.app.url}/status",
        )
        here.voice("<Hangup/>")
        await (await here.twilio.call("+14155550124", CALLER)).ended()
        (form,) = here.app.forms("/status")
        assert form["CallStatus"] == "completed" and form["CallDuration"] == "0"


class TestVerbs:
    async def test_one_after_the_other_then_the_end(self, here: Rig) -> None:
        here.voice("<Say>One.</Say><Pause length='0'/><Redirect>more?key=a</Redirect><Say>x</Say>")
        here.voice("<Say>Two.</Say>", "/more")
        call = await here.twilio.call(NUMBER, CALLER)
        assert await call.ended() == "completed"
        assert call.said == ["One.", "Two."]
        # The call is answered by the first verb, and the URL is relative to the document's.
        assert here.app.forms("/more")[0]["CallStatus"] == "in-progress"

    @pytest.mark.parametrize(
        ("verb", "status"),
        [
            ("<Reject/>", "no-answer"),
            ("<Reject reason='busy'/>", "busy"),
            ("<Say>a</Say><Hangup/><Say>b</Say>", "completed"),
            ("", "completed"),
        ],
    )
    async def test_ends(self, here: Rig, verb: str, status: str) -> None:
        here.voice(verb)
        call = await here.twilio.call(NUMBER, CALLER)
        assert await call.ended() == status
        assert "b" not in call.said

    async def test_the_caller_hangs_up(self, here: Rig) -> None:
        here.voice("<Pause length='60'/>")
        call = await here.twilio.call(NUMBER, CALLER)
        await call.reached("in-progress")
        call.hang_up()
        assert await call.ended() == "completed"

    async def test_nothing_follows_a_hang_up(self, here: Rig) -> None:
        here.voice("<Pause length='60'/>")
        call = await here.twilio.call(NUMBER, CALLER)
        await call.reached("in-progress")
        call.hang_up()
        call.order(Document("<Response><Say>Late.</Say></Response>"))
        assert await call.ended() == "completed"
        assert call.said == []

    async def test_an_endless_redirect_ends(self, here: Rig) -> None:
        here.voice("<Redirect>/voice</Redirect>")
        call = await here.twilio.call(NUMBER, CALLER)
        await call.ended()
        assert [alert.code for alert in here.twilio.take_alerts()] == [12200]


class TestDial:
    async def test_two_people_talk_until_one_hangs_up(self, here: Rig) -> None:
        here.voice(f"<Dial action='/dialled' callerId='{NUMBER}'><Number>{AGENT}</Number></Dial>")
        here.voice("<Hangup/>", "/dialled")
        call = await here.twilio.call(NUMBER, CALLER)
        child = await call.dialling()
        await child.reached("in-progress")
        assert (child.from_, child.to, child.parent_sid) == (NUMBER, AGENT, call.sid)
        child.hang_up()
        (form,) = await here.app.until("/dialled")
        assert form["DialCallSid"] == child.sid and form["DialCallStatus"] == "completed"
        assert form["DialCallDuration"] == "0"
        await call.ended()

    @pytest.mark.parametrize(
        ("callee", "status"),
        [(Busy(), "busy"), (RingOut(), "no-answer"), (Unreachable(), "failed")],
    )
    async def test_nobody_answers(
        self, here: Rig, callee: Busy | RingOut | Unreachable, status: str
    ) -> None:
        here.twilio.callee(AGENT, callee)
        here.voice(f"<Dial action='/dialled'><Number>{AGENT}</Number></Dial>")
        here.voice("<Hangup/>", "/dialled")
        call = await here.twilio.call(NUMBER, CALLER)
        await call.ended()
        (form,) = here.app.forms("/dialled")
        assert form["DialCallStatus"] == status and "DialCallDuration" not in form

    async def test_the_callers_end_ends_the_dialled_call(self, here: Rig) -> None:
        here.twilio.callee(AGENT, Answer(after_ms=None), Answer())
        here.voice(f"<Dial><Number>{AGENT}</Number></Dial>")
        ringing = await here.twilio.call(NUMBER, CALLER)
        await ringing.dialling()
        ringing.hang_up()
        await ringing.ended()
        talking = await here.twilio.call(NUMBER, CALLER)
        await (await talking.dialling()).reached("in-progress")
        talking.hang_up()
        await talking.ended()
        assert [ringing.dialled[0].status, talking.dialled[0].status] == ["canceled", "completed"]

    async def test_the_timeout_of_the_verb(self, here: Rig) -> None:
        here.twilio.callee(AGENT, Answer(after_ms=60_000))
        here.voice(f"<Dial timeout='1'><Number>{AGENT}</Number></Dial><Say>Nobody.</Say>")
        call = await here.twilio.call(NUMBER, CALLER)
        await call.ended()
        assert call.dialled[0].status == "no-answer" and call.said == ["Nobody."]

    async def test_a_strange_caller_id_is_an_error(self, here: Rig) -> None:
        here.voice(f"<Dial callerId='+14155550777'><Number>{AGENT}</Number></Dial>")
        await (await here.twilio.call(NUMBER, CALLER)).ended()
        assert [alert.code for alert in here.twilio.take_alerts()] == [13214]
        here.twilio.verified.add("+14155550777")
        call = await here.twilio.call(NUMBER, CALLER)
        (await call.dialling()).hang_up()
        await call.ended()


class TestErrors:
    @pytest.mark.parametrize(
        ("text", "kind", "code"),
        [
            ("<Response>", "text/xml", 12100),
            ("<Response><Gather/></Response>", "text/xml", 12200),
            ("<Response/>", "application/json", 12300),
            (DOCUMENT.replace("{ws}", "wss://a.example/s?token=a"), "text/xml", 31923),
        ],
    )
    async def test_an_answer_that_is_wrong_fails_the_test(
        self, text: str, kind: str, code: int
    ) -> None:
        with pytest.raises(AssertionError, match=str(code)):
            async with rig() as here:
                here.app.content_type = kind
                here.app.twiml["/voice"] = (
                    text if "Resp" in text else f"<Response>{text}</Response>"
                )
                call = await here.twilio.call(NUMBER, CALLER)
                assert await call.ended() == "failed"
                assert call.said == ["We are sorry. An application error has occurred. Goodbye."]

    async def test_an_error_that_was_taken_does_not(self, here: Rig) -> None:
        here.voice("<Gather/>")
        call = await here.twilio.call(NUMBER, CALLER)
        await call.ended()
        (alert,) = here.twilio.take_alerts()
        assert (alert.code, alert.call_sid) == (12200, call.sid)

    async def test_an_application_that_is_away_is_a_quiet_error(self, here: Rig) -> None:
        here.twilio.give(ACCOUNT, "+14155550124", voice_url="http://127.0.0.1:9/voice")
        call = await here.twilio.call("+14155550124", CALLER)
        assert await call.ended() == "failed"
        (alert,) = call.alerts
        assert alert.code == 11200 and not alert.loud

    @pytest.mark.parametrize(
        ("overrides", "failures", "asked"),
        [
            ("", [503], 1),
            ("#rc=2&rp=ct,rt,5xx", [502, 503], 3),
            ("#rc=2&rp=ct,rt,5xx", [502, 503, 500], 3),
            ("#rc=2&rp=ct,rt,5xx", [404], 1),
            ("#rc=1&rp=all", [404], 2),
            ("#rc=5&rp=all", [None], 1),
        ],
    )
    async def test_a_request_is_repeated_as_its_fragment_says(
        self, here: Rig, overrides: str, failures: list[int | None], asked: int
    ) -> None:
        here.voice(f"<Redirect>/next{escape(overrides)}</Redirect>")
        here.voice("<Say>Hello</Say>", "/next")
        here.app.failures["/next"] = list(failures)
        call = await here.twilio.call(NUMBER, CALLER)
        await call.ended()
        assert len(here.app.forms("/next")) == asked
        assert (call.said == ["Hello"]) == (asked > len(failures))
        assert [alert.code for alert in call.alerts] == [11200] * (asked <= len(failures))

    async def test_an_unknown_override_fails_the_test(self, here: Rig) -> None:
        here.voice("<Redirect>/next#rc=9</Redirect>")
        await (await here.twilio.call(NUMBER, CALLER)).ended()
        assert [alert.code for alert in here.twilio.take_alerts()] == [11243]

    async def test_what_cannot_be_fetched_is_asked_at_the_fallback(self, here: Rig) -> None:
        fallback = f"{here.app.url}/fallback"
        number = here.twilio.give(
            ACCOUNT, "+14155550124", voice_url=f"{here.app.url}/voice", voice_fallback_url=fallback
        )
        here.voice("<Redirect>/next</Redirect>")
        here.voice("<Say>Hello</Say><Redirect>/again</Redirect>", "/fallback")
        here.voice("<Hangup/>", "/again")
        here.app.failures = {"/next": [None], "/again": [500]}
        call = await here.twilio.call(number["phone_number"], CALLER)
        await call.ended()
        # Each document that was fetched earns another fallback.
        forms = here.app.forms("/fallback")
        assert {form["ErrorCode"] for form in forms} == {"11200"}
        assert [form["ErrorUrl"].rpartition("/")[2] for form in forms] == ["next", "again"]
        assert call.said == ["Hello", "Hello"]

    async def test_a_fallback_that_fails_ends_the_call(self, here: Rig) -> None:
        fallback = f"{here.app.url}/fallback"
        here.twilio.give(
            ACCOUNT, "+14155550124", voice_url=f"{here.app.url}/voice", voice_fallback_url=fallback
        )
        here.app.failures = {"/voice": [500], "/fallback": [500]}
        call = await here.twilio.call("+14155550124", CALLER)
        assert await call.ended() == "failed"
        assert len(here.app.forms("/fallback")) == 1

    async def test_no_other_machine_is_asked(self, here: Rig) -> None:
        here.twilio.give(ACCOUNT, "+14155550124")
        call = await here.twilio.call("+14155550124", CALLER)
        assert await call.ended() == "failed"
        assert [alert.code for alert in call.alerts] == [11210]

    async def test_a_call_that_ends_without_its_stream_says_why(self, here: Rig) -> None:
        here.voice("<Hangup/>")
        with pytest.raises(AssertionError, match="completed"):
            await (await here.twilio.call(NUMBER, CALLER)).streaming()
