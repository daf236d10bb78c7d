"""The parts of a stream without I/O: WebSocket frames, messages, the queue, the network."""

from __future__ import annotations

import json

import pytest

from dev.standins.twilio import Network
from dev.standins.twilio.errors import Fault
from dev.standins.twilio.media import frames
from dev.standins.twilio.media.frames import Decoder, Frame
from dev.standins.twilio.media.messages import Clear, Mark, Media, Writer, parse
from dev.standins.twilio.media.network import Wire
from dev.standins.twilio.media.playout import Playout

pytestmark = pytest.mark.unit

SID = "MZ" + "0" * 32


class TestFrames:
    # RFC 6455 §5.7.
    def test_the_examples_of_the_rfc(self) -> None:
        assert Decoder().feed(b"\x81\x05Hello") == [Frame(frames.TEXT, b"Hello")]
        fragments = b"\x01\x03Hel\x80\x02lo"
        assert Decoder().feed(fragments) == [Frame(frames.TEXT, b"Hello")]
        assert Decoder().feed(b"\x89\x05Hello") == [Frame(frames.PING, b"Hello")]
        long = b"\x82\x7e\x01\x00" + bytes(256)
        assert Decoder().feed(long) == [Frame(frames.BINARY, bytes(256))]
        longer = b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + bytes(65536)
        assert Decoder().feed(longer) == [Frame(frames.BINARY, bytes(65536))]

    def test_bytes_come_in_any_pieces(self) -> None:
        decoder = Decoder()
        got = [
            frame for byte in b"\x81\x02ab\x88\x02\x03\xe8" for frame in decoder.feed(bytes([byte]))
        ]
        assert got == [Frame(frames.TEXT, b"ab"), Frame(frames.CLOSE, b"\x03\xe8")]

    def test_a_ping_may_come_between_fragments(self) -> None:
        got = Decoder().feed(b"\x01\x01a\x89\x00\x80\x01b")
        assert got == [Frame(frames.PING, b""), Frame(frames.TEXT, b"ab")]

    @pytest.mark.parametrize(
        "data",
        [
            b"\x81\x81\x00\x00\x00\x00a",  # masked
            b"\xc1\x01a",  # a reserved bit
            b"\x09\x00",  # a ping in fragments
            b"\x89\x7e\x00\x7e",  # a ping of 126 bytes
            b"\x80\x01a",  # the end of nothing
            b"\x01\x01a\x81\x01b",  # a message inside another
            b"\x83\x00",  # an unknown opcode
            b"\x82\x7f\x00\x00\x00\x00\x00\x20\x00\x00",  # 2 MiB
        ],
    )
    def test_violations_are_errors(self, data: bytes) -> None:
        with pytest.raises(Fault) as refused:
            Decoder().feed(data + bytes(200))
        assert refused.value.code == 31924

    @pytest.mark.parametrize(
        ("size", "head"),
        [(5, b"\x81\x85"), (126, b"\x81\xfe\x00\x7e"), (65536, b"\x81\xff" + b"\0\0\0\0\0\1\0\0")],
    )
    def test_sent_frames_are_masked(self, size: int, head: bytes) -> None:
        assert frames.encode(frames.TEXT, b"x" * size) == head + bytes(4) + b"x" * size

    def test_a_close_frame_has_its_code(self) -> None:
        assert frames.close(1000) == b"\x88\x82\0\0\0\0\x03\xe8"


