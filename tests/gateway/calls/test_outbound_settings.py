"""The gateway checks SIP_OUTBOUND_… at its start, as it checks a request's ``sip``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dev.process import ManagedProcess, inherited_environment
from dev.stack.environment import GivenSettings, as_variables
from dev.stack.options import ROOT
from gateway.calls.trunks import check_settings
from tests.support.inprocess import running, settings_in

pytestmark = [pytest.mark.unit, pytest.mark.attack]

BAD = [
    ("sip_outbound_address", "s3cret host"),
    ("sip_outbound_address", "sip:trunk.example.com"),
    ("sip_outbound_address", "trunk.example.com:99999"),
    ("sip_outbound_address", "trunk.example.com:0"),
    ("sip_outbound_address", "trunk.example.com;transport=tcp"),
    ("sip_outbound_address", "user:s3cret@trunk.example.com"),
    ("sip_outbound_address", "trunk.example.com\r\nVia: s3cret"),
    ("sip_outbound_address", "127.1"),
    ("sip_outbound_address", "::1"),
    ("sip_outbound_auth_username", 'a"s3cret'),
    ("sip_outbound_auth_username", "a\\s3cret"),
    ("sip_outbound_auth_username", "a\r\nX: s3cret"),
    ("sip_outbound_auth_username", "s3cret" * 50),
    ("sip_outbound_auth_password", "s3cret" * 50),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_wrong_one_is_named_and_not_shown(name: str, value: str) -> None:
    values: dict[str, Any] = {name: value}
    with pytest.raises(ValueError) as refused:
        check_settings(GivenSettings(**values))
    text = str(refused.value)
    assert text.startswith(f"{name.upper()}: ")
    assert "s3cret" not in text


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"sip_outbound_address": "trunk.example.com"},
        {"sip_outbound_address": "10.0.0.1:5080"},
        {"sip_outbound_address": "[::1]:5060", "sip_outbound_auth_username": "John Doe"},
        {"sip_outbound_auth_username": "u", "sip_outbound_auth_password": 'p "\\ ä'},
    ],
)
def test_good_ones(values: dict[str, Any]) -> None:
    check_settings(GivenSettings(**values))


async def test_the_gateway_is_not_made(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, sip_outbound_address="sip:trunk.example.com")
    with pytest.raises(ValueError, match="^SIP_OUTBOUND_ADDRESS: "):
        async with running(settings):
            pass


async def test_the_process_does_not_start(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, sip_outbound_address="trunk.example.com:99999")
    gateway = ManagedProcess(
        "gateway",
        [sys.executable, "-m", "gateway"],
        log_path=tmp_path / "gateway.log",
        env=inherited_environment() | {"PYTHONPATH": str(ROOT)} | as_variables(settings),
    )
    await gateway.start()
    try:
        assert await gateway.wait() == 2
    finally:
        await gateway.kill()
    assert "gateway: SIP_OUTBOUND_ADDRESS: " in gateway.log_text()
    assert "Traceback" not in gateway.log_text()
