"""sip.far_end: names and numbers that a far end states, and the bridge's address parser."""

from __future__ import annotations

import pytest

from sip.bridge.calls.inbound import parse_address
from sip.far_end import LONGEST_NAME, told

pytestmark = [pytest.mark.unit, pytest.mark.attack]

NO_TEXT = [
    "\0",
    "+1510\0",
    "+1510\r\nVia: SIP/2.0/UDP evil",
    "+1510\n",
    "\t+1510",
    "+1510\x1b[31m",
    "+1510\x7f",
    "+1510\x85",
    "+1510\u2028",
    "+1510\u202e5550123",  # right-to-left override
    "+1510\u200b",
    "+1510\ufffd",  # bytes that were not UTF-8
    "+1510\ud800",
    "+1510\ue000",
    "1" * (LONGEST_NAME + 1),
]


@pytest.mark.parametrize("value", [*NO_TEXT, "", " ", None])
def test_what_is_unknown(value: str | None) -> None:
    assert told(value) is None


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("+15105550123", "+15105550123"),
        (" +15105550123 ", "+15105550123"),
        ("anonymous", "anonymous"),
        ("Zoë Müller", "Zoë Müller"),
        ("%2B1510", "%2B1510"),
        ("'; drop table calls; --", "'; drop table calls; --"),
        ("1" * LONGEST_NAME, "1" * LONGEST_NAME),
    ],
)
def test_what_is_kept(value: str, kept: str) -> None:
    assert told(value) == kept


@pytest.mark.parametrize(
    ("header", "user"),
    [
        ("<sip:+1510%00@h>", None),
        ("<sip:+1510%0D%0AEvil:%201@h>", None),
        ("<sip:%ff%fe@h>", None),
        ("<sip:%C0%80@h>", None),  # an overlong NUL
        ("<sip:%E2%80%AE@h>", None),
        (f"<sip:{'1' * 5000}@h>", None),
        ("<sip:+1510%2000@h>", "+1510 00"),
        ("<sip:%2B15105550123@h>", "+15105550123"),
        ("<sip:%2500@h>", "%00"),  # decoded once
        ("<sip:anonymous@anonymous.invalid>", "anonymous"),
        ("<sip:h>", ""),
        ("nonsense", ""),
    ],
)
def test_the_user_of_an_address(header: str, user: str | None) -> None:
    assert parse_address(header)[0] == user


@pytest.mark.parametrize("host", ["h\0", "h\rx", "h\u202e", "x" * 300])
def test_a_host_that_is_no_text(host: str) -> None:
    assert parse_address(f"<sip:1@{host}>") == ("1", "")
