"""Where consent is asked for, by real numbers of each place."""

from __future__ import annotations

import phonenumbers
import pytest
from phonenumbers.geodata import GEOCODE_DATA

from core.recordings.config import Consent, ConsentMode
from gateway.fields.jurisdictions import COUNTRIES, STATES, asks_everybody, consent_mode

pytestmark = pytest.mark.unit

# An exchange in a town of each state (a prefix of phonenumbers' geodata).
ALL_PARTIES = {
    "CA": "+12092210123",
    "CT": "+12032020123",
    "DE": "+13022240123",
    "FL": "+12392000123",
    "IL": "+12172220123",
    "MA": "+14132290123",
    "MD": "+12403130123",
    "MI": "+12312230123",
    "MT": "+14062120123",
    "NH": "+16032040123",
    "NV": "+17022020123",
    "OR": "+15032550123",
    "PA": "+12152030123",
    "WA": "+12062150123",
}
BY_AREA_CODE = {
    "California": "+13105551212",
    "Washington State": "+12065550123",
}
ONE_PARTY = {
    "NY": "+12125551234",
    "TX": "+12105550123",
    "CO": "+13032050123",
    "GA": "+12292190123",
    "Washington D.C.": "+12025550123",
    "Ontario": "+14165551234",
    "GB": "+442071838750",
    "NL": "+31101234567",
    "ES": "+34911234567",
    "IN": "+917410410123",
}
UNKNOWN = [
    None,
    "",
    "100",
    "4930123456",
    "anonymous",
    "+18005551212",
    "+80012345678",
    "+870773111632",
    "+15550100",
    "+999123456",
]


@pytest.mark.parametrize("state", sorted(STATES))
def test_states_that_ask_everybody(state: str) -> None:
    assert asks_everybody(ALL_PARTIES[state])


@pytest.mark.parametrize("number", BY_AREA_CODE.values(), ids=BY_AREA_CODE)
def test_an_area_code_without_a_town(number: str) -> None:
    assert asks_everybody(number)


@pytest.mark.parametrize("country", sorted(COUNTRIES))
def test_countries_that_ask_everybody(country: str) -> None:
    for kind in (phonenumbers.PhoneNumberType.FIXED_LINE, phonenumbers.PhoneNumberType.MOBILE):
        example = phonenumbers.example_number_for_type(country, kind)
        assert example is not None
        assert asks_everybody(
            phonenumbers.format_number(example, phonenumbers.PhoneNumberFormat.E164)
        )


@pytest.mark.parametrize("number", ONE_PARTY.values(), ids=ONE_PARTY)
def test_places_where_one_party_is_enough(number: str) -> None:
    assert not asks_everybody(number)


@pytest.mark.parametrize("number", UNKNOWN)
def test_a_place_that_is_not_known_asks_everybody(number: str | None) -> None:
    assert asks_everybody(number)


def test_the_states_have_the_names_that_the_library_gives_them() -> None:
    known = {
        names["en"].rpartition(", ")[2]
        for prefix, names in GEOCODE_DATA.items()
        if prefix.startswith("1") and "en" in names
    }
    assert {*STATES, *STATES.values()} <= known


@pytest.mark.parametrize(
    ("mode", "by_jurisdiction", "far", "ours", "holds"),
    [
        ("none", False, ALL_PARTIES["CA"], None, "none"),
        ("none", True, ALL_PARTIES["CA"], ONE_PARTY["NY"], "opt_in"),
        ("none", True, ONE_PARTY["NY"], ALL_PARTIES["CA"], "opt_in"),
        ("none", True, ONE_PARTY["NY"], ONE_PARTY["TX"], "none"),
        ("announcement", True, ONE_PARTY["NY"], ONE_PARTY["TX"], "announcement"),
        ("announcement", True, ALL_PARTIES["PA"], ONE_PARTY["TX"], "opt_in"),
        ("none", True, None, ONE_PARTY["TX"], "opt_in"),
        ("opt_in", False, ONE_PARTY["NY"], ONE_PARTY["TX"], "opt_in"),
    ],
)
def test_the_mode_of_a_call(
    mode: ConsentMode, by_jurisdiction: bool, far: str | None, ours: str | None, holds: str
) -> None:
    consent = Consent(mode=mode, by_jurisdiction=by_jurisdiction)
    assert consent_mode(consent, far, ours) == holds
