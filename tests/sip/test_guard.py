"""sip.guard: a tenant's SIP address in any spelling, and our own listeners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dev.stack.environment import GivenSettings
from sip import guard
from sip.dial import DialRequest, Trunk
from sip.guard import (
    TENANT_DIAL,
    AddressRefused,
    Listener,
    SipGuard,
    own_listeners,
    sip_listeners,
    tenant_mark,
    with_port,
)

pytestmark = [pytest.mark.unit, pytest.mark.attack]

PUBLIC, PUBLIC6 = "93.184.216.34", "2606:4700::1111"


class Names:
    """A resolver with each name's answers, one per lookup; it notes who asked."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self._answers = {name.replace("_", "."): [*each] for name, each in answers.items()}
        self.asked: list[tuple[str, str | None]] = []

    async def __call__(self, name: str, tenant: str | None) -> Sequence[str]:
        self.asked.append((name, tenant))
        left = self._answers.get(name.rstrip(".").lower(), [[]])
        return left.pop(0) if len(left) > 1 else left[0]


async def allowed(address: str, *, tls: bool = False, **options: Any) -> bool:
    options.setdefault("resolve", Names())
    try:
        await SipGuard(**options).check(address, tls=tls, tenant="acme")
    except AddressRefused:
        return False
    return True


# Addresses that need no DNS, in every spelling that a resolver or a socket accepts.
async def passes(checked: SipGuard, address: str, *, tls: bool | None = False) -> bool:
    try:
        await checked.check(address, tls=tls, tenant="acme")
    except AddressRefused:
        return False
    return True


PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255:5060",
    "100.64.0.1",
    "100.127.255.254",
    "127.0.0.1",
    "127.0.0.1:1",
    "127.0.0.1:65535",
    "127.1.2.3",
    "127.255.255.254",
    "169.254.0.1",
    "169.254.169.254",
    "169.254.169.254:80",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.170",
    "192.0.2.1",
    "192.168.0.1",
    "192.168.255.255",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "224.0.1.75",  # all SIP servers, RFC 3261 §18.1.1
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "[::]",
    "[::]:5060",
    "[::1]",
    "[::1]:5061",
    "[0:0:0:0:0:0:0:1]",
    "[::127.0.0.1]",
    "[::7f00:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::FFFF:10.0.0.1]",
    "[::ffff:a9fe:a9fe]",
    "[::ffff:0.0.0.0]",
    "[::ffff:0:10.0.0.1]",
    "[64:ff9b::10.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::808:808]",
    "[100::1]",
    "[2001:0:5ef5:79fb:0:0:f5ff:fffe]",
    "[2001:db8::1]",
    "[2002:7f00:1::]",
    "[2002:a00:1::1]",
    "[2002:a9fe:a9fe::]",
    "[2002:c0a8:101::]",
    "[fc00::1]",
    "[fd00:ec2::254]",  # a cloud's metadata
    "[fe80::1]",
    "[fec0::1]",
    "[ff02::1]",
    "[ff0e::1]",
    "localhost",
    "localhost:5060",
    "LOCALHOST",
    "localhost.",
    "LocalHost.",
    "sip.localhost",
    "a.b.localhost.:5070",
    "0x7f000001",
    "0x7f000001:5060",
    "0X7F000001",
    "0xa9fea9fe",
    "127.0.0.0x1",
    "127.0x1",
    "0x7f.0x1",
    "0x0a.0.0.0x1",
    "10.0x1",
]

# Invalid SIP hosts, which may have been stored before hosts were checked.
MALFORMED = [
    "",
    " ",
    "127.1",
    "2130706433",
    "0177.0.0.1",
    "017700000001",
    "10.0.0.1.",
    "127.0.0.1.:5060",
    "::1",
    "[::1",
    "[fe80::1%lo]",
    "[127.0.0.1]",
    "127.0.0.1:0",
    "127.0.0.1:99999",
    "127.0.0.1;transport=tcp",
    "8.8.8.8;maddr=127.0.0.1",
    "8.8.8.8@127.0.0.1",
    "127.0.0.1#8.8.8.8",
    "8.8.8.8\r\nRoute: <sip:127.0.0.1>",
    "8.8.8.8\x00.example",
    "１２７.0.0.1",
    "127。0。0。1",
    "sip:10.0.0.1",
]

