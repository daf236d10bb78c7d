"""The bridge's parts that need no network: codec, verdicts, matching, the registry, the trace."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from livekit.protocol import sip as pb
from livekit.protocol.models import ListUpdate
from livekit.rtc import DisconnectReason

from sip.bridge import attributes, matching, trace, twirp, validation, verdict
from sip.bridge.inbound import parse_address
from sip.bridge.matching import Invite
from sip.bridge.outbound import plan
from sip.bridge.registry import Registry
from sip.bridge.trace import DialogTrace, TraceBook
from sip.bridge.transfer import transfer_target
from sip.bridge.twirp import TwirpError
from sip.leg import BacklogGauge

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
        """Clients dial again after a 5xx: the phone would ring twice."""
        for text in ["500 X", "503 X", "599 X", "Connection refused [111]", "Odd [5]", ""]:
            assert verdict.refused(text).error.http_status < 500

    def test_an_unanswered_call_has_no_sip_status(self) -> None:
        error = verdict.unanswered().error
        assert (error.code, error.http_status, error.meta) == ("canceled", 408, {})


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


class TestMatching:
    def test_numbers_are_normalized(self) -> None:
        assert matching.normalize("+1 (510) 555-0100") == matching.normalize("15105550100")
        assert matching.normalize("alice") == "alice"
        assert matching.normalize("") == ""

    def test_the_trunk_of_the_number_comes_before_the_open_one(self) -> None:
        wide = pb.SIPInboundTrunkInfo(sip_trunk_id="wide", allowed_addresses=["127.0.0.0/8"])
        own = pb.SIPInboundTrunkInfo(sip_trunk_id="own", numbers=["15105550199"])
        invite = Invite(CALLER, "host", CALLED, "127.0.0.1")
        assert matching.match_trunk([wide, own], invite) is own
        other = Invite(CALLER, "host", "+1999", "127.0.0.1")
        assert matching.match_trunk([wide, own], other) is wide

    @pytest.mark.parametrize(
        ("masks", "source", "matches"),
        [
            (["10.0.0.0/8"], "10.1.2.3", True),
            (["10.0.0.0/8"], "11.1.2.3", False),
            (["10.1.2.3"], "10.1.2.3", True),
            (["2001:db8::/32"], "2001:db8::1", True),
            (["10.0.0.0/8"], "", False),
            (["nonsense", "sip.example.com"], "10.1.2.3", False),
        ],
    )
    def test_allowed_addresses(self, masks: list[str], source: str, matches: bool) -> None:
        trunk = pb.SIPInboundTrunkInfo(allowed_addresses=masks)
        invite = Invite(CALLER, "host", CALLED, source)
        assert (matching.match_trunk([trunk], invite) is trunk) is matches

    def test_allowed_callers(self) -> None:
        trunk = pb.SIPInboundTrunkInfo(numbers=[CALLED], allowed_numbers=["1 510 555 0100"])
        assert matching.match_trunk([trunk], Invite(CALLER, "", CALLED, "")) is trunk
        assert matching.match_trunk([trunk], Invite("+1999", "", CALLED, "")) is None

    def test_the_order_of_rules(self) -> None:
        direct = pb.SIPDispatchRule(dispatch_rule_direct=pb.SIPDispatchRuleDirect(room_name="r"))
        own = pb.SIPDispatchRule(dispatch_rule_individual=pb.SIPDispatchRuleIndividual())
        callee = pb.SIPDispatchRule(dispatch_rule_callee=pb.SIPDispatchRuleCallee())
        trunk = pb.SIPInboundTrunkInfo(sip_trunk_id="t")
        invite = Invite(CALLER, "", CALLED, "")

        def rule(name: str, kind: pb.SIPDispatchRule, **fields: Any) -> pb.SIPDispatchRuleInfo:
            return pb.SIPDispatchRuleInfo(sip_dispatch_rule_id=name, rule=kind, **fields)

        best_first = [
            rule("caller and called", callee, trunk_ids=["t"], inbound_numbers=[CALLER],
                 numbers=[CALLED]),
            rule("caller", own, trunk_ids=["t"], inbound_numbers=[CALLER]),
            rule("direct", direct, trunk_ids=["t"]),
            rule("individual", own, trunk_ids=["t"]),
            rule("callee", callee, trunk_ids=["t"]),
            rule("any trunk, direct", direct),
        ]  # fmt: skip
        never = [
            rule("other trunk", direct, trunk_ids=["x"]),
            rule("other caller", direct, inbound_numbers=["+1999"]),
            rule("not normalized", direct, numbers=[CALLED.lstrip("+")]),
        ]
        left = list(reversed(best_first)) + never
        for expected in best_first:
            assert matching.match_rule(left, trunk, invite) is expected
            left.remove(expected)
        assert matching.match_rule(left, trunk, invite) is None
        assert matching.match_rule([best_first[2]], None, invite) is None

    def test_where_a_call_goes(self) -> None:
        own = pb.SIPDispatchRule(
            dispatch_rule_individual=pb.SIPDispatchRuleIndividual(room_prefix="call")
        )
        rule = pb.SIPDispatchRuleInfo(rule=own, attributes={"a": "b"})
        invite = Invite(CALLER, "host", CALLED, "")
        one = matching.place(rule, None, invite, "SCL_1")
        two = matching.place(rule, None, invite, "SCL_2")
        assert one.room.startswith(f"call_{CALLER}_") and one.room != two.room
        assert (one.identity, one.name) == (f"sip_{CALLER}", f"Phone {CALLER}")
        assert one.attributes["a"] == "b"

    def test_a_hidden_number_is_in_nothing(self) -> None:
        direct = pb.SIPDispatchRule(dispatch_rule_direct=pb.SIPDispatchRuleDirect(room_name="r"))
        rule = pb.SIPDispatchRuleInfo(rule=direct, hide_phone_number=True)
        where = matching.place(rule, None, Invite(CALLER, "host", CALLED, ""), "SCL_1")
        assert CALLER not in str(where) and "sip.phoneNumber" not in where.attributes
        assert (
            where.identity
            == matching.place(rule, None, Invite(CALLER, "", CALLED, ""), "SCL_2").identity
        )


class TestPlan:
    def request(self, **fields: Any) -> pb.CreateSIPParticipantRequest:
        base: dict[str, Any] = {
            "trunk": pb.SIPOutboundConfig(hostname="127.0.0.1:5060"),
            "sip_number": CALLER,
            "sip_call_to": CALLED,
            "room_name": "room",
        }
        return pb.CreateSIPParticipantRequest(**{**base, **fields})

    def test_what_is_dialled(self) -> None:
        order = plan(self.request(sip_call_to="*21#"), None, "127.0.0.1")
        assert order.uri == "sip:*21%23@127.0.0.1:5060;transport=udp"
        assert order.participant.identity == "sip_*21#"
        assert order.ringing_timeout_s == 180

    def test_a_waiting_request_rings_no_longer_than_livekit_lets_it(self) -> None:
        assert plan(self.request(wait_until_answered=True), None, "h").ringing_timeout_s == 80

    @pytest.mark.parametrize("field", ["sip_number", "sip_call_to"])
    @pytest.mark.parametrize(
        "value", ["+1\r\nX-Evil: 1", "+1 2", "+1;x=y", "a@b", "<sip:a>", "1?x", "", "é", "1\x00"]
    )
    def test_numbers_that_would_change_the_invite(self, field: str, value: str) -> None:
        with pytest.raises(TwirpError) as raised:
            plan(self.request(**{field: value}), None, "127.0.0.1")
        assert raised.value.code in {"invalid_argument", "failed_precondition"}

    @pytest.mark.parametrize(
        "fields",
        [
            {"to_user_override": "x"},
            {"sip_request_uri": pb.SIPRequestDest(raw="sip:a@b")},
            {"media": pb.SIPMediaConfig(encryption="SIP_MEDIA_ENCRYPT_REQUIRE")},
            {
                "media": pb.SIPMediaConfig(
                    only_listed_codecs=True, codecs=[pb.SIPCodec(name="opus")]
                )
            },
        ],
    )
    def test_what_this_service_cannot_do_it_says(self, fields: dict[str, Any]) -> None:
        with pytest.raises(TwirpError) as raised:
            plan(self.request(**fields), None, "127.0.0.1")
        assert (raised.value.code, raised.value.http_status) == ("unimplemented", 501)

    def test_secrets_are_in_no_repr(self) -> None:
        config = pb.SIPOutboundConfig(hostname="h", auth_username="u", auth_password="s3cret")
        assert "s3cret" not in repr(plan(self.request(trunk=config), None, "h"))

    @pytest.mark.parametrize("host", ["a b", "a;b", "sip:a", "a:99999", "u@h", "a\nb", "", "<a>"])
    def test_hosts(self, host: str) -> None:
        with pytest.raises(TwirpError):
            validation.host(host, "trunk hostname")
        validation.host("[::1]:5060", "trunk hostname")


class TestTransferTarget:
    @pytest.mark.parametrize(
        "target", ["tel:+15550100", "sip:+1@10.0.0.1:5080;transport=tcp", "sips:a@example.com"]
    )
    def test_good_ones(self, target: str) -> None:
        assert transfer_target(target) == transfer_target(f"<{target}>") == target

    @pytest.mark.parametrize(
        "target",
        ["", "+15550100", "sip:a@b\r\nX: y", "sip:a@b?Replaces=x", "http://a", "sip:a b@c"],
    )
    def test_bad_ones(self, target: str) -> None:
        with pytest.raises(TwirpError) as raised:
            transfer_target(target)
        assert raised.value.code == "invalid_argument"


class TestRegistry:
    def inbound(self, **fields: Any) -> pb.SIPInboundTrunkInfo:
        return pb.SIPInboundTrunkInfo(**{"numbers": [CALLED], **fields})

    async def test_everything_survives_a_restart(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "bridge.json"
        first = Registry(path)
        first.load()
        trunk = first.create_inbound(self.inbound(name="in", metadata="m"))
        out = first.create_outbound(
            pb.SIPOutboundTrunkInfo(address="a:1", numbers=["+1"], auth_password="s3cret")
        )
        rule = first.create_rule(
            pb.SIPDispatchRuleInfo(
                rule=pb.SIPDispatchRule(
                    dispatch_rule_direct=pb.SIPDispatchRuleDirect(room_name="r")
                ),
                trunk_ids=[trunk.sip_trunk_id],
            )
        )
        await first.saved()
        second = Registry(path)
        second.load()
        assert second.get_inbound(trunk.sip_trunk_id) == trunk
        assert second.get_outbound(out.sip_trunk_id) == out
        assert second.list_rules(pb.ListSIPDispatchRuleRequest()) == [rule]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [file.name for file in path.parent.iterdir()] == ["bridge.json"]

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"inbound": [1]}', "null"])
    def test_a_broken_file_is_named(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "bridge.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"bridge\.json"):
            Registry(path).load()

    def test_lists_are_set_added_to_and_removed_from(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path / "s")
        trunk = registry.create_inbound(self.inbound(numbers=["+1", "+2"]))
        diff = pb.SIPInboundTrunkUpdate(numbers=ListUpdate(add=["+3"], remove=["+1"]))
        assert list(registry.update_inbound(trunk.sip_trunk_id, diff).numbers) == ["+2", "+3"]
        diff = pb.SIPInboundTrunkUpdate(numbers=ListUpdate(set=["+9"]), name="n")
        updated = registry.update_inbound(trunk.sip_trunk_id, diff)
        assert (list(updated.numbers), updated.name) == (["+9"], "n")
        assert updated.created_at == trunk.created_at

    def test_a_refused_change_changes_nothing(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path / "s")
        trunk = registry.create_inbound(self.inbound())
        with pytest.raises(TwirpError):
            registry.update_inbound(
                trunk.sip_trunk_id, pb.SIPInboundTrunkUpdate(numbers=ListUpdate(clear=True))
            )
        assert registry.get_inbound(trunk.sip_trunk_id) == trunk

    @pytest.mark.parametrize(
        "fields",
        [
            {"numbers": []},
            {"auth_username": "u"},
            {"headers": {"Via": "x"}},
            {"sip_trunk_id": "ST_mine"},
        ],
    )
    def test_trunks_that_are_not_taken(self, tmp_path: Path, fields: dict[str, Any]) -> None:
        with pytest.raises(TwirpError) as raised:
            Registry(tmp_path / "s").create_inbound(self.inbound(**fields))
        assert raised.value.code == "invalid_argument"

    def test_two_trunks_for_the_same_calls(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path / "s")
        registry.create_inbound(self.inbound())
        registry.create_inbound(self.inbound(allowed_numbers=[CALLER]))
        with pytest.raises(TwirpError, match="Conflicting"):
            registry.create_inbound(self.inbound(numbers=["1 510 555 0199"]))

    def test_rules_with_a_pin_are_refused_in_so_many_words(self, tmp_path: Path) -> None:
        rule = pb.SIPDispatchRule(
            dispatch_rule_direct=pb.SIPDispatchRuleDirect(room_name="r", pin="1234")
        )
        with pytest.raises(TwirpError) as raised:
            Registry(tmp_path / "s").create_rule(pb.SIPDispatchRuleInfo(rule=rule))
        assert raised.value.code == "unimplemented"

    def test_what_is_handed_out_is_a_copy(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path / "s")
        trunk = registry.create_inbound(self.inbound())
        trunk.name = "mine"
        assert registry.get_inbound(trunk.sip_trunk_id).name == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('"Ann" <sip:+1510@10.0.0.1:5060;user=phone>;tag=x', ("+1510", "10.0.0.1")),
        ("sip:alice%20b@[::1]:5060", ("alice b", "[::1]")),
        ("<SIPS:example.com>", ("", "example.com")),
        ("nonsense", ("", "")),
    ],
)
def test_addresses(value: str, expected: tuple[str, str]) -> None:
    assert parse_address(value) == expected


class TestBacklogGauge:
    def test_only_what_never_drains_is_excess(self) -> None:
        gauge = BacklogGauge(target=100, window=4)
        assert [gauge.excess(level) for level in (900, 400, 900, 900)] == [0, 0, 0, 300]
        assert [gauge.excess(level) for level in (900, 0, 900, 900)] == [0, 0, 0, 0]
        assert [gauge.excess(level) for level in (150, 150, 150, 150)] == [0, 0, 0, 50]
