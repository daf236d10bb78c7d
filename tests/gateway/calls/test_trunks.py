"""The LiveKit objects of an attached number, and the trunk that its calls go out by."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr

from core.errors import ServerFault
from core.models import CredentialProvider, PhoneNumber, now
from gateway.calls.trunks import outbound_trunk
from gateway.store.credentials import CredentialStore, Secret, SipSecret, TwilioSecret, Vault
from gateway.store.database import Database, Scope
from sip import dispatch, trunks
from sip.dial import Trunk
from tests.support.inprocess import settings_in

pytestmark = pytest.mark.store

GLOBAL: dict[str, Any] = {
    "sip_outbound_address": "trunk.example.com:5080",
    "sip_outbound_auth_username": "ours",
    "sip_outbound_auth_password": "global-passw0rd",
    "sip_outbound_transport": "tls",
}


def number(**changes: Any) -> PhoneNumber:
    values: dict[str, Any] = {
        "id": "num_1",
        "auth_id": "acme",
        "phone_number": "+14155550123",
        "country": "US",
        "provider": "sip",
        "direction": "both",
        "status": "active",
        "created_at": now(),
    }
    return PhoneNumber(**{**values, **changes})


def test_the_inbound_trunk() -> None:
    trunk = trunks.inbound_trunk(
        number(), agent_name="switchroom", allowed_addresses=["203.0.113.0/24"]
    ).trunk
    assert trunk.name == "num_1"
    assert list(trunk.numbers) == ["+14155550123", "14155550123"]
    assert list(trunk.allowed_addresses) == ["203.0.113.0/24"]
    assert trunk.ringing_timeout.ToSeconds() == 15
    assert json.loads(trunk.metadata) == {
        "auth_id": "acme",
        "number_id": "num_1",
        "agent_name": "switchroom",
    }
    assert trunks.number_id_of(trunk, "switchroom") == "num_1"
    assert trunks.number_id_of(trunk, "staging") is None


def test_the_dispatch_rule() -> None:
    rule = dispatch.dispatch_rule(number(), "ST_1", agent_name="switchroom").dispatch_rule
    callee = rule.rule.dispatch_rule_callee  # no room name holds the caller's number
    assert (callee.room_prefix, callee.pin, callee.randomize) == ("in", "", True)
    assert list(rule.trunk_ids) == ["ST_1"]
    assert (rule.name, dict(rule.attributes)) == ("num_1", {"switchroom.leg": "caller:num_1"})
    label = {"auth_id": "acme", "number_id": "num_1"}
    assert json.loads(rule.metadata) == json.loads(rule.room_config.metadata) == label
    assert (rule.room_config.empty_timeout, rule.room_config.departure_timeout) == (30, 3)
    (agent,) = rule.room_config.agents
    assert agent.agent_name == "switchroom"
    assert json.loads(agent.metadata) == {"numberId": "num_1", "authId": "acme"}
    assert dispatch.number_id_of(rule, "switchroom") == "num_1"
    assert dispatch.number_id_of(rule, "staging") is None


def test_the_operators_number_names_no_tenant() -> None:
    own = number(auth_id=None)
    trunk = trunks.inbound_trunk(own, agent_name="switchroom").trunk
    rule = dispatch.dispatch_rule(own, "ST_1", agent_name="switchroom").dispatch_rule
    assert "auth_id" not in trunk.metadata + rule.metadata + rule.room_config.metadata
    assert json.loads(rule.room_config.agents[0].metadata) == {"numberId": "num_1"}


@pytest.mark.parametrize(
    "metadata", ["", "x", "[]", "1", "{}", '{"number_id": 1}', '{"number_id": "num_2"}', "[" * 9999]
)
def test_what_others_made_is_not_ours(metadata: str) -> None:
    trunk = trunks.inbound_trunk(number(), agent_name="switchroom").trunk
    trunk.metadata = metadata
    assert trunks.number_id_of(trunk, "switchroom") is None
    rule = dispatch.dispatch_rule(number(), "ST_1", agent_name="switchroom").dispatch_rule
    rule.metadata = metadata
    assert dispatch.number_id_of(rule, "switchroom") is None


@pytest.fixture
async def credentials(tmp_path: Path) -> AsyncIterator[CredentialStore]:
    database = await Database.open(f"sqlite:///{tmp_path / 'credentials.db'}")
    yield CredentialStore(database, Vault([Fernet.generate_key().decode()]))
    await database.close()


TWILIO = TwilioSecret(account_sid="AC1", auth_token=SecretStr("token"))
TERMINATION = {"sip_address": "acme.pstn.twilio.com", "username": "u", "password": SecretStr("p")}
OURS = Trunk(
    address="trunk.example.com:5080", username="ours", password="global-passw0rd", transport="tls"
)


@pytest.mark.parametrize(
    ("provider", "secret", "wanted"),
    [
        ("sip", SipSecret(address="acme.example"), Trunk(address="acme.example", tenant="acme")),
        (
            "sip",
            SipSecret(
                address="a.example:5061", username="u", password=SecretStr("p"), transport="tls"
            ),
            Trunk(
                address="a.example:5061",
                username="u",
                password="p",
                transport="tls",
                tenant="acme",
            ),
        ),
        ("twilio", TWILIO, OURS),
        (
            "twilio",
            TWILIO.model_copy(update=TERMINATION),
            Trunk(address="acme.pstn.twilio.com", username="u", password="p", tenant="acme"),
        ),
    ],
)
async def test_which_trunk_a_call_goes_out_by(
    credentials: CredentialStore,
    tmp_path: Path,
    provider: CredentialProvider,
    secret: Secret,
    wanted: Trunk,
) -> None:
    """Only the credential's own host gets its login, and that host is its tenant's choice."""
    made = await credentials.create(Scope("acme"), "trunk", provider, secret.reveal())
    trunk = await outbound_trunk(
        number(credential_id=made.id), credentials, settings_in(tmp_path, **GLOBAL)
    )
    assert trunk == wanted
    assert "global-passw0rd" not in repr(trunk)


async def test_a_number_without_a_credential(credentials: CredentialStore, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, **GLOBAL)
    assert await outbound_trunk(number(), credentials, settings) == OURS
    with pytest.raises(ServerFault) as caught:
        await outbound_trunk(number(), credentials, settings_in(tmp_path))
    assert caught.value.code == "OUTBOUND_ADDRESS_NOT_CONFIGURED"


async def test_a_credential_of_a_lost_key(credentials: CredentialStore, tmp_path: Path) -> None:
    secret = SipSecret(address="acme.example").reveal()
    made = await credentials.create(Scope("acme"), "trunk", "sip", secret)
    other = CredentialStore(credentials._database, Vault([Fernet.generate_key().decode()]))
    with pytest.raises(ServerFault) as caught:
        await outbound_trunk(number(credential_id=made.id), other, settings_in(tmp_path, **GLOBAL))
    assert caught.value.code == "CREDENTIAL_UNREADABLE"


async def test_another_tenants_credential_is_not_found(
    credentials: CredentialStore, tmp_path: Path
) -> None:
    secret = SipSecret(address="rival.example").reveal()
    made = await credentials.create(Scope("rival"), "trunk", "sip", secret)
    trunk = await outbound_trunk(
        number(credential_id=made.id), credentials, settings_in(tmp_path, **GLOBAL)
    )
    assert trunk == OURS
