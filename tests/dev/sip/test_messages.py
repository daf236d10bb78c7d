"""dev.sip.messages: SIP messages are parsed, refused and written, byte by byte."""

import pytest
from aiosipua.message import SipRequest, SipResponse

from dev.sip import messages
from dev.sip.messages import MalformedMessage

pytestmark = pytest.mark.unit

INVITE = (
    b"INVITE sip:+15550100@127.0.0.1:5070;transport=udp SIP/2.0\r\n"
    b"Via: SIP/2.0/UDP 192.0.2.9:5066;branch=z9hG4bKabc;rport\r\n"
    b"Max-Forwards: 70\r\n"
    b'From: "Ann, of Ours" <sip:+15105550123@192.0.2.9>;tag=a1\r\n'
    b"To: <sip:+15550100@127.0.0.1>\r\n"
    b"Call-ID: c1@192.0.2.9\r\n"
    b"CSeq: 1 INVITE\r\n"
    b"Contact: <sip:ann@192.0.2.9:5066>\r\n"
    b"Content-Length: 4\r\n"
    b"\r\n"
    b"v=0\n"
)


def invite(*changes: tuple[bytes, bytes]) -> SipRequest:
    data = INVITE
    for old, new in changes:
        assert old in data
        data = data.replace(old, new)
    message = messages.parse(data)
    assert isinstance(message, SipRequest)
    return message


class TestParse:
    def test_a_request(self) -> None:
        request = invite()
        assert (request.method, request.uri) == (
            "INVITE",
            "sip:+15550100@127.0.0.1:5070;transport=udp",
        )
        assert request.call_id == "c1@192.0.2.9"
        assert request.from_addr is not None and request.from_addr.uri.user == "+15105550123"
        assert request.body == b"v=0\n"
        assert messages.to_tag(request) is None

    def test_a_response(self) -> None:
        data = INVITE.replace(
            b"INVITE sip:+15550100@127.0.0.1:5070;transport=udp SIP/2.0",
            b"SIP/2.0 486 Busy Here",
        ).replace(b"To: <sip:+15550100@127.0.0.1>", b"To: <sip:+15550100@127.0.0.1>;tag=b2")
        response = messages.parse(data)
        assert isinstance(response, SipResponse)
        assert (response.status_code, response.reason_phrase) == (486, "Busy Here")
        assert messages.to_tag(response) == "b2"

    def test_folded_headers_are_one_line(self) -> None:
        request = invite((b"CSeq: 1 INVITE\r\n", b"CSeq: 1\r\n  INVITE\r\nSubject: a\r\n\tb\r\n"))
        assert request.cseq is not None and request.cseq.method == "INVITE"
        assert request.get_header("Subject") == "a b"

    def test_compact_forms_are_read_as_long_ones(self) -> None:
        request = invite(
            (b"Via:", b"v:"),
            (b"From:", b"f:"),
            (b"To:", b"t:"),
            (b"Call-ID:", b"i:"),
            (b"Contact:", b"m:"),
            (b"Content-Length:", b"l:"),
            (b"Max-Forwards: 70", b"r: <tel:+15550111>"),
        )
        assert request.call_id == "c1@192.0.2.9"
        assert request.get_header("Refer-To") == "<tel:+15550111>"
        assert b"\r\nRefer-To: <tel:+15550111>\r\n" in bytes(request)

    def test_names_are_of_any_case(self) -> None:
        request = invite((b"Call-ID:", b"CALL-id :"), (b"Via:", b"via:"))
        assert request.call_id == "c1@192.0.2.9"
        assert messages.headers_of(request)["cseq"] == "1 INVITE"

    def test_several_vias_on_one_line_are_several(self) -> None:
        request = invite((b";rport\r\n", b";rport, SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKx\r\n"))
        assert [via.host for via in request.via] == ["192.0.2.9", "192.0.2.1"]

    def test_a_comma_in_a_display_name_is_no_separator(self) -> None:
        assert messages.uri_of(invite().get_header("From") or "").host == "192.0.2.9"

    def test_bytes_past_the_content_length_are_not_the_body(self) -> None:
        assert invite((b"v=0\n", b"v=0\ngarbage")).body == b"v=0\n"

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"hello",
            b"\x00\x01\x02\x80rtp",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            INVITE.replace(b" SIP/2.0\r\n", b" SIP/3.0\r\n"),
            INVITE.replace(b"INVITE sip", b"INVITE  sip"),
            INVITE.replace(b"Call-ID: c1@192.0.2.9\r\n", b""),
            INVITE.replace(b"CSeq: 1 INVITE\r\n", b""),
            INVITE.replace(b"CSeq: 1 INVITE", b"CSeq: one INVITE"),
            INVITE.replace(b"CSeq: 1 INVITE", b"CSeq: 1"),
            INVITE.replace(b"Via: SIP/2.0/UDP 192.0.2.9:5066;branch=z9hG4bKabc;rport\r\n", b""),
            INVITE.replace(b"SIP/2.0/UDP 192.0.2.9:5066;", b"nonsense;"),
            b"SIP/2.0 abc Busy\r\n" + INVITE.split(b"\r\n", 1)[1],
            b"SIP/2.0 42 Answer\r\n" + INVITE.split(b"\r\n", 1)[1],
            b"SIP/2.0 200 OK\r\n\r\n",
        ],
    )
    def test_what_is_no_message_is_refused(self, data: bytes) -> None:
        with pytest.raises(MalformedMessage):
            messages.parse(data)


