"""The bridge's Twirp codec, and the verdicts on failed dials."""

from __future__ import annotations

import base64
import json

import pytest
from livekit.protocol import sip as pb
from livekit.rtc import DisconnectReason

from sip.bridge import twirp
from sip.bridge.calls import verdict
from sip.bridge.twirp import TwirpError

pytestmark = pytest.mark.unit

CALLER, CALLED = "+15105550100", "+15105550199"


class TestTwirp:
    def test_both_content_types(self) -> None:
        request = pb.CreateSIPParticipantRequest(sip_call_to=CALLED, wait_until_answered=True)
        body = request.SerializeToString()
        kind = pb.CreateSIPParticipantRequest
        assert twirp.decode("application/protobuf", body, kind) == request
        text = b'{"sipCallTo": "+15105550199", "wait_until_answered": true, "unknown": 1}'
        assert twirp.decode("application/json; charset=utf-8", text, kind) == request

    def test_the_answer_has_the_requests_content_type(self) -> None:
        info = pb.SIPParticipantInfo(sip_call_id="SCL_1")
        assert twirp.encode("application/protobuf", info) == (
            info.SerializeToString(),
            "application/protobuf",
        )
        body, kind = twirp.encode("application/json", info)
        assert kind == "application/json"
        assert json.loads(body) == {
            "participant_id": "",
            "participant_identity": "",
            "room_name": "",
            "sip_call_id": "SCL_1",
        }

    @pytest.mark.parametrize(
        ("kind", "body", "code"),
        [
            ("application/json", b"{", "malformed"),
            ("application/json", b'{"sipCallTo": 1}', "malformed"),
            ("application/json", b"[" * 100_000, "malformed"),
            ("application/json", b"\xff", "malformed"),
            ("application/protobuf", b"\xff\xff\xff", "malformed"),
            ("text/plain", b"", "bad_route"),
            ("", b"", "bad_route"),
        ],
    )
    def test_what_cannot_be_decoded(self, kind: str, body: bytes, code: str) -> None:
        with pytest.raises(TwirpError) as raised:
            twirp.decode(kind, body, pb.CreateSIPParticipantRequest)
        assert raised.value.code == code

    def test_the_error_of_a_refusal_is_livekit_sips(self) -> None:
        error = twirp.sip_error(486, "Busy Here")
        assert (error.code, error.http_status) == ("resource_exhausted", 429)
        assert json.loads(error.body())["meta"] == {
            "sip_status_code": "486",
            "sip_status": "Busy Here",
            # Recorded from livekit-sip 1.11.0: a google.rpc.Status with a livekit.SIPStatus.
            "error_details": "CAgSKUlOVklURSBmYWlsZWQ6IHNpcCBzdGF0dXM6IDQ4NjogQnVzeSBIZXJlGjcK"
            "JXR5cGUuZ29vZ2xlYXBpcy5jb20vbGl2ZWtpdC5TSVBTdGF0dXMSDgjmAxIJQnVzeSBIZXJl",
        }

    def test_a_long_reason_is_encoded_with_its_length(self) -> None:
        details = base64.b64decode(twirp.sip_error(480, "x" * 300).meta["error_details"])
        assert details.count(b"x" * 300) == 2
        # Field 2, and its length of two bytes: "INVITE failed: sip status: 480: " is 32 long.
        assert details[2:5] == b"\x12" + bytes([(332 & 0x7F) | 0x80, 332 >> 7])

    @pytest.mark.parametrize(
        ("status", "code"),
        [
            (302, "not_found"),
            (305, "invalid_argument"),
            (404, "not_found"),
            (407, "unauthenticated"),
            (408, "deadline_exceeded"),
            (499, "invalid_argument"),
            (500, "failed_precondition"),
            (504, "deadline_exceeded"),
            (599, "failed_precondition"),
            (603, "permission_denied"),
            (699, "invalid_argument"),
        ],
    )
    def test_codes_of_statuses(self, status: int, code: str) -> None:
        assert twirp.sip_error(status, "").code == code


class TestVerdict:
    @pytest.mark.parametrize(
        ("text", "code", "reason"),
        [
            ("486 Busy Here", "resource_exhausted", DisconnectReason.USER_REJECTED),
            ("603 Decline", "permission_denied", DisconnectReason.USER_REJECTED),
            ("480 Gone", "resource_exhausted", DisconnectReason.USER_UNAVAILABLE),
            ("503 Service Unavailable", "failed_precondition", DisconnectReason.UNKNOWN_REASON),
            ("302 Moved", "not_found", DisconnectReason.UNKNOWN_REASON),
            ("401 Unauthorized", "failed_precondition", DisconnectReason.USER_REJECTED),
            ("407", "failed_precondition", DisconnectReason.USER_REJECTED),
            ("Connection timed out [110]", "canceled", DisconnectReason.USER_UNAVAILABLE),
            (
                "Destination address required [89]",
                "invalid_argument",
                DisconnectReason.UNKNOWN_REASON,
            ),
            (
                "Connection refused [111]",
                "failed_precondition",
                DisconnectReason.UNKNOWN_REASON,
            ),
            ("", "failed_precondition", DisconnectReason.UNKNOWN_REASON),
        ],
    )
    def test_of_the_stacks_words(
        self, text: str, code: str, reason: DisconnectReason.ValueType
    ) -> None:
        found = verdict.refused(text)
        assert (found.error.code, found.reason) == (code, reason)

    def test_an_invite_that_was_sent_is_never_worth_a_retry(self) -> None:
        """Clients retry after a 5xx, and the phone would ring twice."""
        for text in ["500 X", "503 X", "599 X", "Connection refused [111]", "Odd [5]", ""]:
            assert verdict.refused(text).error.http_status < 500

    def test_an_unanswered_call_has_no_sip_status(self) -> None:
        error = verdict.unanswered().error
        assert (error.code, error.http_status, error.meta) == ("canceled", 408, {})
