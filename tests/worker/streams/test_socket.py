"""worker.streams.socket: our protocol's messages, and hostile ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.streams.messages import Format, SocketAttach
from tests.worker.streams.hostile import not_objects, replaced
from worker.line import KEYS
from worker.streams.messages import Dtmf, Echo, Malformed, Unknown
from worker.streams.socket import (
    MAX_CHARS,
    End,
    Interrupt,
    Ping,
    ServerEvents,
    Text,
    ToolResult,
    decode_audio,
    encode_audio,
    parse,
    silence,
)
from worker.streams.socket_wire import SocketWire

pytestmark = pytest.mark.unit

PCM = Format()
MULAW = Format(encoding="audio/x-mulaw", sample_rate=8000)


def test_a_clients_messages() -> None:
    assert parse('{"type":"text","text":"Hello,\\nit is me 👋"}') == Text("Hello,\nit is me 👋")
    assert [parse(json.dumps({"type": "dtmf", "digit": key})) for key in KEYS] == [
        Dtmf(key) for key in KEYS
    ]
    assert parse('{"type":"interrupt"}') == Interrupt()
    assert parse('{"type":"mark","name":"g3.17"}') == Echo("g3.17")
    assert parse('{"type":"tool_result","id":"call_1","result":{"a":1}}') == ToolResult("call_1")
    assert parse('{"type":"ping"}') == Ping()
    assert parse('{"type":"end"}') == End()


def test_unknown_types_and_fields_are_tolerated() -> None:
    assert parse('{"type":"video","frame":[]}') == Unknown("video")
    assert parse('{"type":"ping","at":1.5,"type2":null}') == Ping()


def test_the_longest_text_is_taken() -> None:
    assert parse(json.dumps({"type": "text", "text": "ä" * 2000})) == Text("ä" * 2000)


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"type": "ping"}, "type"),
    ({"type": "text", "text": "Hello"}, "text"),
    ({"type": "dtmf", "digit": "1"}, "digit"),
    ({"type": "mark", "name": "g0.1"}, "name"),
    ({"type": "tool_result", "id": "call_1"}, "id"),
    ({"type": "mark", "name": "g0.1", "extra": [1]}, "type"),
    ({"type": "end"}, "type"),
]
# Free text may have line breaks, and what is not printable.
ALLOWED = {json.dumps({"type": "text", "text": value}) for value in
           ("\x1b[2J", "\r\nx: y", "\u202e1")}  # fmt: skip
BAD_TYPES: list[Any] = ["", "x" * 65, "a\0", "a\nb", "\ud800", 1, None, [], {}]
MALFORMED = [
    *not_objects(),
    *[
        text
        for message, field in FIELDS
        for text in replaced(message, (field,))
        if text not in ALLOWED
    ],
    *[
        json.dumps({"type": "text", "text": text})
        for text in ("", " ", "\n\t", "\u2003", "x" * 2001, "a\0", "\udfff", "ok \ud83d")
    ],
    *[
        json.dumps({"type": "dtmf", "digit": digit})
        for digit in ("", "12", "0123456789*#ABCD", "E", "a", " ", "１", "*#", 1, 10)
    ],
    *[
        json.dumps({"type": kind, field: value})
        for kind, field in (("mark", "name"), ("tool_result", "id"))
        for value in ("", "x" * 65, "a\nb", "a\tb", "\x7f", "\u2028", "a\0", 0, {"name": "a"})
    ],
    *[json.dumps({"type": kind}) for kind in BAD_TYPES],
    *[
        json.dumps(message)
        for message in (
            [{"type": "ping"}],
            {"message": {"type": "ping"}},
            {"type": {"type": "ping"}},
            {"type": ["ping", "end"]},
            {"type": "text", "digit": "1"},
            {"type": "dtmf", "text": "1"},
            {"type": "dtmf", "key": "1"},
            {"type": "mark", "mark": {"name": "g0.1"}},
            {"type": "tool_result", "toolCallId": "call_1"},
            {"type": "text", "text": ["Hello"]},
        )
    ],
    *[json.dumps({kind: "ping"}) for kind in ("event", "Type", "TYPE", "type ", "")],
    json.dumps({"type": "ping", "padding": "x" * MAX_CHARS}),
]


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
    st.sampled_from(["text", "dtmf", "mark", "tool_result", "interrupt", "x"]),
    st.dictionaries(
        st.sampled_from(["text", "digit", "name", "id"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()),
    ),
)
def test_any_json_is_a_message_or_malformed(kind: str, fields: dict[str, Any]) -> None:
    try:
        parse(json.dumps({"type": kind, **fields}))
    except Malformed:
        pass


class TestAudio:
    def test_pcm_is_little_endian(self) -> None:
        pcm = decode_audio(b"\x01\x00\xff\xff\x00\x80", PCM)
        assert pcm.tolist() == [1, -1, -32768] and pcm.dtype == np.int16
        assert encode_audio(pcm, PCM) == b"\x01\x00\xff\xff\x00\x80"

    def test_mulaw(self) -> None:
        pcm = decode_audio(b"\xff\x00\x80", MULAW)
        assert pcm.tolist() == [0, -32124, 32124]
        assert encode_audio(pcm, MULAW) == b"\xff\x00\x80"

    def test_silence_is_one_sample(self) -> None:
        assert decode_audio(silence(PCM), PCM).tolist() == [0]
        assert decode_audio(silence(MULAW), MULAW).tolist() == [0]

    @pytest.mark.attack
    @pytest.mark.parametrize(
        ("size", "audio", "fits"),
        [
            (0, PCM, False),
            (1, PCM, False),
            (641, PCM, False),
            (32_000, PCM, True),
            (32_002, PCM, False),
            (0, MULAW, False),
            (8_000, MULAW, True),
            (8_001, MULAW, False),
        ],
    )
    def test_a_frame_is_whole_samples_of_at_most_a_second(
        self, size: int, audio: Format, fits: bool
    ) -> None:
        if fits:
            decode_audio(bytes(size), audio)
        else:
            with pytest.raises(Malformed):
                decode_audio(bytes(size), audio)


class TestServerEvents:
    def test_every_event(self) -> None:
        events = ServerEvents()
        rendered = [
            events.ready(
                session_id="call_1", call_id="call_1", input=PCM, output=MULAW, resume_token="t"
            ),
            events.transcript("user", "Grüße", final=False),
            events.state("thinking"),
            events.mark("g0.1"),
            events.clear(420, "Hello, my"),
            events.tool_call("c1", "lookup", {"id": 7}),
            events.error("NO_SUCH_TOOL_CALL", "Tools run on the server."),
            events.pong(),
            events.ended("user_hangup"),
        ]
        assert [json.loads(text) for text in rendered] == [
            {"type": "ready", "seq": 1, "sessionId": "call_1", "callId": "call_1",
             "input": {"encoding": "pcm_s16le", "sampleRate": 16000},
             "output": {"encoding": "audio/x-mulaw", "sampleRate": 8000}, "resumeToken": "t"},
            {"type": "transcript", "seq": 2, "role": "user", "text": "Grüße", "final": False},
            {"type": "state", "seq": 3, "state": "thinking"},
            {"type": "mark", "seq": 4, "name": "g0.1"},
            {"type": "clear", "seq": 5, "audioEndMs": 420, "text": "Hello, my"},
            {"type": "tool_call", "seq": 6, "id": "c1", "name": "lookup", "arguments": {"id": 7}},
            {"type": "error", "seq": 7, "code": "NO_SUCH_TOOL_CALL",
             "message": "Tools run on the server."},
            {"type": "pong", "seq": 8},
            {"type": "ended", "seq": 9, "reason": "user_hangup"},
        ]  # fmt: skip

    def test_a_resumed_client_gets_what_it_missed(self) -> None:
        events = ServerEvents()
        texts = [events.state(str(number)) for number in range(5)]
        assert events.since(0) == texts and events.since(3) == texts[3:]
        assert events.since(5) == [] and events.since(10**12) == []

    def test_what_concerns_one_socket_is_not_repeated(self) -> None:
        events = ServerEvents()
        events.ready(session_id="s", call_id="s", input=PCM, output=PCM, resume_token="secret")
        events.mark("g0.1")
        events.clear(0, "")
        events.pong()
        events.error("X", "x")
        assert events.since(0) == []
        assert json.loads(events.state("listening"))["seq"] == 6

    def test_the_history_is_bounded(self) -> None:
        events = ServerEvents(max_events=3, max_chars=200)
        texts = [events.state(str(number)) for number in range(5)]
        assert events.since(0) == texts[2:]
        last = events.transcript("agent", "x" * 100, final=True)
        assert events.since(0) == [texts[4], last] or events.since(0) == [last]
        assert sum(map(len, events.since(0))) <= 200
        events.transcript("agent", "x" * 300, final=True)
        assert events.since(0) == []

    def test_a_lone_surrogate_can_be_sent(self) -> None:
        ServerEvents().transcript("agent", "\ud83d", final=True).encode()


def test_a_socket_that_resumes_is_told_in_the_order_of_seq() -> None:
    """What it missed comes first: ``ready`` has a later number."""
    attach = SocketAttach(token="t", resume_token="next", resume=True, last_seq=1)
    wire = SocketWire("call_1", attach)
    wire.attached(attach.model_copy(update={"resume": False}))
    for state in ("listening", "thinking"):
        wire.event("state", {"state": state})
    wire.event("pong", {})
    told = [json.loads(frame) for frame in wire.attached(attach)]
    assert [(event["type"], event["seq"]) for event in told] == [
        ("state", 2),
        ("state", 3),
        ("ready", 5),
    ]
