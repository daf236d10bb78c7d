"""Data from the bridge's SIP trace: messages, dialogs, and attributes from their headers."""

from __future__ import annotations

import pytest
from livekit.protocol import sip as pb

from sip.bridge.calls import attributes
from sip.bridge.stack import trace
from sip.bridge.stack.trace import DialogTrace, TraceBook

pytestmark = pytest.mark.unit

CALLER, CALLED = "+15105550100", "+15105550199"


INVITE = (
    "RX UDP [::1]:5999 -> 127.0.0.1:35938\n"
    "INVITE sip:+1777@127.0.0.1:35938 SIP/2.0\r\n"
    "v: SIP/2.0/UDP 127.0.0.1:5999;branch=z9hG4bK5b\r\n"
    "t: <sip:+1777@127.0.0.1>\r\n"
    "f: <sip:ok@127.0.0.1:5999;transport=udp>;tag=f69b\r\n"
    "i: 55a9\r\n"
    "X-Long: one\r\n two\r\n"
    "CSeq: 1 INVITE\r\n\r\n"
    "Call-ID: not-a-header\r\n"
)


def answer(status: int, *headers: str) -> trace.SipMessage:
    lines = [f"SIP/2.0 {status} Phrase", "Call-ID: 55a9", "CSeq: 1 INVITE", *headers]
    message = trace.parse("RX UDP 1.2.3.4:5060 -> 127.0.0.1:1\n" + "\r\n".join(lines))
    assert message is not None
    return message


class TestTrace:
    def test_a_message(self) -> None:
        message = trace.parse(INVITE)
        assert message is not None
        assert (message.method, message.status, message.call_id) == ("INVITE", None, "55a9")
        assert message.source_ip == "::1"
        assert message.header("x-long") == "one two"
        assert message.header("to") == "<sip:+1777@127.0.0.1>"

    @pytest.mark.parametrize("record", ["", "hello", "RX UDP", "native stack: some line\nInvite"])
    def test_what_is_no_message(self, record: str) -> None:
        assert trace.parse(record) is None

    def test_what_a_dialog_tells(self) -> None:
        book = TraceBook()
        book.add(answer(180, "To: <sip:a@b>;tag=early"))
        assert book.of("55a9") == DialogTrace()
        book.add(answer(407, 'Proxy-Authenticate: Digest realm="x"', "To: <sip:a@b>;tag=no"))
        assert book.of("55a9") == DialogTrace()
        book.add(answer(200, "To: <sip:a@b>;tag=yes", "X-Seen: 1"))
        invite = trace.parse(INVITE)
        assert invite is not None
        book.add(invite)  # a re-INVITE does not change who is at the far end
        dialog = book.of("55a9")
        assert dialog.remote_tag == "yes"
        assert dialog.status_line == "200 Phrase"
        assert ("x-seen", "1") in dialog.remote_headers

    def test_a_challenge_without_a_challenge_is_an_answer(self) -> None:
        book = TraceBook()
        book.add(answer(401, 'Proxy-Authenticate: Digest realm="x"'))
        assert book.of("55a9").status_line == "401 Phrase"

    def test_old_dialogs_are_forgotten(self) -> None:
        book = TraceBook(limit=1)
        book.add(answer(200, "To: <sip:a@b>;tag=yes"))
        other = trace.parse(INVITE.replace("55a9", "other"))
        assert other is not None
        book.add(other)
        assert book.of("55a9").opening is None
        assert book.of("other").remote_tag == "f69b"


class TestAttributes:
    HEADERS = (("x-order", "17"), ("subject", "hi"), ("x-order", "18"), ("x-twilio-callsid", "CA1"))

    @pytest.mark.parametrize(
        ("include", "expected"),
        [
            (pb.SIPHeaderOptions.SIP_NO_HEADERS, {}),
            (
                pb.SIPHeaderOptions.SIP_X_HEADERS,
                {"sip.h.x-order": "17", "sip.h.x-twilio-callsid": "CA1"},
            ),
            (
                pb.SIPHeaderOptions.SIP_ALL_HEADERS,
                {"sip.h.x-order": "17", "sip.h.x-twilio-callsid": "CA1", "sip.h.subject": "hi"},
            ),
        ],
    )
    def test_included_headers(self, include: int, expected: dict[str, str]) -> None:
        found = attributes.of_headers(self.HEADERS, include, {"X-Order": "order"})
        assert found == expected | {"sip.twilio.callSid": "CA1", "order": "17"}
