"""Trunks and rules that match an inbound call (sip.bridge.matching), and the plan of a dial."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import baresip
import pytest
from livekit.protocol import sip as pb

from sip.bridge import matching, validation
from sip.bridge.calls import outbound
from sip.bridge.calls.inbound import parse_address
from sip.bridge.calls.outbound import plan
from sip.bridge.calls.transfer import transfer_target
from sip.bridge.matching import Invite
from sip.bridge.stack.endpoint import Endpoint
from sip.bridge.twirp import TwirpError
from sip.guard import SipGuard

pytestmark = pytest.mark.unit

CALLER, CALLED = "+15105550100", "+15105550199"


# Values of allowed_addresses that a caller may forge in its From.
FORGED = [
    "198.51.100.0/24",
    "198.51.100.7",
    "198.51.100.7/32",
    "0.0.0.0",
    "127.0.0.1",
    "sip.example.com",
    "localhost",
    "[2001:db8::1]",
    "2001:db8::1",
    "2001:db8::/32",
]


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
            (["198.51.100.7"], "::ffff:198.51.100.7", True),
            (["198.51.100.0/24"], "::ffff:c633:6407", True),
            (["198.51.100.7"], "::ffff:198.51.100.8", False),
            (["::ffff:198.51.100.7"], "::ffff:198.51.100.7", True),
            (["::ffff:0:0/96"], "::ffff:198.51.100.7", True),
            # Any other wrapping is not the IPv4 address in it.
            (["198.51.100.7"], "2002:c633:6407::1", False),
            (["198.51.100.7"], "64:ff9b::c633:6407", False),
            (["198.51.100.7"], "::198.51.100.7", False),
            (["nonsense", "sip.example.com"], "10.1.2.3", False),
        ],
    )
    def test_allowed_addresses(self, masks: list[str], source: str, matches: bool) -> None:
        trunk = pb.SIPInboundTrunkInfo(allowed_addresses=masks)
        invite = Invite(CALLER, "host", CALLED, source)
        assert (matching.match_trunk([trunk], invite) is trunk) is matches

    @pytest.mark.attack
    @pytest.mark.parametrize("mask", FORGED)
    @pytest.mark.parametrize("source", ["203.0.113.9", ""])
    def test_the_callers_word_for_where_it_is_opens_nothing(self, mask: str, source: str) -> None:
        trunk = pb.SIPInboundTrunkInfo(allowed_addresses=[mask])
        _, host = parse_address(f"<sip:x@{mask}>;tag=1")
        for claimed in (mask, host, host.strip("[]")):
            invite = Invite(CALLER, claimed, CALLED, source)
            assert matching.match_trunk([trunk], invite) is None

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


class Unreachable:
    """A user agent whose every dial fails."""

    def on_incoming(self, callback: object) -> None:
        pass

    async def dial(self, uri: str, headers: dict[str, str]) -> None:
        raise baresip.BaresipError("unreachable")


@pytest.mark.attack
async def test_a_process_dials_from_so_many_identities(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The stack never frees an identity, and a tenant may dial from any number of them."""
    made: list[str] = []

    async def create(runtime: object, account: str, **options: object) -> Unreachable:
        made.append(account)
        return Unreachable()

    monkeypatch.setattr(baresip.UserAgent, "create", create)
    over = asyncio.get_running_loop().create_future()
    endpoint = Endpoint("127.0.0.1:5060", max_agents=3)
    call = cast("Any", SimpleNamespace(over=over))
    monkeypatch.setattr(endpoint, "_runtime", object())

    async def dialled_from(number: int) -> str:
        request = pb.CreateSIPParticipantRequest(
            sip_call_to="+15551230077",
            sip_number=f"+1510555010{number}",
            room_name="r",
            trunk=pb.SIPOutboundConfig(hostname="trunk.example.com"),
        )
        order = plan(request, None, "127.0.0.1")
        verdict = await outbound.dial(call, order, endpoint, SipGuard())
        assert verdict is not None
        return verdict.error.code

    codes = [await dialled_from(number) for number in (1, 2, 3, 4, 5, 1, 3)]
    unreachable, full = "invalid_argument", "resource_exhausted"
    assert codes == [*[unreachable] * 3, full, full, unreachable, unreachable]
    assert len(made) == 3
    assert sum("until a restart" in line for line in caplog.messages) == 2
