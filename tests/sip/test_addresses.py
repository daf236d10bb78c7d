"""sip.addresses: phone numbers, SIP addresses, transfer targets, headers and DTMF digits."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BadRequest
from sip.addresses import (
    Address,
    check_dtmf,
    check_headers,
    normalize_phone,
    parse_outbound_address,
    parse_transfer_target,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("given_value", "number"),
    [
        ("+15551234567", "+15551234567"),
        ("07123456789", "07123456789"),
        ("1234", "1234"),
        ("0", "0"),
        ("  +15551234567\t", "+15551234567"),
        ("1" * 20, "1" * 20),
    ],
)
def test_phone_numbers_pass_trimmed(given_value: str, number: str) -> None:
    assert normalize_phone(given_value) == number


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "   ",
        "+",
        "++1",
        "1+",
        "tel:+1555",
        "+1 555",
        "555-1234",
        "(555)1234",
        "*67",
        "#1",
        "1;x=y",
        "1@host",
        "١٢٣٤",
        "\uff11\uff12\uff13",  # full-width digits
        "\u00b2",
        "1" * 21,
        "+1510\r\nEvil: 1",
        "+1510\x00",
    ],
)
def test_anything_else_is_no_phone_number(bad: str) -> None:
    with pytest.raises(BadRequest) as caught:
        normalize_phone(bad, "from_phone_number")
    assert caught.value.code == "INVALID_PHONE_NUMBER"
    assert caught.value.message.startswith("Invalid from_phone_number: ")


@given(st.text())
def test_a_phone_number_is_only_ever_a_plus_and_digits(text: str) -> None:
    try:
        number = normalize_phone(text)
    except BadRequest as error:
        assert error.code == "INVALID_PHONE_NUMBER"
    else:
        assert re.fullmatch(r"\+?[0-9]{1,20}", number)
        assert number == text.strip()


@pytest.mark.parametrize(
    ("text", "address", "hostname"),
    [
        ("sip.example.com", Address("sip.example.com"), "sip.example.com"),
        ("sip.example.com:5061", Address("sip.example.com", 5061), "sip.example.com:5061"),
        ("livekit_sip", Address("livekit_sip"), "livekit_sip"),
        ("a.b-c.d", Address("a.b-c.d"), "a.b-c.d"),
        ("sip.example.com.", Address("sip.example.com."), "sip.example.com."),
        ("127.0.0.1:1", Address("127.0.0.1", 1), "127.0.0.1:1"),
        ("[::1]", Address("::1"), "[::1]"),
        ("[2001:DB8::1]:65535", Address("2001:db8::1", 65535), "[2001:db8::1]:65535"),
        ("x" * 63 + ".org", Address("x" * 63 + ".org"), "x" * 63 + ".org"),
    ],
)
def test_outbound_addresses(text: str, address: Address, hostname: str) -> None:
    assert parse_outbound_address(text) == address
    assert str(address) == hostname


@pytest.mark.parametrize(
    "bad",
    [
        "",
        " ",
        " a",
        "a ",
        "a\n",
        "a\x00b",
        "sip:x",
        "sip:x.com",
        "sips:x.com:5060",
        "http://x",
        "a;b",
        "a;transport=tcp",
        "a?b",
        "a/b",
        "user@host",
        "user:pw@host:5060",
        "h:",
        "h:0",
        "h:99999",
        "h:65536",
        "h:+1",
        "h:-1",
        "h:5060:1",
        "h:٥٠٦٠",
        ":5060",
        "a..b",
        ".a",
        "-a.com",
        "a-.com",
        "x" * 64,
        ".".join(["abc"] * 64),
        "1234",
        "999.1.1.1",
        "1.2.3",
        "0x7f.1",
        "::1",
        "[::1",
        "::1]",
        "[::1]x",
        "[::1]:",
        "[1.2.3.4]",
        "[fe80::1%eth0]",
        "münchen.de",
        "<host>",
        '"host"',
        ".",
    ],
)
def test_malformed_outbound_addresses(bad: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_outbound_address(bad)
    assert caught.value.code == "INVALID_OUTBOUND_ADDRESS"


@given(st.text(alphabet=string.printable, max_size=30))
def test_an_accepted_address_survives_a_second_reading(text: str) -> None:
    try:
        address = parse_outbound_address(text)
    except BadRequest:
        return
    assert parse_outbound_address(str(address)) == address
    assert re.fullmatch(r"[A-Za-z0-9._:\[\]-]+", str(address))


@given(
    st.one_of(
        st.ip_addresses(v=4).map(str),
        st.ip_addresses(v=6).map(lambda ip: f"[{ip}]"),
        st.from_regex(r"[a-z][a-z0-9]{0,10}(\.[a-z]{2,5}){0,3}", fullmatch=True),
    ),
    st.integers(1, 65535),
)
def test_every_host_takes_every_port(host: str, port: int) -> None:
    assert str(parse_outbound_address(f"{host}:{port}")) == f"{host}:{port}"


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("+15551234567", "tel:+15551234567"),
        (" 1234 ", "tel:1234"),
        ("tel:+15551234567", "tel:+15551234567"),
        ("sip:bob@sip.example.com", "sip:bob@sip.example.com"),
        ("SIP:+1555@10.0.0.1:5080", "sip:+1555@10.0.0.1:5080"),
        ("sips:a.b@[::1]:5061", "sips:a.b@[::1]:5061"),
        ("sip:1000@pbx", "sip:1000@pbx"),
        ("sip:Sales_Desk-2.b@pbx", "sip:Sales_Desk-2.b@pbx"),
    ],
)
def test_transfer_targets(text: str, uri: str) -> None:
    assert parse_transfer_target(text) == uri


@pytest.mark.parametrize(
    "bad",
    [
        "tel:",
        "tel:+1 555",
        "tel:+1555;phone-context=x",
        "sip:host",
        "sip:@host",
        "sip:bob@",
        "sip:bob@host;transport=tcp",
        "sip:bob@host?Replaces=1",
        "sip:bob;x=y@host",
        "sip:bob:pw@host",
        "sip:b%40b@host",
        "sip:bob@a@b",
        "<sip:bob@host>",
        "sip:bob@host\r\nVia: x",
        "sip:bob@host\x00",
        "http://host",
        "mailto:a@b",
    ],
)
def test_malformed_transfer_targets(bad: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_transfer_target(bad)
    assert caught.value.code == "INVALID_TRANSFER_TARGET"


@pytest.mark.attack
@pytest.mark.parametrize("scheme", ["sip", "sips"])
@pytest.mark.parametrize(
    "user",
    [
        *("+19005551234~", "+19005551234!", "+1900*5551234", "+1-900-555-1234", "1.900.555.1234"),
        *("1900;x", "1900;phone-context=+1", "%31900", "%2B19005551234", "+1(900)5551234"),
        *("0900-names", "1900names", "1-names", "0x1900", "++19005551234", "1+9005551234"),
        *("+", "-1900", ".1900", "_1900", "(900)5551234", "'1900'", "1900,,1", "&1900", "=1900"),
        *("$1900", "*911", "#31#1900", "1900#", "19005551234" * 2, "\u0661\u0669\u0660", "a~1900"),
        *("bob+1900", "bob;x=1900", "bob%31", "b" * 65, "bob!", "bo b"),
    ],
)
def test_a_sip_user_is_a_number_or_a_plain_name(scheme: str, user: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_transfer_target(f"{scheme}:{user}@pbx.example.com")
    assert caught.value.code == "INVALID_TRANSFER_TARGET"
    assert user not in caught.value.message


def test_a_transfer_target_without_a_scheme_is_a_phone_number() -> None:
    with pytest.raises(BadRequest) as caught:
        parse_transfer_target("bob@host")
    assert caught.value.code == "INVALID_PHONE_NUMBER"


def test_headers_pass_unchanged() -> None:
    headers = {"X-Account": "42", "x-name": 'Zoë, "q" <a>;b', "X-Empty": ""}
    assert check_headers(headers) == headers


@pytest.mark.parametrize(
    "headers",
    [
        {"From": "x"},
        {"X-": "x"},
        {"X-A B": "x"},
        {"X-A:": "x"},
        {"X-A\r\nVia": "x"},
        {"X-É": "x"},
        {"X-A": "a\r\nVia: b"},
        {"X-A": "a\nb"},
        {"X-A": "a\x00"},
        {"X-A": "\x85"},
        {"X-A": "\ud800"},
        {"X-A": "é" * 513},
        {"X-A": "1", "x-a": "2"},
        {f"X-{n}": "v" for n in range(33)},
        {f"X-{n}": "v" * 1000 for n in range(5)},
    ],
)
def test_headers_that_may_not_be_sent(headers: dict[str, str]) -> None:
    with pytest.raises(BadRequest) as caught:
        check_headers(headers)
    assert caught.value.code == "INVALID_REQUEST"
    [detail] = caught.value.details
    assert detail.field.startswith("headers")
    assert not re.search(r"[\x00-\x1f]", detail.field + detail.message)


def test_dtmf() -> None:
    assert check_dtmf("0123456789*#ABCDw") == "0123456789*#ABCDw"
    for bad in ("", "E", "a", "1 2", "1,2", "1\n", "1" * 65, "٣"):
        with pytest.raises(BadRequest) as caught:
            check_dtmf(bad)
        assert caught.value.code == "INVALID_REQUEST"
        assert caught.value.details[0].field == "dtmf"
