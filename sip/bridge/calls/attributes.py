"""SIP headers as participant attributes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from livekit.protocol.sip import SIPHeaderOptions

from sip.bridge.stack.trace import DialogTrace

# Headers of well-known providers that livekit-sip always maps.
PROVIDER_HEADERS: Final[Mapping[str, str]] = {
    "x-twilio-accountsid": "sip.twilio.accountSid",
    "x-twilio-callsid": "sip.twilio.callSid",
    "x-call_leg_id": "sip.telnyx.callLegID",
    "x-call_session_id": "sip.telnyx.callSessionID",
}


def of_headers(
    received: Iterable[tuple[str, str]],
    include: int,
    mapping: Mapping[str, str],
) -> dict[str, str]:
    """Return ``sip.h.<name>`` for headers that ``include`` selects, and the names in ``mapping``.

    ``received`` has lower-case names; the first of a repeated header counts.
    """
    values: dict[str, str] = {}
    for name, value in received:
        values.setdefault(name, value)
    attributes = {
        f"sip.h.{name}": value
        for name, value in values.items()
        if include == SIPHeaderOptions.SIP_ALL_HEADERS
        or (include == SIPHeaderOptions.SIP_X_HEADERS and name.startswith("x-"))
    }
    names = {**PROVIDER_HEADERS, **{header.lower(): name for header, name in mapping.items()}}
    attributes.update((names[name], value) for name, value in values.items() if name in names)
    return attributes


def of_dialog(call_id: str | None, dialog: DialogTrace) -> dict[str, str]:
    """Return the dialog's ids: Call-ID and the far end's tag."""
    attributes = {}
    if call_id:
        attributes["sip.callIDFull"] = call_id
    if dialog.remote_tag:
        attributes["sip.callTag"] = dialog.remote_tag
    return attributes
