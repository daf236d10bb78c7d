"""Choose an outbound trunk: the request's host, the number's, or SIP_OUTBOUND_…, in that order.

Our credentials, or a number's, are never sent to a host that the request chose.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel, Field, SecretStr, StrictStr, ValidationError

from core.errors import BadRequest, ServerFault
from core.models import PhoneNumber
from core.settings import Settings
from gateway.store.call_trunks import OwnTrunk
from gateway.store.credentials import (
    CredentialStore,
    SipSecret,
    TwilioSecret,
    Unreadable,
    unreadable,
)
from gateway.store.database import Scope
from sip.addresses import parse_outbound_address
from sip.dial import Transport, Trunk
from sip.guard import AddressRefused, SipGuard


class SipOverrides(BaseModel):
    """Per-request SIP configuration. A null or missing field takes the usual value."""

    outbound_address: StrictStr | None = Field(None, description="hostname or hostname:port")
    # It is placed in a quoted string of a SIP header.
    auth_username: StrictStr | None = Field(None, max_length=256, pattern=r'^[^\x00-\x1f"\\\x7f]*$')
    auth_password: SecretStr | None = Field(None, max_length=256, strict=True)


def has_a_say(sip: SipOverrides | None) -> bool:
    """Return True if the request changes any part of the usual trunk."""
    return sip is not None and any(value is not None for _, value in sip)


def check_settings(settings: Settings) -> None:
    """Check SIP_OUTBOUND_… like a request's ``sip``. Raises ValueError naming the setting."""
    secret = settings.sip_outbound_auth_password
    given = {
        "outbound_address": settings.sip_outbound_address,
        "auth_username": settings.sip_outbound_auth_username,
        "auth_password": None if secret is None else secret.get_secret_value(),
    }
    try:
        chosen_trunk(SipOverrides.model_validate(given), settings.sip_outbound_transport, None)
    except BadRequest as error:
        raise ValueError(f"SIP_OUTBOUND_ADDRESS: {error.message}") from None
    except ValidationError as error:
        # Without the value, which may be the password.
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise ValueError(f"SIP_OUTBOUND_{str(fault['loc'][0]).upper()}: {fault['msg']}") from None


def chosen_trunk(
    sip: SipOverrides | None, transport: Transport, tenant: str | None
) -> Trunk | None:
    """Return the trunk that the request of ``tenant`` names; None: it names no host.

    Raises BadRequest ``INVALID_OUTBOUND_ADDRESS``.
    """
    if sip is None or sip.outbound_address is None:
        return None
    address = str(parse_outbound_address(sip.outbound_address))
    return with_credentials(Trunk(address=address, transport=transport, tenant=tenant), sip)


def with_credentials(trunk: Trunk, sip: SipOverrides | None) -> Trunk:
    """Return ``trunk`` with the request's credentials overriding its own, field by field."""
    if sip is None:
        return trunk
    password = None if sip.auth_password is None else sip.auth_password.get_secret_value()
    return replace(
        trunk,
        username=trunk.username if sip.auth_username is None else sip.auth_username,
        password=trunk.password if password is None else password,
    )


def make_trunk(
    overrides: SipOverrides | None, settings: Settings, tenant: str | None = None
) -> Trunk:
    """Return the request's trunk, or the global one with the request's credentials.

    Raises BadRequest ``INVALID_OUTBOUND_ADDRESS``, ServerFault ``OUTBOUND_ADDRESS_NOT_CONFIGURED``.
    """
    chosen = chosen_trunk(overrides, settings.sip_outbound_transport, tenant)
    if chosen is not None:
        return chosen
    hint = "give sip.outbound_address or set SIP_OUTBOUND_ADDRESS"
    return with_credentials(_global_trunk(settings, hint), overrides)


def may_call_out(number: PhoneNumber) -> bool:
    return number.direction != "inbound" and number.status == "active"


async def outbound_trunk(
    number: PhoneNumber, credentials: CredentialStore, settings: Settings
) -> Trunk:
    """Return the trunk of the number's credential if it names a SIP host, else SIP_OUTBOUND_….

    Raises ServerFault ``OUTBOUND_ADDRESS_NOT_CONFIGURED``, ``CREDENTIAL_UNREADABLE``; Unavailable.
    """
    own = await _own(number, credentials)
    if own is not None:
        return own
    hint = "give the number's credential one, or set SIP_OUTBOUND_ADDRESS"
    return _global_trunk(settings, hint)


def _global_trunk(settings: Settings, hint: str) -> Trunk:
    if settings.sip_outbound_address is None:
        raise ServerFault(
            f"No SIP outbound address: {hint}", code="OUTBOUND_ADDRESS_NOT_CONFIGURED"
        )
    return Trunk(
        address=settings.sip_outbound_address,
        username=settings.sip_outbound_auth_username,
        password=_plain(settings.sip_outbound_auth_password),
        transport=settings.sip_outbound_transport,
    )


async def check_trunk(guard: SipGuard, trunk: Trunk) -> None:
    """Check the trunk before a dial. Raises Forbidden ``DESTINATION_NOT_ALLOWED``."""
    if trunk.tenant is not None:
        await guard.check(trunk.address, tls=trunk.tls, tenant=trunk.tenant)


async def sip_objection(guard: SipGuard, trunk: Trunk) -> str | None:
    """Return why ``check_trunk`` would refuse; None: it would not."""
    try:
        await check_trunk(guard, trunk)
    except AddressRefused as refused:
        return refused.message
    return None


async def _own(number: PhoneNumber, credentials: CredentialStore) -> Trunk | None:
    if number.credential_id is None:
        return None
    try:
        found = await credentials.find(Scope(number.auth_id), number.credential_id)
    except Unreadable:
        raise unreadable() from None
    if found is None:
        return None
    credential, secret = found
    if credential.provider == "sip":
        return opened(SipSecret.model_validate(secret), number.auth_id)
    return _twilio(TwilioSecret.model_validate(secret), number.auth_id)


def sealable(trunk: Trunk) -> OwnTrunk:
    """Return the trunk in the form that is stored sealed; ``opened`` is the inverse."""
    return OwnTrunk(
        address=trunk.address,
        username=trunk.username,
        password=None if trunk.password is None else SecretStr(trunk.password),
        transport=trunk.transport,
        country=trunk.country,
        tenant=trunk.tenant,
    )


def opened(secret: SipSecret, tenant: str | None) -> Trunk:
    """Return the trunk. ``tenant`` chose its address; None: the operator did."""
    return Trunk(
        address=secret.address,
        username=secret.username,
        password=_plain(secret.password),
        transport=secret.transport,
        country=secret.country,
        tenant=tenant,
    )


def _twilio(secret: TwilioSecret, tenant: str | None) -> Trunk | None:
    if secret.sip_address is None:
        return None
    return Trunk(
        address=secret.sip_address,
        username=secret.username,
        password=_plain(secret.password),
        tenant=tenant,
    )


def _plain(password: SecretStr | None) -> str | None:
    return None if password is None else password.get_secret_value()