OPEN = [
    "8.8.8.8",
    "93.184.216.34:5080",
    "[2606:4700::1111]",
    "[2606:4700::1111]:5061",
    "[::ffff:8.8.8.8]",
    "[64:ff9b::808:808]",
    "[2002:808:808::1]",
]


class TestLiterals:
    @pytest.mark.parametrize("address", PRIVATE)
    async def test_refused_without_a_question(self, address: str) -> None:
        names = Names()
        assert not await allowed(address, resolve=names)
        assert names.asked == []
        with pytest.raises(AddressRefused):
            SipGuard().check_literal(address)

    @pytest.mark.parametrize("address", MALFORMED)
    async def test_malformed(self, address: str) -> None:
        for options in ({}, {"allow_private": True}):
            names = Names()
            assert not await allowed(address, resolve=names, **options)
            assert names.asked == []

    @pytest.mark.parametrize("address", OPEN)
    async def test_public(self, address: str) -> None:
        assert await allowed(address)
        SipGuard().check_literal(address)

    @pytest.mark.parametrize(
        ("address", "passes"),
        [
            ("10.0.0.1", True),
            ("127.0.0.1:5070", True),
            ("[::1]:5070", True),
            ("localhost:5070", True),
            ("169.254.169.254", True),
            ("0.0.0.0", False),
            ("[::]", False),
            ("[::ffff:0.0.0.0]:5070", False),
            ("224.0.1.75", False),
            ("[ff02::1]", False),
            ("255.255.255.255", False),
        ],
    )
    async def test_where_private_ones_are_allowed(self, address: str, passes: bool) -> None:
        assert await allowed(address, allow_private=True) is passes

    @pytest.mark.parametrize(
        ("address", "passes"),
        [
            ("10.20.0.1", True),
            ("10.20.255.255:5080", True),
            ("[::ffff:10.20.3.4]", True),
            ("[fd00:20::5]", True),
            ("10.21.0.1", False),
            ("10.19.255.255", False),
            ("[fd00:21::5]", False),
            ("127.0.0.1", False),
            ("169.254.169.254", False),
            ("8.8.8.8", True),
        ],
    )
    async def test_networks_that_are_allowed(self, address: str, passes: bool) -> None:
        networks = ["10.20.0.0/16", "fd00:20::/32"]
        assert await allowed(address, allowed_networks=networks) is passes


class TestNames:
    @pytest.mark.parametrize(
        "answer",
        [
            ["127.0.0.1"],
            ["10.1.2.3"],
            ["169.254.169.254"],
            ["0.0.0.0"],
            ["::1"],
            ["fe80::1%eth0"],
            ["::ffff:10.0.0.1"],
            ["fd00::1"],
            ["2002:7f00:1::"],
            ["64:ff9b::a00:1"],
            [PUBLIC, "10.1.2.3"],
            ["10.1.2.3", PUBLIC],
            [PUBLIC, PUBLIC6, "::1"],
            ["224.0.0.1"],
            [],
        ],
    )
    async def test_one_bad_address_is_enough(self, answer: list[str]) -> None:
        assert not await allowed("trunk.example", resolve=Names(trunk_example=[answer]))

    @pytest.mark.parametrize("answer", [[PUBLIC], [PUBLIC6], [PUBLIC, PUBLIC6]])
    async def test_public_ones(self, answer: list[str]) -> None:
        names = Names(trunk_example=[answer])
        checked = SipGuard(resolve=names)
        assert await checked.check("Trunk.Example:5080", tenant="acme") == answer
        assert names.asked == [("Trunk.Example", "acme")]

    async def test_a_name_is_asked_each_time(self) -> None:
        names = Names(trunk_example=[[PUBLIC], ["127.0.0.1"]])
        checked = SipGuard(resolve=names)
        await checked.check("trunk.example", tenant="acme")
        with pytest.raises(AddressRefused):
            await checked.check("trunk.example", tenant="acme")

    async def test_when_it_is_stored_a_name_is_not_asked(self) -> None:
        names = Names(trunk_example=[["127.0.0.1"]])
        SipGuard(resolve=names).check_literal("trunk.example:5060")
        assert names.asked == []

    async def test_a_name_without_an_address_where_private_ones_are_allowed(self) -> None:
        assert not await allowed("nowhere.example", allow_private=True)

    async def test_the_answer_does_not_tell_why(self) -> None:
        texts = set()
        names = Names(private_example=[["10.0.0.1"]], ours_example=[[PUBLIC]])
        checked = SipGuard(resolve=names, own=[Listener(PUBLIC, 5060)])
        for address in (
            "127.0.0.1:1",
            "10.0.0.1",
            "private.example",
            "nowhere.example",
            "ours.example",
            PUBLIC,
        ):
            with pytest.raises(AddressRefused) as refused:
                await checked.check(address, tenant="acme")
            texts.add((refused.value.status, refused.value.code, refused.value.message))
        assert [*texts] == [(403, "DESTINATION_NOT_ALLOWED", AddressRefused().message)]


