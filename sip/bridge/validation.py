"""Checks what goes into an INVITE. livekit-server checks most of it, but allows line breaks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from livekit.protocol.sip import SIPMediaConfig, SIPMediaEncryption

from sip.bridge.twirp import TwirpError

# RFC 3261 §25.1 "user" without the characters that begin parameters, headers and passwords.
_USER: Final = re.compile(r"[A-Za-z0-9._!~*'()&=+$,/#%-]{1,128}")
_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]{1,253})(?::(\d{1,5}))?")
_TOKEN: Final = re.compile(r"[A-Za-z0-9.!%*_+`'~-]{1,255}")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_DTMF: Final = re.compile(r"[0-9*#A-Da-dwW]*")
_MAX_HEADER_VALUE: Final = 1024
_MAX_DISPLAY_NAME: Final = 128

# Set by the SIP stack, or able to redirect the dialog (RFC 3261 §20, RFC 3515).
FORBIDDEN_HEADERS: Final = frozenset(
    "accept accept-encoding accept-language allow allow-events authorization call-id contact "
    "content-disposition content-encoding content-length content-type cseq event expires from "
    "max-forwards proxy-authorization record-route refer-to reply-to require route to via "
    "c e f i k l m o r s t u v".split()
)


def user(value: str, field: str) -> str:
    """Check a phone number or SIP user. Raises TwirpError ``invalid_argument``."""
    if "@" in value:
        raise invalid(f"{field} should be a phone number or SIP user, not a full SIP URI")
    if not _USER.fullmatch(value):
        raise invalid(f"{field} should be a phone number or SIP user")
    return value


def host(value: str, field: str) -> str:
    """Check ``host`` or ``host:port``. Raises TwirpError ``invalid_argument``."""
    match = _HOST.fullmatch(value)
    if match is None or (match[1] is not None and not 0 < int(match[1]) < 65536):
        raise invalid(f"{field} should be a hostname or IP, not SIP URI")
    return value


def display_name(value: str) -> str:
    """Check a name that goes between double quotes. Raises TwirpError ``invalid_argument``."""
    if len(value) > _MAX_DISPLAY_NAME:
        raise invalid(f"DisplayName too long (max {_MAX_DISPLAY_NAME} characters)")
    if _CONTROL.search(value) or '"' in value or "\\" in value:
        raise invalid("DisplayName must be a valid quoted string")
    return value


def headers(values: Mapping[str, str]) -> dict[str, str]:
    """Check extra headers of an INVITE. Raises TwirpError ``invalid_argument``."""
    for name, value in values.items():
        if not _TOKEN.fullmatch(name) or name.lower() in FORBIDDEN_HEADERS:
            raise invalid(f"invalid header name: {name[:64]!r} is not supported")
        if _CONTROL.search(value) or len(value) > _MAX_HEADER_VALUE:
            raise invalid(f"invalid header value for {name}")
    return dict(values)


def dtmf(value: str) -> str:
    """Check digits and ``w``, a pause of half a second. Raises TwirpError ``invalid_argument``."""
    if not _DTMF.fullmatch(value):
        raise invalid("dtmf must consist of 0-9, *, #, A-D and w")
    return value


def media(config: SIPMediaConfig, encryption: int) -> None:
    """Raises TwirpError if a call requires media encryption or allows neither PCMU nor PCMA."""
    wanted = config.encryption if config.HasField("encryption") else encryption
    if wanted == SIPMediaEncryption.SIP_MEDIA_ENCRYPT_REQUIRE:
        raise TwirpError("unimplemented", "media encryption is not supported by this service")
    names = {codec.name.lower() for codec in config.codecs}
    if config.only_listed_codecs and not names & {"pcmu", "pcma"}:
        raise TwirpError("unimplemented", "only the codecs PCMU and PCMA are supported")


def invalid(message: str) -> TwirpError:
    return TwirpError("invalid_argument", message)
