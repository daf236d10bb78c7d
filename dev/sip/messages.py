"""SIP messages for the test elements: bytes in, bytes out, no sockets.

The message model and the header codecs are ``aiosipua``'s. This module adds the functions
of a proxy or a minimal user agent server: validation of messages, replies (RFC 3261 §8.2.6),
and the Via and Route steps of a stateless proxy (§16.11).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping

from aiosipua.headers import SipUri, Via, parse_address, parse_uri, stringify_via
from aiosipua.message import SipMessage, SipRequest, SipResponse, missing_required_headers

Address = tuple[str, int]

# The long forms that aiosipua does not know yet (RFC 3515, 3892, 4028, 6665).
_MORE_COMPACT_FORMS = {
    "r": "Refer-To",
    "b": "Referred-By",
    "x": "Session-Expires",
    "o": "Event",
    "u": "Allow-Events",
}

REASONS: Mapping[int, str] = {
    100: "Trying",
    180: "Ringing",
    200: "OK",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    407: "Proxy Authentication Required",
    408: "Request Timeout",
    480: "Temporarily Unavailable",
    481: "Call/Transaction Does Not Exist",
    483: "Too Many Hops",
    484: "Address Incomplete",
    486: "Busy Here",
    487: "Request Terminated",
    488: "Not Acceptable Here",
    500: "Server Internal Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    600: "Busy Everywhere",
    603: "Decline",
    604: "Does Not Exist Anywhere",
}


class MalformedMessage(ValueError):
    """The datagram is not a SIP message; it gets no answer."""


def parse(datagram: bytes) -> SipRequest | SipResponse:
    """Parse one datagram.

    Folded lines, compact forms and any case of header names are accepted; names are
    returned in their long form.

    Raises:
        MalformedMessage: not SIP/2.0, or without the headers that every message needs
            (Via, From, To, Call-ID, CSeq; RFC 3261 §8.1.1).
    """
    datagram = datagram.lstrip(b"\r\n")  # RFC 3261 §7.5
    try:
        message = SipMessage.parse(datagram)
        _expand(message)
        if isinstance(message, SipRequest):
            if not _is_request_line(datagram):
                raise MalformedMessage("not a SIP/2.0 request line")
            missing = missing_required_headers(message)
        else:
            if not (datagram.startswith(b"SIP/2.0 ") and 100 <= message.status_code <= 699):
                raise MalformedMessage("not a SIP/2.0 status line")
            missing = [
                n for n in ("via", "from", "to", "call-id", "cseq") if n not in message.headers
            ]
        cseq = message.cseq
        via = message.via
    except MalformedMessage:
        raise
    except (ValueError, IndexError, UnboundLocalError) as error:
        # aiosipua raises UnboundLocalError for some Vias without "SIP/2.0/…".
        raise MalformedMessage(str(error)) from error
    if missing:
        raise MalformedMessage(f"without {', '.join(missing)}")
    if cseq is None or not cseq.method:
        raise MalformedMessage("CSeq without a method")
    # Checked in the text: aiosipua parses "nonsense" as a host of the default protocol.
    if not all(text.upper().startswith("SIP/2.0/") for text in message.headers.get("via")):
        raise MalformedMessage("Via of another protocol")
    if not all(hop.host for hop in via):
        raise MalformedMessage("Via without a host")
    return message


def _is_request_line(datagram: bytes) -> bool:
    parts = datagram.split(b"\n", 1)[0].rstrip(b"\r").split(b" ")
    return len(parts) == 3 and parts[2] == b"SIP/2.0" and parts[0].isalnum()


def _expand(message: SipMessage) -> None:
    for short, name in _MORE_COMPACT_FORMS.items():
        values = message.headers.get(short)
        if values:
            for value in values:
                message.headers.append(name, value)
            message.headers.remove(short)


def headers_of(message: SipMessage) -> dict[str, str]:
    """Return every header by lower-case name; several values are joined with ", "."""
    return {name.lower(): ", ".join(values) for name, values in message.headers.items()}


def uri_of(header: str) -> SipUri:
    """Return the URI of a From, To, Contact, Route or Refer-To value."""
    return parse_address(header).uri


def audio_port(message: SipMessage) -> int | None:
    """Return the port at which the sender of an SDP wants audio (RFC 4566 §5.14); None without."""
    for line in message.body.splitlines():
        kind, _, rest = line.partition(b" ")
        port = rest.partition(b" ")[0]
        if kind == b"m=audio" and port.isdigit():
            return int(port)
    return None


def to_tag(message: SipMessage) -> str | None:
    """Return the To tag. Only requests inside a dialog have one (RFC 3261 §12.2)."""
    address = message.to_addr
    return address.tag if address is not None else None


def reply(
    request: SipRequest,
    status: int,
    *,
    reason: str | None = None,
    tag: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> SipResponse:
    """Return the response to a request, addressed by its Via (RFC 3261 §8.2.6.2).

    Args:
        reason: The phrase; by default the standard one.
        tag: The To tag if the request has none (never on a 100); by default a random one.
            Pass the same one for every response to one request.
        headers: Further headers, e.g. a challenge.
    """
    response = SipResponse(
        status_code=status,
        reason_phrase=REASONS.get(status, "Unknown") if reason is None else reason,
    )
    for name in ("Via", "From", "To", "Call-ID", "CSeq"):
        for value in request.headers.get(name):
            response.headers.append(name, value)
    if status > 100 and to_tag(request) is None:
        value = request.headers.get_first("To", "") or ""
        response.headers.set_single("To", f"{value};tag={tag or secrets.token_hex(4)}")
    for name, value in (headers or {}).items():
        response.headers.append(name, value)
    return response


def stamp_received(request: SipRequest, source: Address) -> None:
    """Write the request's source address into its top Via (RFC 3581 §4)."""
    top, *rest = request.headers.get("via")
    via = request.via[0]
    if "rport" in via.params:
        via.rport = str(source[1])
        via.received = source[0]
    elif via.host != source[0]:
        via.received = source[0]
    else:
        return
    _set_all(request, "Via", [stringify_via(via), *rest])