# Our own: a SIP service on one address, one on all, one known by name, and Redis.
OWN = [
    *sip_listeners("127.0.0.1", 5070),
    *sip_listeners("0.0.0.0", 5080),
    *sip_listeners("sip.ours.example", 5060),
    Listener("127.0.0.1", 6379),
]


class TestOwn:
    @pytest.mark.parametrize(
        "address",
        [
            "127.0.0.1:5070",
            "[::ffff:127.0.0.1]:5070",
            "[::ffff:7f00:1]:5070",
            "0x7f000001:5070",
            "localhost:5070",
            "x.localhost.:5070",
            "loop.example:5070",
            "127.0.0.1:5080",
            "127.9.9.9:5080",  # an address of this machine
            "[::1]:5080",
            "loop.example:5080",
            "sip.ours.example",
            "SIP.OURS.EXAMPLE.:5060",
            f"{PUBLIC}",
            f"{PUBLIC}:5060",
            f"[::ffff:{PUBLIC}]",
            "alias.example",
            "127.0.0.1:6379",
        ],
    )
    async def test_refused_whatever_is_allowed(self, address: str) -> None:
        for options in (
            {},
            {"allow_private": True},
            {"allowed_networks": ["0.0.0.0/0", "::/0"]},
        ):
            assert not await allowed(address, own=OWN, resolve=self.names(), **options)

    @pytest.mark.parametrize(
        "address",
        [
            "127.0.0.1:5060",
            "127.0.0.1:5071",  # TLS only, and this is not TLS
            "127.0.0.2:5070",
            "192.0.2.1:5080",  # not this machine
            f"{PUBLIC}:5070",
            "sip.ours.example:5090",
        ],
    )
    async def test_a_neighbour_is_not_ours(self, address: str) -> None:
        assert await allowed(address, own=OWN, resolve=self.names(), allow_private=True)

    @pytest.mark.parametrize(
        ("address", "passes"),
        [
            ("127.0.0.1:5070", False),
            ("127.0.0.1:5071", False),
            ("sip.ours.example", False),  # port 5061 with TLS
            ("sip.ours.example:5061", False),
            ("sip.ours.example:5062", True),
        ],
    )
    async def test_by_tls(self, address: str, passes: bool) -> None:
        options = {"own": OWN, "resolve": self.names(), "allow_private": True}
        assert await allowed(address, tls=True, **options) is passes

    async def test_told_when_it_is_stored(self) -> None:
        checked = SipGuard(own=OWN, allow_private=True, resolve=self.names())
        for address in ("127.0.0.1:5070", "127.9.9.9:5080", "sip.ours.example", "localhost:6379"):
            with pytest.raises(AddressRefused):
                checked.check_literal(address)

    @staticmethod
    def names() -> Names:
        return Names(
            loop_example=[["127.0.0.1"]],
            sip_ours_example=[[PUBLIC]],
            alias_example=[[PUBLIC6, PUBLIC]],
        )

    def test_what_the_settings_know(self) -> None:
        settings = GivenSettings(
            bridge_sip_listen="[::]:5070",
            sip_public_address="sip.example.com:5080;transport=tcp",
            livekit_url="wss://rtc.example.com",
            livekit_sip_url="http://10.0.0.7:7885",
            gateway_host="0.0.0.0",
            gateway_port=8080,
            metrics_port=9090,
            cache_url="redis://cache:16379/1",
            database_url="postgresql://user:p@database/switchroom",
        )
        assert {(one.host, one.port) for one in own_listeners(settings)} == {
            ("::", 5070),
            ("::", 5071),
            ("sip.example.com", 5060),
            ("sip.example.com", 5061),
            ("sip.example.com", 5080),
            ("sip.example.com", 5081),
            ("rtc.example.com", 443),
            ("10.0.0.7", 7885),
            ("10.0.0.7", 5060),
            ("10.0.0.7", 5061),
            ("0.0.0.0", 8080),
            ("0.0.0.0", 9090),
            ("cache", 16379),
            ("database", 5432),
            ("127.0.0.1", 7885),
            ("127.0.0.1", 8081),
        }

    async def test_those_of_a_laptop(self) -> None:
        settings = GivenSettings(sip_allow_private=True)
        checked = SipGuard.from_settings(settings)
        for port in (5060, 7880, 7885, 8080, 8081):
            with pytest.raises(AddressRefused):
                await checked.check(f"127.0.0.1:{port}", tenant="acme")
        assert await checked.check("127.0.0.1:5070", tenant="acme") == ["127.0.0.1"]

    @pytest.mark.parametrize("by_setting", ["livekit_url", "livekit_sip_url"])
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "[::1]"])
    async def test_a_sip_service_beside_us_listens_on_every_address(
        self, monkeypatch: pytest.MonkeyPatch, host: str, by_setting: str
    ) -> None:
        """The API's address is not its only one, as with the production containers."""
        monkeypatch.setattr(guard, "_is_local", lambda ip: str(ip) in {PUBLIC, PUBLIC6})
        urls: dict[str, Any] = {by_setting: f"ws://{host}:7880"}
        settings = GivenSettings(**urls)
        checked = SipGuard.from_settings(settings, resolve=Names(us_example=[["8.8.8.8", PUBLIC]]))
        for address in (PUBLIC, f"[{PUBLIC6}]", f"{PUBLIC}:5060", "us.example"):
            assert not await passes(checked, address)
            assert not await passes(checked, address, tls=True)
        assert not await passes(checked, f"{PUBLIC}:5061", tls=True)
        for address in ("8.8.8.8", f"{PUBLIC}:5080"):
            assert await passes(checked, address)

    async def test_one_elsewhere_is_where_its_api_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guard, "_is_local", lambda ip: str(ip) == PUBLIC)
        settings = GivenSettings(
            livekit_url="ws://10.0.0.7:7880", bridge_sip_listen="127.0.0.1:5070"
        )
        assert await passes(SipGuard.from_settings(settings, resolve=Names()), PUBLIC)


