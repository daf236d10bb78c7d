"""Which numbers may be called; what libphonenumber does not decide, our rules do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import settings as settings_module
from core.errors import Forbidden
from gateway.policy import DialPolicy
from sip.addresses import called_number
from tests.conftest import ACME
from tests.inprocess import running, settings_in

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
        # Nobody's number anywhere, and so for the trunk to refuse.
        ("+" + "9" * 20, US),
        ("1" * 20, US),
        ("+0", "+"),
        # 900 is a premium prefix in North America, not in Germany.
        ("9002345678", DE),
    ],
)
def test_ordinary_numbers(to_number: str, from_number: str) -> None:
    assert DEFAULT.objection(to_number, from_number) is None


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
    assert DEFAULT.objection(to_number, from_number) == f"it is {kind} number"
    with pytest.raises(Forbidden) as caught:
        DEFAULT.check(to_number, from_number)
    assert caught.value.code == "DESTINATION_NOT_ALLOWED"
    assert to_number not in caught.value.message
    assert DialPolicy(allow_special=True).objection(to_number, from_number) is None


@pytest.mark.parametrize(
    ("to_number", "from_number", "allowed"),
    [
        ("+14155550199", US, True),
        ("+15551234567", US, True),
        ("4155550199", US, True),
        ("14155550199", "100", True),
        ("0015105550123", DE, True),
        ("1000", US, True),
        ("+442071234567", US, False),
        ("442071234567", US, False),
        ("00442071234567", US, False),
        ("+14162345678", US, False),  # Toronto
        ("01511234567", DE, False),
        ("+999123456789", US, False),
        ("+979123456789", US, False),
        ("+881612345678", US, False),
        ("0000000", US, False),
    ],
)
def test_allowed_countries(to_number: str, from_number: str, allowed: bool) -> None:
    policy = DialPolicy(allowed_countries=frozenset({"US"}), allow_special=True)
    why = policy.objection(to_number, from_number)
    assert why == (None if allowed else "its country is not among those allowed")


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
    assert policy.objection(to_number, DE) == (None if allowed else "its prefix is blocked")


@given(
    to_number=st.from_regex(r"\+?[0-9]{1,20}", fullmatch=True),
    from_number=st.from_regex(r"(\+?[0-9]{1,20})?", fullmatch=True),
)
def test_every_number_gets_an_answer(to_number: str, from_number: str) -> None:
    everything = DialPolicy(allowed_countries=frozenset({"US", "DE"}), blocked_prefixes=("+1242",))
    plain = DEFAULT.objection(to_number, from_number)
    strict = everything.objection(to_number, from_number)
    assert plain is None or strict is not None, "narrower settings allow nothing more"


def test_an_unknown_country_refuses_to_start() -> None:
    with pytest.raises(ValueError, match="DIAL_ALLOWED_COUNTRIES: unknown XX"):
        DialPolicy(allowed_countries=frozenset({"US", "XX"}))


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENV_FILE", "")
    monkeypatch.setenv("DIAL_ALLOWED_COUNTRIES", "de, AT,,ch")
    monkeypatch.setenv("DIAL_BLOCKED_PREFIXES", " +881,0190 ")
    settings = settings_module.load()
    assert settings.dial_allowed_countries == {"DE", "AT", "CH"}
    assert settings.dial_blocked_prefixes == ("+881", "0190")
    assert DialPolicy.from_settings(settings).objection(US) is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
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
    """Refused before LiveKit is asked for anything; it is not there."""
    settings = settings_in(tmp_path, sip_outbound_address="trunk.example.com")
    body: dict[str, Any] = {
        "room_name": "r",
        "participant_name": "n",
        "participant_identity": "i",
        "from_phone_number": US,
        "to_phone_number": "+1911",
    }
    before = asyncio.all_tasks()
    async with running(settings) as gateway:
        async with gateway.http.post("/sip/call", json=body, headers=ACME) as response:
            assert response.status == 403
            answer = await response.json()
            assert answer["code"] == "DESTINATION_NOT_ALLOWED"
            assert "emergency" in answer["error"]
        async with gateway.http.get("/v1/calls", headers=ACME) as response:
            assert (await response.json())["total"] == 0
    assert asyncio.all_tasks() <= before
