"""Checks for everything that a client puts into a call: numbers, hosts, headers, DTMF.

LiveKit passes some of it on unchecked (a CR LF in the caller's number reaches the wire,
``sip:+1510;x=y`` is dialled), so all of it is checked here before it is sent. An error
message never repeats the refused value.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from core.errors import BadRequest, Detail

MAX_PHONE_DIGITS = 20
MAX_HEADERS = 32
MAX_HEADER_BYTES = 1024
MAX_ALL_HEADERS_BYTES = 4096
MAX_DTMF = 64

_PHONE = re.compile(rf"\+?[0-9]{{1,{MAX_PHONE_DIGITS}}}")
# RFC 1123 §2.1, and the underscore that container networks put into host names.
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_PORT = re.compile(r"[0-9]{1,5}")
# RFC 3261 §25.1 allows more, but servers read "1900-names", "+1900~" and "%31900" as numbers.
_SIP_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_HEADER_NAME = re.compile(r"[Xx]-[A-Za-z0-9!#$%&'*+.^_`|~-]{1,62}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# "w" is LiveKit's half-second pause.
_DTMF = re.compile(rf"[0-9*#A-Dw]{{1,{MAX_DTMF}}}")


@dataclass(frozen=True, slots=True)
class Address:
    """``host`` is a name, an IPv4 address, or an IPv6 address without its brackets."""

    host: str
    port: int | None = None

    def __str__(self) -> str:
        """Return LiveKit's ``hostname`` form: ``host``, ``host:port``, ``[v6]:port``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


def normalize_phone(value: str, parameter: str = "to_phone_number") -> str:
    """Strip white space and require an optional ``+``, then 1 to 20 ASCII digits.

    Raises BadRequest ``INVALID_PHONE_NUMBER``.
    """
    number = value.strip()
    if _PHONE.fullmatch(number):
        return number
    if not number:
        reason = "it is empty"
    elif re.fullmatch(r"\+?[0-9]+", number):
        reason = f"more than {MAX_PHONE_DIGITS} digits"
    else:
        reason = "only digits are allowed, after an optional leading +"
    raise _refused(parameter, f"Invalid {parameter}: {reason}", "INVALID_PHONE_NUMBER")


def parse_outbound_address(value: str, parameter: str = "sip.outbound_address") -> Address:
    """Parse ``hostname``, IPv4 or ``[IPv6]``, each with an optional port 1..65535.

    Raises BadRequest ``INVALID_OUTBOUND_ADDRESS``.
    """
    address = _parse_address(value)
    if address is None:
        message = "Invalid outbound address: expected hostname, IPv4 or [IPv6], optionally :port"
        raise _refused(parameter, message, "INVALID_OUTBOUND_ADDRESS")
    return address


def parse_transfer_target(value: str, parameter: str = "transfer_to") -> str:
    """Return the Refer-To URI for a phone number, ``tel:number`` or ``sip[s]:user@host[:port]``.

    The user is a phone number or a plain name that begins with a letter. URI parameters and
    headers are refused: they would reach the wire, and ``?Replaces=…`` does more than a
    transfer. Raises BadRequest ``INVALID_TRANSFER_TARGET``.
    """
    target = value.strip()
    scheme, colon, rest = target.partition(":")
    scheme = scheme.lower()
    if not colon:
        return f"tel:{normalize_phone(target, parameter)}"
    if scheme == "tel" and _PHONE.fullmatch(rest):
        return f"tel:{rest}"
    if scheme in {"sip", "sips"}:
        user, at, host = rest.partition("@")
        address = _parse_address(host)
        known = _PHONE.fullmatch(user) or _SIP_NAME.fullmatch(user)
        if at and known and address is not None:
            return f"{scheme}:{user}@{address}"
    message = f"Invalid {parameter}: expected a phone number, tel:number or sip:user@host[:port]"
    raise _refused(parameter, message, "INVALID_TRANSFER_TARGET")


