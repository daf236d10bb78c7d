"""The trunk that calls from an attached number go out by."""

from __future__ import annotations

from pydantic import SecretStr

from core.errors import ServerFault
from core.models import PhoneNumber
from core.settings import Settings
from gateway.store.call_trunks import OwnTrunk
from gateway.store.credentials import CredentialStore, SipSecret, TwilioSecret, Unreadable
from gateway.store.database import Scope
from sip.dial import Trunk
from sip.guard import AddressRefused, SipGuard


async def check_trunk(guard: SipGuard, trunk: Trunk) -> None:
    """Before every dial. Raises Forbidden ``DESTINATION_NOT_ALLOWED``."""
    if trunk.tenant is not None:
        await guard.check(trunk.address, tls=trunk.tls, tenant=trunk.tenant)


async def sip_objection(guard: SipGuard, trunk: Trunk) -> str | None:
    """Why ``check_trunk`` would refuse; None: it would not."""
    try:
        await check_trunk(guard, trunk)
    except AddressRefused as refused:
        return refused.message
    return None


async def outbound_trunk(
    number: PhoneNumber, credentials: CredentialStore, settings: Settings
) -> Trunk:
    """The number's own credential when it names a SIP host, else SIP_OUTBOUND_….

    Credentials of ours never go to a tenant's host. Raises ServerFault
    ``OUTBOUND_ADDRESS_NOT_CONFIGURED``, ``CREDENTIAL_UNREADABLE``; Unavailable.
    """
    own = await _own(number, credentials)
    if own is not None:
        return own
    if settings.sip_outbound_address is None:
        raise ServerFault(
            "No SIP outbound address: give the number's credential one, or set "
            "SIP_OUTBOUND_ADDRESS",
            code="OUTBOUND_ADDRESS_NOT_CONFIGURED",
        )
    return Trunk(
        address=settings.sip_outbound_address,
        username=settings.sip_outbound_auth_username,
        password=_plain(settings.sip_outbound_auth_password),
        transport=settings.sip_outbound_transport,
    )


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
    """The trunk as it can be sealed; ``opened`` is the way back."""
    return OwnTrunk(
        address=trunk.address,
        username=trunk.username,
        password=None if trunk.password is None else SecretStr(trunk.password),
        transport=trunk.transport,
        country=trunk.country,
        tenant=trunk.tenant,
    )


def opened(secret: SipSecret, tenant: str | None) -> Trunk:
    """``tenant``: who chose the address; None: the operator."""
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


def unreadable() -> ServerFault:
    return ServerFault(
        "The credential was encrypted with a key that SECRETS_KEY does not hold",
        code="CREDENTIAL_UNREADABLE",
    )
