"""Attacks on the destination policy: costly numbers, in every form that a switch may read.

The numbers are libphonenumber's own examples, so that every country is covered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phonenumbers import (
    NumberParseException,
    PhoneMetadata,
    PhoneNumber,
    PhoneNumberFormat,
    PhoneNumberType,
)

from gateway.calls.policy import DialPolicy

pytestmark = [pytest.mark.unit, pytest.mark.attack]

REGIONS = sorted(phonenumbers.SUPPORTED_REGIONS)
HOMES = (None, "US", "DE", "GB", "RU", "JP")
POLICIES = {home: DialPolicy(home_country=home) for home in (None, *REGIONS)}

# Each country's exit code, and those of single carriers.
EXIT_CODES = (
    *("00", "011", "0011", "010", "810", "119", "00700", "0014", "0015", "0018", "0019", "001"),
    *("002", "005", "008", "009", "000", "012", "020", "0041", "0052", "0161", "0130", "0033010"),
    *("001010", "1230", "14110011", "16", "99", "990", "994", "1020", "0"),
)


def premium(region: str) -> PhoneNumber | None:
    return phonenumbers.example_number_for_type(region, PhoneNumberType.PREMIUM_RATE)


PREMIUM = {region: number for region in REGIONS if (number := premium(region)) is not None}


def e164(number: PhoneNumber) -> str:
    return phonenumbers.format_number(number, PhoneNumberFormat.E164).removeprefix("+")


def refused(destination: str, home: str | None = None, **context: Any) -> bool:
    return POLICIES[home].objection(destination, **context) is not None


def is_somebodys(dialled: str, home: str | None) -> bool:
    """Return True if libphonenumber reads ``dialled`` plainly (with a country code, behind 00 or
    011, or national at home) as a complete number that is not premium.
    """
    forms: list[tuple[str, str | None]]
    if dialled.startswith("+"):
        forms = [(dialled, None)]
    else:
        bare = (dialled, *(dialled[len(x) :] for x in ("00", "011") if dialled.startswith(x)))
        forms = [(f"+{digits}", None) for digits in bare]
        forms += [(dialled, home)] if home is not None else []
    return any(_is_ordinary(form, region) for form, region in forms)


def _is_ordinary(text: str, region: str | None) -> bool:
    try:
        number = phonenumbers.parse(text, region)
    except NumberParseException:
        return False
    kind = phonenumbers.number_type(number)
    return kind not in {PhoneNumberType.PREMIUM_RATE, PhoneNumberType.UNKNOWN}


# Each passed once, or would if the policy left a reading out: (destination, home, caller).
US_900, UK_909, DE_900 = "9005551234", "9098790879", "9001234567"
HOSTILE: tuple[tuple[str, str | None, str], ...] = (
    # No country code begins with 0.
    *((f"+0{rest}", None, "+15105550123") for rest in ("", "0", "0044909", f"44{UK_909}")),
    *((f"+0{rest}", None, "100") for rest in (f"0441{UK_909}", "112", "911", f"11{US_900}")),
    *((f"+{code}44{UK_909}", None, "") for code in ("00", "011", "0011", "010", "000", "0000")),
    *((f"+{code}1{US_900}", "US", "") for code in ("00", "011", "0011", "0", "01", "001")),
    # With any caller ID.
    *((US_900, None, c) for c in ("", "100", "+4930123456", "+15105550123", "+88161", "+999")),
    *((US_900, "US", c) for c in ("", "100", "+4930123456", "+442071234567", "442071234567")),
    *((f"1{US_900}", home, "100") for home in HOMES),
    *((f"0{DE_900}", "DE", c) for c in ("", "100", "+15105550123", "+41441234567")),
    *((f"00{DE_900}", "DE", c) for c in ("", "100")),
    *((f"{zeros}{UK_909}", "GB", "100") for zeros in ("00", "000")),  # 0 for an outside line
    *((f"0{UK_909}", "GB", c) for c in ("", "100", "+15105550123", "+4930123456")),
    *((f"0{UK_909}", None, c) for c in ("", "100", "+442071234567")),
    ("9005551234", "DE", "+15105550123"),
    # Too many digits, and too few.
    *((f"+1{US_900}{more}", None, "100") for more in ("0", "12", "999", "1234", "99999999")),
    *((f"+44{UK_909}{more}", "US", "100") for more in ("0", "12", "999", "1234", "99999999")),
    *((f"{US_900}{more}", "US", "100") for more in ("0", "12", "999", "1234", "9999999999")),
    *((f"001{US_900}{more}", "DE", "100") for more in ("0", "12", "999", "1234")),
    *((f"0{DE_900}{more}", "DE", "100") for more in ("0", "12", "999", "1234")),
    *(("+1900555123"[:length], None, "100") for length in (5, 6, 8, 9, 10, 11)),
    ("+97912345678", None, "100"),
    ("+9791234567899", None, "100"),
    # One or several exit codes of other countries.
    *((f"{code}44{UK_909}", None, "100") for code in EXIT_CODES if code not in {"0014", "0018"}),
    *((f"{code}{code}44{UK_909}", "US", "100") for code in ("00", "011", "0011", "010", "810")),
    *((f"{one}{two}44{UK_909}", "US", "") for one, two in (("00", "011"), ("011", "00"))),
    *((f"{one}{two}44{UK_909}", "DE", "") for one, two in (("0011", "810"), ("119", "00"))),
    *((f"+{code}44{UK_909}", None, "100") for code in ("810", "119", "990", "16")),
    # The trunk prefix behind the country code.
    *((f"{way}440{UK_909}", None, "") for way in ("+", "", "00", "011", "0011", "810")),
    *((f"{way}490{DE_900}", "US", "") for way in ("+", "", "00", "011", "0011", "810")),
    (f"+11{US_900}", None, ""),
    # As URIs.
    *((f"tel:{number}", None, "") for number in (f"+1{US_900}", f"+044{UK_909}", "911", US_900)),
    *((f"sip:{number}@pbx.example.com", None, "") for number in (f"+1{US_900}", "112", US_900)),
    *((f"sips:{number}@[2001:db8::1]:5061", "US", "") for number in (US_900, f"01144{UK_909}")),
    *((f"sip:{user}@pbx", None, "") for user in (f"+1{US_900}~", f"1{US_900};x", f"%31{US_900}")),
    *((f"sip:{user}@pbx", None, "") for user in ("1-900-555-1234", "+1(900)555.1234", "$911")),
    # Emergency and short numbers.
    *(
        (f"{way}112", None, "100")
        for way in ("", "+", "00", "011", "0011", "+49", "0049", "001149")
    ),
    *((f"{way}911", "DE", "100") for way in ("", "+", "00", "+1", "0111", "001", "8101")),
    *((number, "US", "100") for number in ("9115550123", "91155501234", "+19115550123")),
    *((number, "GB", "") for number in ("+44118118", "0044118118", "+441181189")),
    ("892123", "IT", ""),
    ("8921234", "IT", ""),
)


def test_there_are_enough_of_them() -> None:
    assert len(HOSTILE) >= 150
    assert len(set(HOSTILE)) == len(HOSTILE)


@pytest.mark.parametrize(("destination", "home", "caller"), HOSTILE)
def test_hostile_forms(destination: str, home: str | None, caller: str) -> None:
    assert refused(destination, home, from_number=caller)


def written_forms(number: PhoneNumber, more: str) -> Iterator[str]:
    digits = e164(number) + more
    yield from (f"+{digits}", digits)
    for code in EXIT_CODES[::3]:
        yield from (f"{code}{digits}", f"{code}{code}{digits}", f"+{code}{digits}")


@pytest.mark.parametrize("region", PREMIUM)
def test_premium_numbers_of_every_country(region: str) -> None:
    number = PREMIUM[region]
    for more in ("", "7", "1234"):
        for dialled in written_forms(number, more):
            passes = not refused(dialled, from_number="100")
            assert not passes or is_somebodys(dialled, None), dialled


# Premium numbers there look like another country's number with its country code; they are told
# apart only if the home country is known.
READS_ABROAD = {"CO", "GT", "MT", "SG", "ZA"}


@pytest.mark.parametrize("region", PREMIUM)
def test_premium_numbers_as_dialled_at_home(region: str) -> None:
    number = PREMIUM[region]
    table = PhoneMetadata.metadata_for_region(region)
    prefix = table.national_prefix if table is not None else None
    plain = phonenumbers.national_significant_number(number)
    national = phonenumbers.format_number(number, PhoneNumberFormat.NATIONAL)
    dialled = {plain, f"{prefix or ''}{plain}", "".join(c for c in national if c.isdigit())}
    for digits in dialled:
        for more in ("", "9", "98", "987", "9876"):
            for plus in ("", "+"):
                text = f"{plus}{digits}{more}"
                for caller in ("", "100", "+15105550123"):
                    passes = not refused(text, region, from_number=caller)
                    assert not passes or (plus and is_somebodys(text, None)), text
    if len(plain) > 6 and region not in READS_ABROAD:
        assert refused(plain), "nor without a home"


@settings(derandomize=True, deadline=None, max_examples=250)
@given(
    region=st.sampled_from(sorted(PREMIUM)),
    codes=st.lists(st.sampled_from(EXIT_CODES), max_size=3),
    more=st.text("0123456789", max_size=4),
    plus=st.booleans(),
    home=st.sampled_from(HOMES),
    caller=st.sampled_from(["", "100", "+15105550123", "+4930123456", "+390612345678"]),
)
def test_premium_numbers_however_they_are_written(
    region: str, codes: list[str], more: str, plus: bool, home: str | None, caller: str
) -> None:
    dialled = f"{'+' if plus else ''}{''.join(codes)}{e164(PREMIUM[region])}{more}"
    passes = not refused(dialled, home, from_number=caller)
    assert not passes or is_somebodys(dialled, home)
    if passes:
        return
    for form in (f"tel:{dialled}", f"sip:{dialled}@pbx.example.com"):
        assert refused(form, home, from_number=caller)


def _short(region: str, kind: str) -> str:
    table = PhoneMetadata.short_metadata_for_region(region)
    found = getattr(table, kind, None)
    return found.example_number or "" if found is not None else ""


EMERGENCY = {r: n for r in phonenumbers.SUPPORTED_SHORT_REGIONS if (n := _short(r, "emergency"))}
COSTLY = {r: n for r in phonenumbers.SUPPORTED_SHORT_REGIONS if (n := _short(r, "premium_rate"))}


US_KNOWS = {"112", "911", "999"}


@pytest.mark.parametrize("region", sorted(EMERGENCY))
def test_emergency_numbers_of_every_country(region: str) -> None:
    number, code = EMERGENCY[region], phonenumbers.country_code_for_region(region)
    for home in (None, "US", region):
        bare = [f"{way}{number}" for way in ("", "00", "011", "0011", "810", "0000")]
        # Without a prefix, country code and number may be an extension, so "" is left out.
        coded = [f"{way}{code}{number}" for way in ("+", "00", "011", "0011", "810", "0000")]
        for dialled in (*bare, *coded, f"+{number}", f"sip:{number}@pbx.example.com"):
            # If the home country is known, another country's number is an extension.
            bare_form = number if dialled.startswith("sip:") else dialled
            extension = bare_form.isdigit() and len(bare_form) <= 6
            if extension and home == "US" and number not in US_KNOWS:
                continue
            # Shorter forms cannot be told from an extension (810 7 01).
            if len(dialled) > 6 or len(number) > 2:
                assert refused(dialled, home) or is_somebodys(dialled, home), (dialled, home)


@pytest.mark.parametrize("region", sorted(COSTLY))
def test_short_numbers_that_cost(region: str) -> None:
    number, code = COSTLY[region], phonenumbers.country_code_for_region(region)
    assert refused(number, region)
    assert refused(f"+{code}{number}")
    assert refused(f"00{code}{number}", region)


# Ordinary numbers whose national form without the trunk prefix reads as something else abroad.
ODD = {("MC", "99123456")}


@pytest.mark.parametrize("region", REGIONS)
def test_ordinary_numbers_of_every_country_pass(region: str) -> None:
    for kind in (PhoneNumberType.FIXED_LINE, PhoneNumberType.MOBILE):
        number = phonenumbers.example_number_for_type(region, kind)
        if number is None:
            continue
        digits = e164(number)
        for home in (None, "US", "DE", "GB", region):
            for form in (f"+{digits}", digits, f"tel:+{digits}", f"sip:+{digits}@pbx"):
                if not form[0].isdigit() or home in {None, region}:
                    assert not refused(form, home, from_number="100"), (form, home)
            if home != region:
                assert not refused(f"00{digits}", home), home
                assert not refused(f"011{digits}", home), home
        national = phonenumbers.format_number(number, PhoneNumberFormat.NATIONAL)
        dialled = "".join(c for c in national if c.isdigit())
        if (region, dialled) not in ODD:
            assert not refused(dialled, region, from_number="100"), dialled