class TestDial:
    """The dial request to the SIP service for a tenant's trunk."""

    @pytest.mark.parametrize(
        ("address", "transport", "hostname"),
        [
            ("trunk.example", "auto", "trunk.example:5060"),
            ("trunk.example", "tls", "trunk.example:5061"),
            ("trunk.example:5080", "tls", "trunk.example:5080"),
            ("[2606:4700::1111]", "udp", "[2606:4700::1111]:5060"),
        ],
    )
    def test_the_port_leaves_nothing_to_srv_records(
        self, address: str, transport: Any, hostname: str
    ) -> None:
        proto = self.request(Trunk(address=address, transport=transport, tenant="acme")).to_proto()
        assert proto.trunk.hostname == hostname
        assert proto.participant_attributes == {"a": "b", TENANT_DIAL: tenant_mark("acme")}

    def test_the_mark_tells_tenants_apart_and_names_none(self) -> None:
        marks = {
            self.request(Trunk(address="a.example", tenant=tenant))
            .to_proto()
            .participant_attributes[TENANT_DIAL]
            for tenant in ("acme", "rival", "")
        }
        assert len(marks) == 3
        assert not any("acme" in mark or "rival" in mark or not mark for mark in marks)

    def test_the_operators_is_as_it_was_given(self) -> None:
        proto = self.request(Trunk(address="trunk.example")).to_proto()
        assert proto.trunk.hostname == "trunk.example"
        assert proto.participant_attributes == {"a": "b"}

    def test_a_stored_address_that_is_none(self) -> None:
        with pytest.raises(AddressRefused):
            with_port("127.1", tls=False)

    @staticmethod
    def request(trunk: Trunk) -> DialRequest:
        return DialRequest(
            trunk=trunk,
            from_number="100",
            to_number="200",
            room_name="r",
            participant_identity="p",
            participant_name="P",
            attributes={"a": "b"},
        )
