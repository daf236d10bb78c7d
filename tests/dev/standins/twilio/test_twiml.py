"""TwiML is parsed strictly: the verbs of this project, and nothing else."""

from __future__ import annotations

import pytest
from twilio.twiml.voice_response import VoiceResponse  # type: ignore[import-untyped]

from dev.standins.twilio.errors import Fault
from dev.standins.twilio.twiml import (
    Connect,
    Dial,
    Hangup,
    Pause,
    Redirect,
    Reject,
    Say,
    parse,
    parse_text,
)

pytestmark = pytest.mark.unit


def refused(inside: str) -> int:
    with pytest.raises(Fault) as fault:
        parse_text(f"<Response>{inside}</Response>")
    return fault.value.code


def stream(attributes: str, inside: str = "") -> str:
    return f"<Connect><Stream {attributes}>{inside}</Stream></Connect>"


class TestVerbs:
    def test_what_the_library_writes(self) -> None:
        document = VoiceResponse()
        connect = document.connect()
        made = connect.stream(
            url="wss://voice.example.com/stream", status_callback="/status?key=a&b=c"
        )
        made.parameter(name="token", value="t0")
        document.redirect("https://voice.example.com/resume?a=1&b=2", method="POST")
        document.say("Goodbye.", voice="alice")
        document.pause(length=2)
        dial = document.dial(caller_id="+14155550123", timeout=20, action="/dialled")
        dial.number("+14155550199")
        document.reject(reason="busy")
        document.hangup()
        assert parse("text/xml; charset=utf-8", str(document)) == [
            Connect(
                "wss://voice.example.com/stream",
                {"token": "t0"},
                status_callback="/status?key=a&b=c",
            ),
            Redirect("https://voice.example.com/resume?a=1&b=2"),
            Say("Goodbye."),
            Pause(2),
            Dial("+14155550199", "+14155550123", 20, "/dialled"),
            Reject("busy"),
            Hangup(),
        ]

    def test_the_defaults(self) -> None:
        text = "<Response><Pause/><Dial><Number>+1</Number></Dial><Reject/></Response>"
        assert parse_text(text) == [Pause(1), Dial("+1"), Reject("rejected")]
        assert parse_text("<Response/>") == []

    def test_plain_ws_is_for_loopback_only(self) -> None:
        inside = stream("url='ws://127.0.0.1:8080/s'")
        (verb,) = parse_text(f"<Response>{inside}</Response>")
        assert verb == Connect("ws://127.0.0.1:8080/s", {})


class TestRefused:
    @pytest.mark.parametrize("kind", ["", "text/plain", "application/json", "text/html"])
    def test_other_content_types(self, kind: str) -> None:
        with pytest.raises(Fault) as fault:
            parse(kind, "<Response/>")
        assert fault.value.code == 12300

    @pytest.mark.parametrize(
        "text", ["", "no", "<Response>", "<Answer/>", "<!DOCTYPE a><Response/>", "<Response/>x"]
    )
    def test_what_is_no_document(self, text: str) -> None:
        with pytest.raises(Fault) as fault:
            parse_text(text)
        assert fault.value.code == 12100

    @pytest.mark.parametrize(
        "inside",
        [
            "text",
            "<Gather/>",
            "<hangup/>",
            "<Hangup after='1'/>",
            "<Hangup>now</Hangup>",
            "<Say/>",
            "<Say><Pause/></Say>",
            "<Pause length='soon'/>",
            "<Redirect/>",
            "<Redirect method='PUT'>/a</Redirect>",
            "<Reject reason='other'/>",
            "<Connect/>",
            "<Connect action='/a'><Stream url='wss://a.example/s'/></Connect>",
            "<Dial>+14155550199</Dial>",
            "<Dial timeout='0'><Number>+1</Number></Dial>",
            "<Dial><Number>+1</Number><Number>+2</Number></Dial>",
            stream("url='wss://a.example/s' token='a'"),
            stream("url='wss://a.example/s'", "<Parameter name='a'/>"),
            stream("url='wss://a.example/s'", f"<Parameter name='a' value='{'b' * 500}'/>"),
        ],
    )
    def test_what_is_not_known_or_not_allowed(self, inside: str) -> None:
        assert refused(inside) == 12200

    @pytest.mark.parametrize(
        ("attributes", "code"),
        [
            ("url='https://a.example/s'", 31922),
            ("url='ws://a.example/s'", 31922),
            ("url='/s'", 31922),
            ("", 31922),
            ("url='wss://a.example/s?token=a'", 31923),
            ("url='wss:///s'", 31923),
            ("url='wss://a.example/s' track='both_tracks'", 31941),
        ],
    )
    def test_streams(self, attributes: str, code: int) -> None:
        assert refused(stream(attributes)) == code
