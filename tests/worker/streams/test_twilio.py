"""worker.streams.twilio with the messages of Twilio's documentation, and with hostile ones."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.streams.hostile import not_objects, replaced
from worker.streams.messages import Dtmf, Echo, Malformed, Unknown
from worker.streams.twilio import (
    MAX_CHARS,
    Connected,
    Inbound,
    Media,
    Outbound,
    Start,
    Stop,
    parse,
)

pytestmark = pytest.mark.unit

SID = "MZ18ad3ab5a668481ce02b83e7395059f0"
START: dict[str, Any] = {
    "event": "start",
    "sequenceNumber": "1",
    "start": {
        "accountSid": "AC00000000000000000000000000000000",
        "streamSid": SID,
        "callSid": "CA00000000000000000000000000000000",
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": {"token": "a.b.c", "empty": ""},
    },
    "streamSid": SID,
}
MEDIA: dict[str, Any] = {
    "event": "media",
    "sequenceNumber": "3",
    "media": {"track": "inbound", "chunk": "1", "timestamp": "5", "payload": "fn//AA=="},
    "streamSid": SID,
}
DTMF: dict[str, Any] = {
    "event": "dtmf",
    "streamSid": SID,
    "sequenceNumber": "5",
    "dtmf": {"track": "inbound_track", "digit": "#"},
}
MARK: dict[str, Any] = {
    "event": "mark",
    "sequenceNumber": "4",
    "streamSid": SID,
    "mark": {"name": "g3.17"},
}
STOP: dict[str, Any] = {
    "event": "stop",
    "sequenceNumber": "5",
    "streamSid": SID,
    "stop": {"accountSid": "AC0", "callSid": "CA0"},
}


def test_the_documented_messages() -> None:
    assert parse('{"event":"connected","protocol":"Call","version":"1.0.0"}') == Connected()
    assert parse(json.dumps(START)) == Start(
        stream_sid=SID,
        call_sid="CA00000000000000000000000000000000",
        account_sid="AC00000000000000000000000000000000",
        parameters={"token": "a.b.c", "empty": ""},
    )
    assert parse(json.dumps(MEDIA)) == Media(1, 5, b"\x7e\x7f\xff\x00")
    assert parse(json.dumps(DTMF)) == Dtmf("#")
    assert parse(json.dumps(MARK)) == Echo("g3.17")
    assert parse(json.dumps(STOP)) == Stop()


def test_numbers_are_strings_or_numbers() -> None:
    media = {**MEDIA["media"], "chunk": 7, "timestamp": 125}
    assert parse(json.dumps({**MEDIA, "media": media})) == Media(7, 125, b"\x7e\x7f\xff\x00")
    audio = {"encoding": "audio/x-mulaw", "sampleRate": "8000", "channels": "1"}
    start = {**START["start"], "mediaFormat": audio}
    assert isinstance(parse(json.dumps({**START, "start": start})), Start)


def test_unknown_events_and_fields_are_tolerated() -> None:
    assert parse('{"event":"video","video":{}}') == Unknown("video")
    assert parse(json.dumps({**STOP, "new": {"deep": [1.5, None]}, "sequenceNumber": []})) == Stop()
    outbound = {**MEDIA["media"], "track": "outbound"}
    assert parse(json.dumps({**MEDIA, "media": outbound})) == Unknown("media")
    start = {key: value for key, value in START["start"].items() if key != "customParameters"}
    parsed = parse(json.dumps({**START, "start": start}))
    assert isinstance(parsed, Start) and parsed.parameters == {}


def test_a_message_of_the_longest_payload_is_taken() -> None:
    media = {**MEDIA["media"], "payload": base64.b64encode(bytes(8000)).decode()}
    parsed = parse(json.dumps({**MEDIA, "media": media}))
    assert isinstance(parsed, Media) and len(parsed.payload) == 8000


BAD_PARAMETERS: list[Any] = [
    None, [], "x", {"a": 1}, {"a": None}, {"": "x"}, {"a\0": "x"}, {"a": "\0"}, {"a" * 65: "x"},
    {"a": "x" * 4097}, {"a": {}},
]  # fmt: skip
FIELDS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    (MEDIA, ("event",)),
    (MEDIA, ("media",)),
    *[(MEDIA, ("media", field)) for field in ("track", "chunk", "timestamp", "payload")],
    (START, ("start",)),
    *[(START, ("start", field)) for field in ("streamSid", "callSid", "accountSid")],
    (START, ("start", "mediaFormat")),
    *[(START, ("start", "mediaFormat", f)) for f in ("encoding", "sampleRate", "channels")],
    (DTMF, ("dtmf",)),
    (DTMF, ("dtmf", "digit")),
    (MARK, ("mark",)),
    (MARK, ("mark", "name")),
]


def with_payload(payload: str) -> str:
    return json.dumps({**MEDIA, "media": {**MEDIA["media"], "payload": payload}})


MALFORMED = [
    *not_objects(),
    *[text for message, path in FIELDS for text in replaced(message, path)],
    *[
        with_payload(payload)
        for payload in ("", "=", "A", "AA", "AAA", "A===", "AA==AA==", "AAAA\n", " AAAA", "AA-_",
                        "ÄAAA", "A" * 10_672, "AAAA=")
    ],
    *[
        json.dumps({**MEDIA, "media": {**MEDIA["media"], field: number}})
        for field in ("chunk", "timestamp")
        for number in ("", "-1", "+1", "1.0", "1e3", "0x1", " 1", "1_0", "٣", "²", "9" * 5_000, "a")
    ],
    *[json.dumps({**DTMF, "dtmf": {"digit": digit}}) for digit in ("", "12", "E", "a", " ", "１")],
    *[
        json.dumps({**START, "start": {**START["start"], "customParameters": parameters}})
        for parameters in BAD_PARAMETERS
    ],
    json.dumps({**STOP, "padding": "x" * MAX_CHARS}),
]  # fmt: skip


@pytest.mark.attack
@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
def test_anything_else_is_malformed(text: str) -> None:
    with pytest.raises(Malformed) as error:
        parse(text)
    assert len(str(error.value)) < 40  # a field's name, never what came from outside


def test_there_are_enough_of_them() -> None:
    assert len(MALFORMED) >= 200


@pytest.mark.attack
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from([START, MEDIA, DTMF, MARK, STOP]),
)
def test_any_json_is_a_message_or_malformed(value: Any, message: dict[str, Any]) -> None:
    event = message["event"]
    for text in (json.dumps(value), json.dumps({"event": event, event: value})):
        try:
            parse(text)
        except Malformed:
            pass


class TestOutbound:
    def test_messages(self) -> None:
        outbound = Outbound(SID)
        assert json.loads(outbound.media(b"\x7e\x7f\xff\x00")) == {
            "event": "media", "streamSid": SID, "media": {"payload": "fn//AA=="}
        }  # fmt: skip
        assert json.loads(outbound.mark("g3.17")) == {
            "event": "mark", "streamSid": SID, "mark": {"name": "g3.17"}
        }  # fmt: skip
        assert outbound.clear() == f'{{"event":"clear","streamSid":"{SID}"}}'

    @pytest.mark.attack
    def test_a_stream_sid_cannot_break_out(self) -> None:
        outbound = Outbound('x","event":"stop')
        for text in (outbound.media(b"a"), outbound.mark('n"}'), outbound.clear()):
            assert json.loads(text)["streamSid"] == 'x","event":"stop'
        assert json.loads(outbound.mark('n"}'))["mark"] == {"name": 'n"}'}


def frame(chunk: int, timestamp_ms: int, sample: bytes = b"a") -> Media:
    return Media(chunk, timestamp_ms, sample * 160)


class TestInbound:
    def test_frames_in_order_pass_as_they_are(self) -> None:
        inbound = Inbound()
        for chunk in range(40, 50):
            assert inbound.push(frame(chunk, chunk * 20 + 5)) == b"a" * 160
        assert (inbound.late, inbound.gaps) == (0, 0)

    def test_duplicates_and_late_frames_are_dropped(self) -> None:
        inbound = Inbound()
        inbound.push(frame(5, 100))
        assert inbound.push(frame(5, 100)) == b"" and inbound.push(frame(4, 80)) == b""
        assert inbound.push(frame(6, 120)) == b"a" * 160
        assert (inbound.late, inbound.gaps) == (2, 0)

    @pytest.mark.parametrize(
        ("chunk", "timestamp_ms", "silence_ms"),
        [
            (2, 25, 0),
            (2, 44, 0),  # jitter of the timestamp is no gap
            (2, 15, 0),
            (2, 45, 20),
            (2, 85, 60),
            (4, 65, 40),
            (4, 25, 40),
            (12, 225, 200),
            (13, 245, 200),
            (10**14, 10**14, 200),
        ],
    )
    def test_a_gap_is_filled_up_to_200_ms(
        self, chunk: int, timestamp_ms: int, silence_ms: int
    ) -> None:
        inbound = Inbound()
        inbound.push(frame(1, 5))
        expected = b"\xff" * 8 * silence_ms + b"b" * 160
        assert inbound.push(frame(chunk, timestamp_ms, b"b")) == expected
        assert inbound.gaps == (silence_ms > 0)

    @pytest.mark.parametrize("ppm", [-300, 300])
    def test_a_drifting_clock_is_no_gap(self, ppm: int) -> None:
        inbound = Inbound()
        heard = sum(
            len(inbound.push(frame(chunk, round(chunk * 20 * (1 + ppm / 1e6)))))
            for chunk in range(1, 30_001)
        )
        assert heard == 30_000 * 160