def called_number(uri: str) -> str:
    """Return the phone number that a ``tel:`` or ``sip:`` URI calls; empty for a plain name.

    If the user is neither a number nor a name, return its digits: a server may dial them.
    """
    _, _, rest = uri.partition(":")
    user, at, _ = rest.partition("@")
    if at and _SIP_NAME.fullmatch(user):
        return ""
    digits = re.sub(r"[^0-9]", "", user)
    return f"+{digits}" if digits and user.lstrip().startswith("+") else digits


def called_host(uri: str) -> str | None:
    """Return the ``host[:port]`` of a URI from ``parse_transfer_target``; None for ``tel:``."""
    _, at, host = uri.partition("@")
    return host if at else None


def check_headers(headers: Mapping[str, str], parameter: str = "headers") -> dict[str, str]:
    """Check extra SIP headers: ``X-`` names only, values without control characters.

    At most 32 headers, 1024 bytes for a value and 4096 bytes in all, so that the INVITE can
    still be delivered. Raises BadRequest ``INVALID_REQUEST``.
    """
    if len(headers) > MAX_HEADERS:
        raise _refused(parameter, f"Invalid {parameter}: more than {MAX_HEADERS} headers")
    seen: set[str] = set()
    total = 0
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise _refused(parameter, f"Invalid {parameter}: names must have the form X-Name")
        field = f"{parameter}.{name}"
        if name.lower() in seen:
            raise _refused(field, f"Invalid {parameter}: the same name twice")
        seen.add(name.lower())
        if _CONTROL.search(value):
            raise _refused(field, f"Invalid {parameter}: control characters in a value")
        size = len(value.encode())
        if size > MAX_HEADER_BYTES:
            message = f"Invalid {parameter}: a value of more than {MAX_HEADER_BYTES} bytes"
            raise _refused(field, message)
        total += len(name) + size
    if total > MAX_ALL_HEADERS_BYTES:
        message = f"Invalid {parameter}: more than {MAX_ALL_HEADERS_BYTES} bytes in all"
        raise _refused(parameter, message)
    return dict(headers)


def check_dtmf(digits: str, parameter: str = "dtmf") -> str:
    """Require 1 to 64 of ``0-9 * # A-D`` and ``w``, a pause of half a second.

    Raises BadRequest ``INVALID_REQUEST``.
    """
    if not _DTMF.fullmatch(digits):
        message = f"Invalid {parameter}: expected 1 to {MAX_DTMF} of 0-9, *, #, A-D and w"
        raise _refused(parameter, message)
    return digits


def _parse_address(value: str) -> Address | None:
    if value.startswith("["):
        literal, bracket, tail = value[1:].partition("]")
        if not bracket or not _is_ipv6(literal) or (tail and not tail.startswith(":")):
            return None
        return _with_port(literal.lower(), tail[1:] if tail else None)
    host, colon, port = value.partition(":")
    if not _is_ipv4(host) and not _is_hostname(host):
        return None
    return _with_port(host, port if colon else None)


def _with_port(host: str, port: str | None) -> Address | None:
    if port is None:
        return Address(host)
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        return None
    return Address(host, int(port))


def _is_ipv6(text: str) -> bool:
    try:
        # A zone (fe80::1%eth0) is meaningful on one machine only.
        return "%" not in text and ipaddress.IPv6Address(text) is not None
    except ValueError:
        return False


def _is_ipv4(text: str) -> bool:
    try:
        return ipaddress.IPv4Address(text) is not None
    except ValueError:
        return False


def _is_hostname(text: str) -> bool:
    labels = text.removesuffix(".").split(".")
    # RFC 3696 §2: a last label of digits only would be read as an (odd) IPv4 address.
    return (
        len(text) <= 253
        and all(_LABEL.fullmatch(label) for label in labels)
        and not labels[-1].isdigit()
    )


def _refused(field: str, message: str, code: str | None = None) -> BadRequest:
    """Return the error: a specific code implies the field; INVALID_REQUEST names it in details."""
    if code is not None:
        return BadRequest(message, code=code)
    return BadRequest(message, details=[Detail(field, message, "value_error")])