class TestReply:
    def test_it_repeats_what_identifies_the_request(self) -> None:
        response = bytes(messages.reply(invite(), 486, tag="t9"))
        assert response.startswith(b"SIP/2.0 486 Busy Here\r\n")
        for line in (
            b"Via: SIP/2.0/UDP 192.0.2.9:5066;branch=z9hG4bKabc;rport",
            b'From: "Ann, of Ours" <sip:+15105550123@192.0.2.9>;tag=a1',
            b"To: <sip:+15550100@127.0.0.1>;tag=t9",
            b"Call-ID: c1@192.0.2.9",
            b"CSeq: 1 INVITE",
            b"Content-Length: 0",
        ):
            assert b"\r\n" + line + b"\r\n" in response

    def test_a_tag_that_is_there_stays(self) -> None:
        request = invite((b"To: <sip:+15550100@127.0.0.1>", b"To: <sip:x@y>;tag=theirs"))
        assert messages.to_tag(messages.reply(request, 200, tag="ours")) == "theirs"

    def test_trying_has_no_tag(self) -> None:
        assert messages.to_tag(messages.reply(invite(), 100)) is None

    def test_a_line_break_cannot_be_smuggled_in(self) -> None:
        with pytest.raises(ValueError, match="line breaks"):
            messages.reply(invite(), 486, headers={"X-Why": "a\r\nX-More: b"})


class TestVia:
    SOURCE = ("127.0.0.1", 40000)
    OWN = ("127.0.0.1", 5070)

    def test_rport_is_filled_with_the_source(self) -> None:
        request = invite()
        messages.stamp_received(request, self.SOURCE)
        via = request.via[0]
        assert (via.received, via.rport, via.branch) == ("127.0.0.1", "40000", "z9hG4bKabc")
        assert messages.response_target(messages.reply(request, 200)) == self.SOURCE

    def test_without_rport_the_answer_goes_to_the_port_in_the_via(self) -> None:
        request = invite((b";rport", b""))
        messages.stamp_received(request, self.SOURCE)
        assert messages.response_target(messages.reply(request, 200)) == ("127.0.0.1", 5066)

    def test_an_honest_via_is_left_alone(self) -> None:
        request = invite((b";rport", b""))
        messages.stamp_received(request, ("192.0.2.9", 5066))
        assert request.via[0].received is None

    def test_a_cancel_gets_the_branch_of_its_invite_another_call_does_not(self) -> None:
        def branch(request: SipRequest) -> str | None:
            messages.stamp_received(request, self.SOURCE)
            messages.push_via(request, self.OWN)
            assert len(request.via) == 2
            return request.via[0].branch

        cancel = invite((b"INVITE sip", b"CANCEL sip"), (b"1 INVITE", b"1 CANCEL"))
        first = branch(invite())
        assert first is not None and first.startswith("z9hG4bK")
        assert branch(cancel) == first
        assert branch(invite((b"z9hG4bKabc", b"z9hG4bKother"))) != first

    def test_pop_gives_the_request_as_it_came(self) -> None:
        request = invite()
        messages.push_via(request, self.OWN)
        response = messages.reply(request, 200)
        messages.pop_via(response)
        assert response.headers.get("via") == invite().headers.get("via")


def test_the_port_of_an_sdp() -> None:
    request = invite()
    assert messages.audio_port(request) is None
    request.body = b"v=0\r\nm=video 9 RTP/AVP 96\r\nm=audio 49170 RTP/AVP 0 101\r\na=ptime:20\r\n"
    assert messages.audio_port(request) == 49170


class TestRoute:
    OWN = ("127.0.0.1", 5070)

    def test_own_routes_go_and_the_next_decides(self) -> None:
        request = invite(
            (
                b"Max-Forwards: 70\r\n",
                b"Route: <sip:127.0.0.1:5070;lr>, <sip:127.0.0.1:5080;lr>\r\n",
            )
        )
        messages.pop_own_routes(request, self.OWN)
        assert request.headers.get("route") == ["<sip:127.0.0.1:5080;lr>"]
        assert messages.next_hop(request) == ("127.0.0.1", 5080)

    def test_without_a_route_the_request_uri_decides(self) -> None:
        assert messages.next_hop(invite()) == ("127.0.0.1", 5070)
        plain = invite((b"127.0.0.1:5070;transport=udp", b"localhost"))
        assert messages.next_hop(plain) == ("127.0.0.1", 5060)

    def test_the_last_proxy_records_itself_first(self) -> None:
        request = invite()
        messages.push_record_route(request, ("127.0.0.1", 1))
        messages.push_record_route(request, ("127.0.0.1", 2))
        assert request.headers.get("record-route") == [
            "<sip:127.0.0.1:2;lr>",
            "<sip:127.0.0.1:1;lr>",
        ]
