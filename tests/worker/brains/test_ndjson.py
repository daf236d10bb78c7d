"""Newline-delimited JSON reads the same whatever way its bytes are split."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.brains.ndjson import NdjsonParser, parse_object
from worker.brains.webhook_reply import Reply, ReplyDecoder

pytestmark = pytest.mark.unit

OBJECTS = st.dictionaries(
    st.text(max_size=5), st.text(max_size=20) | st.integers() | st.booleans() | st.none()
)
LINES = st.one_of(
    OBJECTS.map(lambda value: json.dumps(value, ensure_ascii=False).encode(errors="replace")),
    st.sampled_from([b"", b"  ", b"[1]", b"7", b"{", b'{"a": ', b"\xff\xfe", b"null", b"\xc3"]),
    st.binary(max_size=20),
)


def parsed(pieces: list[bytes], limit: int = 64 * 1024) -> tuple[list[dict[str, Any]], int]:
    parser = NdjsonParser(limit)
    found = [value for piece in pieces for value in parser.feed(piece)]
    return found + parser.finish(), parser.skipped


@settings(deadline=None)
@given(st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n"])), max_size=4), LINES)
@example([('{"text": "Grüße, 世界 🎉"}'.encode(), b"\r\n")], b'{"text": "end"}')
def test_a_split_at_any_byte_changes_nothing(lines: list[tuple[bytes, bytes]], last: bytes) -> None:
    body = b"".join(line + end for line, end in lines) + last
    whole = parsed([body])
    for position in range(len(body) + 1):
        assert parsed([body[:position], body[position:]]) == whole
    assert parsed([body[i : i + 1] for i in range(len(body))]) == whole


@settings(deadline=None)
@given(st.lists(OBJECTS), st.booleans())
def test_every_object_is_found(values: list[dict[str, Any]], newline_at_end: bool) -> None:
    body = "\r\n".join(json.dumps(value) for value in values).encode()
    assert parsed([body + b"\n" * newline_at_end]) == (values, 0)


def test_a_malformed_line_costs_itself() -> None:
    body = b'{"a": 1}\n{"a": \n[2]\n"x"\n\xff\n\n{"a": 3}'
    assert parsed([body]) == ([{"a": 1}, {"a": 3}], 4)


def test_an_over_long_line_is_skipped_and_not_kept() -> None:
    parser = NdjsonParser(100)
    parser.feed(b'{"a": 1}\n{"a": "')
    for _ in range(1_000):
        parser.feed(b"x" * 1_000)
        assert len(parser._line) <= 100
    assert parser.feed(b'"}\n{"a": 2}\n') == [{"a": 2}]
    assert parser.skipped == 1


@pytest.mark.parametrize(
    "text", [b"[" * 50_000, b'{"a":' * 20_000, b'{"a": ' + b"9" * 5_000 + b"}"]
)
def test_hostile_json_is_no_object(text: bytes) -> None:
    assert parse_object(text) is None


class TestReply:
    """The replies that a webhook's answer contains."""

    def decoded(self, body: bytes, type: str = "application/x-ndjson") -> list[Reply]:
        decoder = ReplyDecoder(type)
        return decoder.feed(body) + decoder.finish()

    @pytest.mark.parametrize(
        "type", ["application/json", "application/x-ndjson", "text/plain", "application/jsonl"]
    )
    def test_objects_whatever_they_are_called(self, type: str) -> None:
        body = b'{"text": "One.", "interim": true}\n{"text": "Two.", "hangup": true}\n'
        one, two = self.decoded(body, type)
        assert (one.text, one.interim, two.text, two.interim, two.hangup) == (
            "One.",
            True,
            "Two.",
            None,
            True,
        )

    def test_the_first_line_is_a_reply_before_the_second_comes(self) -> None:
        for type in ("application/json", "application/x-ndjson"):
            decoder = ReplyDecoder(type)
            assert decoder.feed(b'\r\n{"text": "One.", "inter') == []
            (reply,) = decoder.feed(b'im": true}\n')
            assert reply.text == "One."

    @settings(deadline=None)
    @given(
        st.lists(
            st.fixed_dictionaries({"text": st.text(max_size=10), "interim": st.booleans()}),
            max_size=4,
        ),
        st.sampled_from(["application/json", "application/x-ndjson"]),
    )
    def test_a_split_at_any_byte_changes_nothing(
        self, chunks: list[dict[str, Any]], type: str
    ) -> None:
        body = "\n".join(json.dumps(chunk, ensure_ascii=False) for chunk in chunks).encode()
        whole = self.decoded(body, type)
        assert [reply.interim for reply in whole] == [chunk["interim"] for chunk in chunks]
        for position in range(len(body) + 1):
            decoder = ReplyDecoder(type)
            found = decoder.feed(body[:position]) + decoder.feed(body[position:])
            assert found + decoder.finish() == whole

    def test_one_object_over_several_lines(self) -> None:
        body = json.dumps({"text": "Hello.", "digits": "1#"}, indent=2).encode()
        for position in range(len(body)):
            decoder = ReplyDecoder("application/json")
            found = decoder.feed(body[:position]) + decoder.feed(body[position:])
            (reply,) = found + decoder.finish()
            assert (reply.text, reply.digits) == ("Hello.", "1#")

    @pytest.mark.parametrize(
        "body", [b"", b" \n", b"[]", b'"Hello"', b"<html>", b"{}", b'{"ok":1}']
    )
    def test_what_is_none(self, body: bytes) -> None:
        for type in ("application/json", "application/x-ndjson", "text/html"):
            assert self.decoded(body, type) == []

    @pytest.mark.parametrize("name", ["digits", "press_digit", "dtmf"])
    @pytest.mark.parametrize("keys", ["12#", 12])
    def test_digits_by_each_of_their_names(self, name: str, keys: object) -> None:
        (reply,) = self.decoded(json.dumps({name: keys}).encode())
        assert reply.digits == str(keys)

    def test_a_wrong_type_costs_its_line(self) -> None:
        body = b'{"text": 7}\n{"text": "a", "interim": "maybe"}\n{"digits": true}\n{"text": "b"}'
        decoder = ReplyDecoder("application/x-ndjson")
        replies = decoder.feed(body) + decoder.finish()
        assert [reply.text for reply in replies] == ["b"]
        assert decoder.skipped == 3

    def test_nothing_unspeakable_is_left(self) -> None:
        (reply,) = self.decoded(rb'{"text": "a\u0000b\ud800c\nd"}')
        assert reply.text == "a b c d"
