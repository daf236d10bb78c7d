"""The ``sip`` object of a request: where this one call goes out instead, and with what.

Credentials of ours, or of a number, never go to a host that the caller chose.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel, Field, SecretStr, StrictStr, ValidationError

from core.errors import BadRequest
from core.settings import Settings
from sip.addresses import parse_outbound_address
from sip.dial import Transport, Trunk


class SipOverrides(BaseModel):
    """Per-request SIP configuration. A null or missing field takes the usual value."""

    outbound_address: StrictStr | None = Field(None, description="hostname or hostname:port")
    # It goes into a quoted string of a SIP header.
    auth_username: StrictStr | None = Field(None, max_length=256, pattern=r'^[^\x00-\x1f"\\\x7f]*$')
    auth_password: SecretStr | None = Field(None, max_length=256, strict=True)


def has_a_say(sip: SipOverrides | None) -> bool:
    """Whether the request changes anything of the usual trunk."""
    return sip is not None and any(value is not None for _, value in sip)


def check_settings(settings: Settings) -> None:
    """SIP_OUTBOUND_… as a request's ``sip`` is checked. Raises ValueError naming the setting."""
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
        # Never with the value, which may be the password.
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise ValueError(f"SIP_OUTBOUND_{str(fault['loc'][0]).upper()}: {fault['msg']}") from None


def chosen_trunk(
    sip: SipOverrides | None, transport: Transport, tenant: str | None
) -> Trunk | None:
    """The trunk that the request of ``tenant`` names; None: it names no host.

    Raises BadRequest ``INVALID_OUTBOUND_ADDRESS``.
    """
    if sip is None or sip.outbound_address is None:
        return None
    address = str(parse_outbound_address(sip.outbound_address))
    return with_credentials(Trunk(address=address, transport=transport, tenant=tenant), sip)


def with_credentials(trunk: Trunk, sip: SipOverrides | None) -> Trunk:
    """``trunk`` with the request's credentials before its own, field by field."""
    if sip is None:
        return trunk
    password = None if sip.auth_password is None else sip.auth_password.get_secret_value()
    return replace(
        trunk,
        username=trunk.username if sip.auth_username is None else sip.auth_username,
        password=trunk.password if password is None else password,
    )