def response_target(response: SipResponse) -> Address:
    """Return the address in a response's top Via (RFC 3261 §18.2.2, RFC 3581)."""
    via = response.via[0]
    port = int(via.rport) if via.rport else (via.port or 5060)
    return via.received or via.host, port


def push_via(request: SipRequest, address: Address) -> None:
    """Add our Via. Its branch is computed from the Via below, so that a CANCEL and the
    ACK to a refusal get the same branch as their INVITE (RFC 3261 §16.11)."""
    below = request.headers.get_first("via", "")
    digest = hashlib.sha256(f"{address}|{below}".encode()).hexdigest()[:24]
    via = Via(host=address[0], port=address[1])
    via.branch = f"z9hG4bK{digest}"
    _set_all(request, "Via", [stringify_via(via), *request.headers.get("via")])


def pop_via(response: SipResponse) -> None:
    """Remove our Via from a response."""
    _set_all(response, "Via", response.headers.get("via")[1:])


def pop_own_routes(request: SipRequest, address: Address) -> None:
    """Remove the leading Route entries that name this element."""
    routes = list(request.headers.get("route"))
    while routes and uri_address(uri_of(routes[0])) == address:
        routes.pop(0)
    _set_all(request, "Route", routes)


def push_record_route(request: SipRequest, address: Address) -> None:
    """Add our Record-Route, so that later requests of the dialog pass here (loose routing)."""
    own = f"<sip:{address[0]}:{address[1]};lr>"
    _set_all(request, "Record-Route", [own, *request.headers.get("record-route")])


def next_hop(request: SipRequest) -> Address:
    """Return the address of the first Route, else of the Request-URI."""
    route = request.headers.get_first("route")
    return uri_address(uri_of(route) if route else parse_uri(request.uri))


def uri_address(uri: SipUri) -> Address:
    """Return the host and port of a SIP URI (by default 5060)."""
    host = "127.0.0.1" if uri.host == "localhost" else uri.host
    return host, uri.port or 5060


def _set_all(message: SipMessage, name: str, values: list[str]) -> None:
    message.headers.remove(name)
    for value in values:
        message.headers.append(name, value)