class TestMessages:
    def test_a_media_message(self) -> None:
        writer = Writer("AC1", "CA1", SID)
        writer.start({})
        assert json.loads(writer.media(1, 0, "/////w==")) == {
            "event": "media",
            "sequenceNumber": "2",
            "media": {"track": "inbound", "chunk": "1", "timestamp": "0", "payload": "/////w=="},
            "streamSid": SID,
        }

    def test_what_a_server_may_send(self) -> None:
        end = f'"streamSid":"{SID}"}}'
        media = '{"event":"media","media":{"payload":"f3+A"},'
        assert parse(media + end, SID) == Media(b"\x7f\x7f\x80")
        assert parse('{"event":"mark","mark":{"name":"g1"},' + end, SID) == Mark("g1")
        assert parse('{"event":"clear",' + end, SID) == Clear()

    @pytest.mark.parametrize(
        "message",
        [
            "",
            "[1]",
            "[" * 100_000,
            '{"event":"clear"}',
            '{"event":"clear","streamSid":"MZ1"}',
            *(
                text.replace("}", f',"streamSid":"{SID}"}}')
                for text in (
                    '{"event":"stop"}',
                    '{"event":"media"}',
                    '{"event":"media","media":7}',
                    '{"event":"mark","mark":"g1"}',
                )
            ),
            f'{{"event":"media","media":{{"payload":"a!=="}},"streamSid":"{SID}"}}',
            f'{{"event":"media","media":{{"payload":""}},"streamSid":"{SID}"}}',
            f'{{"event":"mark","mark":{{"name":""}},"streamSid":"{SID}"}}',
        ],
    )
    def test_anything_else_is_a_protocol_error(self, message: str) -> None:
        with pytest.raises(Fault) as refused:
            parse(message, SID)
        assert refused.value.code == 31924


class TestPlayout:
    def test_frames_come_in_order_and_the_last_may_be_short(self) -> None:
        playout = Playout()
        playout.add(b"a" * 200)
        playout.add(b"b" * 30)
        assert [playout.take() for _ in range(3)] == [b"a" * 160, b"a" * 40 + b"b" * 30, b""]
        assert playout.longest_ms == 230 / 8

    def test_a_mark_waits_for_the_end_of_its_frame(self) -> None:
        playout = Playout()
        assert playout.mark("empty") == ["empty"]
        playout.add(bytes(160))
        assert playout.mark("behind") == []
        playout.take()
        assert playout.mark("too") == [] and playout.outstanding == 2
        assert playout.finish_frame() == ["behind", "too"]

    def test_marks_in_the_middle(self) -> None:
        playout = Playout()
        playout.add(bytes(80))
        playout.mark("half")
        playout.add(bytes(160))
        playout.mark("end")
        playout.take()
        assert playout.finish_frame() == ["half"]
        playout.take()
        assert playout.finish_frame() == ["end"]

    def test_clear_returns_all_marks_and_begins_anew(self) -> None:
        playout = Playout()
        playout.add(bytes(320))
        playout.take()
        assert [playout.mark("a"), playout.mark("b")] == [[], []]
        assert playout.clear() == ["a", "b"] and playout.queued_ms == 0
        assert playout.finish_frame() == []
        playout.add(bytes(160))
        playout.mark("c")
        playout.take()
        assert playout.finish_frame() == ["c"]


class TestNetwork:
    def carried(self, network: Network, count: int = 1000) -> list[int]:
        wire = Wire(network)
        return [int(each) for number in range(count) for each in wire.carry(str(number))]

    def test_a_perfect_network(self) -> None:
        assert self.carried(Network()) == list(range(1000))

    def test_loss_is_that_percentage_and_repeatable(self) -> None:
        got = self.carried(Network(loss=10, seed=1))
        assert got == sorted(set(got)) and 870 < len(got) < 930
        assert got == self.carried(Network(loss=10, seed=1))
        assert got != self.carried(Network(loss=10, seed=2))

    def test_duplicates_follow_each_other(self) -> None:
        got = self.carried(Network(duplicates=10))
        assert sorted(set(got)) == list(range(1000)) and got == sorted(got)
        assert 70 < len(got) - 1000 < 130

    def test_reordering_swaps_neighbours(self) -> None:
        got = self.carried(Network(reordering=10))
        swapped = [at for at in range(999) if got[at] > got[at + 1]]
        assert 70 < len(swapped) < 130
        assert all(got[at] == got[at + 1] + 1 for at in swapped)
        assert len(got) - len(set(got)) == 0 and len(got) >= 999
