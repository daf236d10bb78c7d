"""The destination policy: libphonenumber decides, and our own rules where it does not."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import settings as settings_module
from core.errors import Forbidden
from gateway.calls.policy import DialPolicy
from sip.addresses import called_number
from tests.conftest import ACME
from tests.support.inprocess import running, settings_in

pytestmark = pytest.mark.store

US, DE, GB = "+15105550123", "+4930123456", "+442071234567"
DEFAULT = DialPolicy()


@pytest.mark.parametrize(
    ("to_number", "from_number"),
    [
        ("+15551234567", US),
        ("15551234567", "100"),
        ("+4915112345678", US),
        ("004915112345678", US),
        ("0114915112345678", US),
        ("+919876543210", US),
        # Extensions behind the trunk.
        ("1000", US),
        ("0", "0"),
        ("42", "100"),
        ("654321", DE),
        # Numbers that exist nowhere, which the trunk will refuse.
        ("+2105551234567", US),
        ("+999" + "8" * 17, US),
    ],
)
def test_ordinary_numbers(to_number: str, from_number: str) -> None:
    assert DEFAULT.objection(to_number, from_number=from_number) is None


@pytest.mark.parametrize(
    ("home", "to_number"),
    [
        ("US", "4155550199"),
        ("US", "5105550123"),
        ("US", "15105550123"),
        ("US", "15551234567"),
        ("US", "01149301234567"),
        ("US", "5550123"),  # a local number
        ("DE", "030123456"),
        ("DE", "015112345678"),
        ("DE", "004930123456"),
        ("DE", "4930123456"),
        ("DE", "9002345678"),  # 900 is a premium prefix in North America, not in Germany
        ("GB", "02071234567"),
        ("IT", "0612345678"),
        ("FR", "0142345678"),
        ("RU", "89123456789"),
        ("RU", "810442071234567"),
        ("JP", "0312345678"),
        ("JP", "010442071234567"),
        ("AU", "0011442071234567"),
        ("JO", "962790123456"),
        ("DE", "1000"),
    ],
)
def test_a_bare_number_is_one_of_the_home_country(home: str, to_number: str) -> None:
    for from_number in ("", "100"):
        policy = DialPolicy(home_country=home)
        assert policy.objection(to_number, from_number=from_number) is None


@pytest.mark.parametrize("to_number", ["4155550199", "9002345678", "0891234567", "2105551234"])
@pytest.mark.parametrize("from_number", ["", "100", US, DE])
def test_without_a_home_country_a_tenants_bare_number_needs_its_country_code(
    to_number: str, from_number: str
) -> None:
    assert DEFAULT.objection(to_number, from_number=from_number) is not None
    assert DEFAULT.objection(to_number) == (
        "its country cannot be told without DIAL_HOME_COUNTRY: write it with + and its country code"
    )
    assert DialPolicy(allow_special=True).objection(to_number, from_number=from_number) is None


@pytest.mark.parametrize("to_number", ["5551234", "2125551234", "4155550199", "0891234567"])
@pytest.mark.parametrize("from_number", ["", "100", US, DE])
def test_the_operator_knows_what_stands_behind_the_trunk(to_number: str, from_number: str) -> None:
    why = DEFAULT.objection(to_number, from_number=from_number, tenant=False)
    assert why is None
    assert DEFAULT.objection(to_number, from_number=from_number, tenant=True) is not None
    # The operator's own settings still apply.
    for policy in (
        DialPolicy(allowed_countries=frozenset({"JP"})),
        DialPolicy(blocked_prefixes=(to_number[:3],)),
    ):
        assert policy.objection(to_number, from_number=from_number, tenant=False) is not None


SAMPLE = random.Random(1)
# US local numbers: no area code, and an exchange that is not N11.
LOCAL = [
    f"{SAMPLE.randint(2, 9)}{SAMPLE.choice('023456789')}{SAMPLE.randint(0, 99999):05}"
    for _ in range(1500)
]


def test_a_number_within_the_city_is_not_taken_for_one_abroad() -> None:
    policy = DialPolicy(home_country="US")
    for to_number in ("6011070", "3859468", "3255591", "4105837", "9998500"):
        assert policy.objection(to_number) is None
    refused = [number for number in LOCAL if policy.objection(number) is not None]
    # These begin like a premium-rate number, at home or behind another country's exit code.
    assert len(refused) < len(LOCAL) / 200


@pytest.mark.parametrize("to_number", ["100", "101", "110", "133", "144", "00101", "99101"])
def test_another_countrys_emergency_number_is_an_extension(to_number: str) -> None:
    assert DialPolicy(home_country="US").objection(to_number, from_number="+3222345678") is None
    assert DEFAULT.objection(to_number, trunk_country="US") is None
    assert DEFAULT.objection(to_number, tenant=False) is not None, "the country is not known"


@pytest.mark.attack
@pytest.mark.parametrize("home", ["US", "DE", "BE", "AU"])
def test_emergency_numbers_of_the_trunk_are_no_extensions(home: str) -> None:
    own = {"DE": "110", "BE": "101", "AU": "000"}.get(home, "911")
    for number in (own, "112", "911", "999"):
        for way in ("", "00", "011", "810"):
            assert DialPolicy(home_country=home).objection(f"{way}{number}", tenant=False)
            assert DEFAULT.objection(f"{way}{number}", trunk_country=home)
            # A trunk's country adds readings and removes none.
            other = DialPolicy(home_country="JP")
            assert other.objection(f"{way}{number}", trunk_country=home)


def test_three_digit_extensions_are_free_where_the_country_is_known() -> None:
    policy = DialPolicy(home_country="US")
    refused = {n for n in map(str, range(100, 1000)) if policy.objection(n) is not None}
    assert refused == {"112", "911", "999"}


@pytest.mark.attack
@pytest.mark.parametrize(
    ("home", "to_number"),
    [
        ("US", "9115550"),
        ("US", "1125550"),
        ("US", "9005551"),  # and more digits may follow
        ("US", "0049112"),
        ("US", "0111911"),
        ("US", "+601107"),
        ("US", "+385946"),
        ("US", "+449991"),
        ("RU", "8101911"),
        # Too long for a local number, or in a country that has none, or in an unknown one.
        ("US", "44999123"),
        ("DE", "6011070"),
        (None, "6011070"),
    ],
)
def test_what_else_may_be_meant_is_refused_all_the_same(home: str | None, to_number: str) -> None:
    assert DialPolicy(home_country=home).objection(to_number, tenant=False) is not None


@pytest.mark.attack
@pytest.mark.parametrize(
    ("to_number", "from_number"),
    [
        ("9002345678", US),  # national in the caller ID's country
        ("09001234567", DE),
        ("19002345678", "100"),
        ("0019002345678", "100"),
        ("449098790879", "100"),
        ("0000911", "100"),
        ("911", "100"),
    ],
)
def test_special_numbers_are_refused_to_the_operator_as_well(
    to_number: str, from_number: str
) -> None:
    why = DEFAULT.objection(to_number, from_number=from_number, tenant=False)
    assert why is not None and why.startswith("it is ")


@pytest.mark.parametrize(
    ("changes", "warned"),
    [({}, True), ({"dial_home_country": "US"}, False), ({"auth_required": False}, False)],
)
async def test_the_gateway_warns_when_tenants_have_no_home_country(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], warned: bool
) -> None:
    async with running(settings_in(tmp_path, **changes)):
        warnings = [line for line in caplog.messages if "DIAL_HOME_COUNTRY" in line]
    assert len(warnings) == warned


@pytest.mark.parametrize(
    ("to_number", "from_number", "kind"),
    [
        ("911", US, "an emergency"),
        ("112", US, "an emergency"),
        ("999", "", "an emergency"),
        ("000", DE, "an emergency"),
        ("+911", US, "an emergency"),
        ("+1911", US, "an emergency"),
        ("00911", US, "an emergency"),
        ("00112", US, "an emergency"),
        ("011112", US, "an emergency"),
        ("+49112", US, "an emergency"),
        ("0049112", US, "an emergency"),
        ("+44999", DE, "an emergency"),
        ("+44118118", US, "a short"),
        ("+1411", US, "a short"),
        ("+19002345678", DE, "a premium-rate"),
        ("19002345678", DE, "a premium-rate"),
        ("0019002345678", DE, "a premium-rate"),
        ("9002345678", US, "a premium-rate"),
        ("9002345678", "15105550123", "a premium-rate"),
        ("09001234567", DE, "a premium-rate"),
        ("+979123456789", US, "a premium-rate"),
        ("+449098790879", US, "a premium-rate"),
    ],
)
def test_what_is_refused_by_default(to_number: str, from_number: str, kind: str) -> None:
    assert DEFAULT.objection(to_number, from_number=from_number) == f"it is {kind} number"
    with pytest.raises(Forbidden) as caught:
        DEFAULT.check(to_number, from_number=from_number)
    assert caught.value.code == "DESTINATION_NOT_ALLOWED"
    assert to_number not in caught.value.message
    assert DialPolicy(allow_special=True).objection(to_number, from_number=from_number) is None


@pytest.mark.parametrize(
    ("to_number", "from_number", "allowed"),
    [
        ("+14155550199", US, True),
        ("+15551234567", US, True),
        ("4155550199", "100", True),
        ("14155550199", "100", True),
        ("0015105550123", DE, True),
        ("1000", US, True),
        ("+442071234567", US, False),
        ("442071234567", US, False),
        ("00442071234567", US, False),
        ("4420712345678", US, False),  # one digit too many
        ("0011442071234567", US, False),
        ("+0442071234567", US, False),
        ("+14162345678", US, False),  # Toronto
        ("015112345678", DE, False),
        ("+999123456789", US, False),
        ("+979123456789", US, False),
        ("+881612345678", US, False),
        ("+0000000", US, False),
    ],
)
def test_allowed_countries(to_number: str, from_number: str, allowed: bool) -> None:
    us = frozenset({"US"})
    policy = DialPolicy(home_country="US", allowed_countries=us, allow_special=True)
    assert (policy.objection(to_number, from_number=from_number) is None) is allowed


def test_a_caller_id_allows_no_country() -> None:
    policy = DialPolicy(allowed_countries=frozenset({"US"}), allow_special=True)
    for from_number in ("", "100", US, DE):
        why = policy.objection("4155550199", from_number=from_number)
        assert why == "its country is not among those allowed"


@pytest.mark.parametrize(
    ("to_number", "allowed"),
    [
        ("+881612345678", False),
        ("00881612345678", False),
        ("881612345678", False),
        ("0190123456", False),
        ("+190123456", True),
        ("+12423456789", False),
        ("+15551234567", True),
        ("1000", True),
    ],
)
def test_blocked_prefixes(to_number: str, allowed: bool) -> None:
    policy = DialPolicy(blocked_prefixes=("+881", "0190", "+1242"))
    assert policy.objection(to_number, from_number=DE) == (
        None if allowed else "its prefix is blocked"
    )


NUMBERS = st.from_regex(r"\+?[0-9]{1,20}", fullmatch=True)
CALLERS = st.from_regex(r"(\+?[0-9]{1,20})?", fullmatch=True)
COUNTRIES = st.sampled_from([None, "US", "DE", "IT", "RU", "JP"])


@settings(derandomize=True, deadline=None, max_examples=300)
@given(to_number=NUMBERS, from_number=CALLERS, home=COUNTRIES, trunk=COUNTRIES)
def test_what_a_tenant_says_allows_nothing_more(
    to_number: str, from_number: str, home: str | None, trunk: str | None
) -> None:
    plain = DialPolicy(home_country=home)
    countries = frozenset({"US", "DE"})
    strict = DialPolicy(home_country=home, allowed_countries=countries, blocked_prefixes=("+1242",))
    for policy in (plain, strict):
        refused = policy.objection(to_number) is not None
        told = policy.objection(to_number, from_number=from_number)
        assert told is not None or not refused, "a caller ID takes no reading away"
        if home is not None:
            told = policy.objection(to_number, from_number=from_number, trunk_country=trunk)
            assert told is not None or not refused, "nor does a trunk's country"
    if plain.objection(to_number, from_number=from_number) is not None:
        assert strict.objection(to_number, from_number=from_number) is not None


def test_an_unknown_country_refuses_to_start() -> None:
    with pytest.raises(ValueError, match="DIAL_HOME_COUNTRY: unknown XX"):
        DialPolicy(home_country="XX")
    with pytest.raises(ValueError, match="DIAL_ALLOWED_COUNTRIES: unknown XX"):
        DialPolicy(allowed_countries=frozenset({"US", "XX"}))


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENV_FILE", "")
    monkeypatch.setenv("DIAL_ALLOWED_COUNTRIES", "de, AT,,ch")
    monkeypatch.setenv("DIAL_BLOCKED_PREFIXES", " +881,0190 ")
    monkeypatch.setenv("DIAL_HOME_COUNTRY", "at")
    loaded = settings_module.load()
    assert loaded.dial_home_country == "AT"
    assert loaded.dial_allowed_countries == {"DE", "AT", "CH"}
    assert loaded.dial_blocked_prefixes == ("+881", "0190")
    assert DialPolicy.from_settings(loaded).objection(US) is not None
    assert DialPolicy.from_settings(loaded).objection("06641234567") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DIAL_HOME_COUNTRY", "USA"),
        ("DIAL_HOME_COUNTRY", "DE,AT"),
        ("DIAL_ALLOWED_COUNTRIES", "USA"),
        ("DIAL_ALLOWED_COUNTRIES", "U1"),
        ("DIAL_BLOCKED_PREFIXES", "+"),
        ("DIAL_BLOCKED_PREFIXES", "1 2"),
        ("DIAL_ALLOW_SPECIAL", "yes"),
        ("CALLS_PER_SECOND", "0"),
        ("CALLS_PER_SECOND", "nan"),
        ("MAX_CONCURRENT_CALLS", "0"),
        ("MAX_CONCURRENT_CALLS", "1.5"),
    ],
)
def test_a_wrong_setting_refuses_to_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv("ENV_FILE", "")
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        settings_module.load()
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("uri", "number"),
    [
        ("tel:+19002345678", "+19002345678"),
        ("sip:911@pbx.example.com", "911"),
        ("sips:+1-(900)-234.5678@pbx.example.com:5061", "+19002345678"),
        ("sip:reception@pbx.example.com", ""),
        ("sip:desk-1@pbx", ""),
        # parse_transfer_target refuses these, but a server may read a number in each.
        ("sip:+19002345678~@pbx", "+19002345678"),
        ("sip:1900-names@pbx", "1900"),
        ("sip:%2B19002345678;x@pbx", "219002345678"),
    ],
)
def test_the_number_in_a_uri(uri: str, number: str) -> None:
    assert called_number(uri) == number


@pytest.mark.parametrize("target", ["+19002345678", "tel:911", "sip:911@pbx.example.com"])
async def test_a_transfer_is_a_way_out_too(tmp_path: Path, target: str) -> None:
    body = {"room_name": "r", "participant_identity": "i", "transfer_to": target}
    async with (
        running(settings_in(tmp_path)) as gateway,
        gateway.http.post("/sip/transfer", json=body, headers=ACME) as response,
    ):
        answer = await response.json()
        assert (response.status, answer["code"]) == (403, "DESTINATION_NOT_ALLOWED")


async def test_a_refused_destination_leaves_no_trace(tmp_path: Path) -> None:
    """The call is refused before the gateway asks LiveKit, which does not run here."""
    configured = settings_in(tmp_path, sip_outbound_address="trunk.example.com")
    body: dict[str, Any] = {
        "room_name": "r",
        "participant_name": "n",
        "participant_identity": "i",
        "from_phone_number": US,
        "to_phone_number": "+1911",
    }
    before = asyncio.all_tasks()
    async with running(configured) as gateway:
        async with gateway.http.post("/sip/call", json=body, headers=ACME) as response:
            assert response.status == 403
            answer = await response.json()
            assert answer["code"] == "DESTINATION_NOT_ALLOWED"
            assert "emergency" in answer["error"]
        async with gateway.http.get("/v1/calls", headers=ACME) as response:
            assert (await response.json())["total"] == 0
    assert asyncio.all_tasks() <= before
