"""TwiML documents, parsed as strictly as Twilio documents them.

Only the verbs that this project uses are known; any other element or attribute is an error.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from dev.standins.twilio.errors import Fault
from dev.standins.twilio.hosts import LOOPBACK

NOT_XML, NOT_ALLOWED, CONTENT_TYPE = 12100, 12200, 12300
WRONG_SCHEME, WRONG_URL, WRONG_TRACK = 31922, 31923, 31941
_LONGEST_PARAMETER = 500
"""Characters of a <Parameter>'s name and value together."""

Method: TypeAlias = Literal["GET", "POST"]


@dataclass(frozen=True)
class Connect:
    """<Connect><Stream>: the call's audio goes over a WebSocket, both ways."""

    url: str
    parameters: Mapping[str, str]
    name: str | None = None
    status_callback: str | None = None
    status_method: Method = "POST"


@dataclass(frozen=True)
class Redirect:
    url: str
    method: Method = "POST"


@dataclass(frozen=True)
class Hangup:
    pass


@dataclass(frozen=True)
class Say:
    text: str


@dataclass(frozen=True)
class Pause:
    length_s: int = 1


@dataclass(frozen=True)
class Dial:
    number: str
    caller_id: str | None = None
    timeout_s: int = 30
    action: str | None = None
    method: Method = "POST"
    status_callback: str | None = None
    status_events: tuple[str, ...] = ("completed",)


@dataclass(frozen=True)
class Reject:
    reason: Literal["rejected", "busy"] = "rejected"


Verb: TypeAlias = Connect | Redirect | Hangup | Say | Pause | Dial | Reject


def parse(content_type: str, text: str) -> list[Verb]:
    """Return the verbs of an HTTP answer. Raises Fault with Twilio's code."""
    if content_type.partition(";")[0].strip().lower() not in ("text/xml", "application/xml"):
        raise Fault(CONTENT_TYPE, f"content type {content_type!r}")
    return parse_text(text)


def parse_text(text: str) -> list[Verb]:
    """Return the verbs of a document. Raises Fault with Twilio's code."""
    if "<!DOCTYPE" in text:
        raise Fault(NOT_XML, "a document type")
    try:
        # Bytes, since a declared encoding is not allowed in a string.
        root = ET.fromstring(text.encode())
    except ET.ParseError as error:
        raise Fault(NOT_XML, str(error)) from None
    if root.tag != "Response":
        raise Fault(NOT_XML, f"<{root.tag}> instead of <Response>")
    return [_VERBS[child.tag](child) for child in _children(root, set(), set(_VERBS))]


def _children(element: ET.Element, attributes: set[str], inside: set[str]) -> Iterator[ET.Element]:
    """Yield the children; only these attributes and elements are allowed, and no text."""
    _only(element, attributes)
    for text in (element.text, *(child.tail for child in element)):
        if text and text.strip():
            raise Fault(NOT_ALLOWED, f"text in <{element.tag}>")
    for child in element:
        if child.tag not in inside:
            raise Fault(NOT_ALLOWED, f"<{child.tag}> in <{element.tag}>")
        yield child


def _only(element: ET.Element, attributes: set[str]) -> None:
    for name in element.attrib.keys() - attributes:
        raise Fault(NOT_ALLOWED, f"attribute {name} of <{element.tag}>")


def _empty(element: ET.Element, attributes: set[str]) -> None:
    for _ in _children(element, attributes, set()):
        pass


def _words(element: ET.Element, attributes: set[str]) -> str:
    _only(element, attributes)
    text = (element.text or "").strip()
    if len(element) or not text:
        raise Fault(NOT_ALLOWED, f"<{element.tag}> must hold text only")
    return text


def _method(element: ET.Element, name: str = "method") -> Method:
    match element.get(name, "POST").upper():
        case "GET":
            return "GET"
        case "POST":
            return "POST"
    raise Fault(NOT_ALLOWED, f"{name} of <{element.tag}>")


def _whole(element: ET.Element, name: str, default: int, least: int) -> int:
    text = element.get(name, str(default))
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) < least:
        raise Fault(NOT_ALLOWED, f"{name}={text!r} of <{element.tag}>")
    return int(text)


def _connect(element: ET.Element) -> Verb:
    streams = list(_children(element, set(), {"Stream"}))
    if len(streams) != 1:
        raise Fault(NOT_ALLOWED, "<Connect> must hold one <Stream>")
    return _stream(streams[0])


def _stream(element: ET.Element) -> Connect:
    parameters: dict[str, str] = {}
    allowed = {"url", "name", "track", "statusCallback", "statusCallbackMethod"}
    for child in _children(element, allowed, {"Parameter"}):
        _empty(child, {"name", "value"})
        name, value = child.get("name", ""), child.get("value")
        if not name or value is None or len(name) + len(value) > _LONGEST_PARAMETER:
            raise Fault(NOT_ALLOWED, f"<Parameter name={name!r}> without value, or too long")
        parameters[name] = value
    if element.get("track", "inbound_track") != "inbound_track":
        raise Fault(WRONG_TRACK, "<Connect> takes the inbound track only")
    return Connect(
        _stream_url(element.get("url", "")),
        parameters,
        element.get("name"),
        element.get("statusCallback"),
        _method(element, "statusCallbackMethod"),
    )


def _stream_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "wss" and not (parts.scheme == "ws" and parts.hostname in LOOPBACK):
        raise Fault(WRONG_SCHEME, f"url {url!r} of <Stream> must be wss")
    if not parts.hostname or parts.query or parts.fragment:
        raise Fault(WRONG_URL, f"url {url!r} of <Stream>: no host, or a query string")
    return url


def _redirect(element: ET.Element) -> Verb:
    return Redirect(_words(element, {"method"}), _method(element))


def _hangup(element: ET.Element) -> Verb:
    _empty(element, set())
    return Hangup()


def _say(element: ET.Element) -> Verb:
    return Say(_words(element, {"voice", "language"}))


def _pause(element: ET.Element) -> Verb:
    _empty(element, {"length"})
    return Pause(_whole(element, "length", 1, 0))


def _dial(element: ET.Element) -> Verb:
    numbers = list(_children(element, {"action", "method", "timeout", "callerId"}, {"Number"}))
    if len(numbers) != 1:
        raise Fault(NOT_ALLOWED, "<Dial> must hold one <Number>")
    number = numbers[0]
    events = tuple(number.get("statusCallbackEvent", "completed").split())
    if not set(events) <= {"initiated", "ringing", "answered", "completed"}:
        raise Fault(NOT_ALLOWED, f"statusCallbackEvent {events} of <Number>")
    return Dial(
        _words(number, {"statusCallback", "statusCallbackEvent"}),
        element.get("callerId"),
        _whole(element, "timeout", 30, 1),
        element.get("action"),
        _method(element),
        number.get("statusCallback"),
        events,
    )


def _reject(element: ET.Element) -> Verb:
    _empty(element, {"reason"})
    match element.get("reason", "rejected"):
        case "rejected":
            return Reject()
        case "busy":
            return Reject("busy")
    raise Fault(NOT_ALLOWED, "reason of <Reject>")


_VERBS: dict[str, Callable[[ET.Element], Verb]] = {
    "Connect": _connect,
    "Redirect": _redirect,
    "Hangup": _hangup,
    "Say": _say,
    "Pause": _pause,
    "Dial": _dial,
    "Reject": _reject,
}
