"""Parses the SIP trace for data that the stack's events lack: source addresses, tags, headers.

baresip's events carry at most 16 headers, named in advance, and no source address. Its message
trace has every header and the source address, so the endpoint reads the trace. The trace is
never logged, as it holds digest responses. Sans-I/O.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field

_HEAD = re.compile(r"(RX|TX) (\w+) (\S+) -> (\S+)")
_TAG = re.compile(r";\s*tag=([^;>\s]+)", re.IGNORECASE)
_URI = re.compile(
    r"sips?:(?:[^@<>,\s]*@)?(\[[^\]]*\]|[^:;?>,\s]*)(:[0-9]*)?([^>,]*)", re.IGNORECASE
)
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_BRACKETED = re.compile(r"<([^<>]*)>")
_MADDR = re.compile(r";\s*maddr\s*=\s*([^;?>,\s]+)", re.IGNORECASE)
# RFC 3261 §7.3.3: the compact forms.
_COMPACT = {"i": "call-id", "f": "from", "t": "to", "v": "via", "m": "contact"}


@dataclass(frozen=True, slots=True)
class SipMessage:
    """One message; headers in order of appearance, their names in lower case."""

    received: bool
    source: str
    first_line: str
    headers: tuple[tuple[str, str], ...]

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def call_id(self) -> str | None:
        return self.header("call-id")

    @property
    def source_ip(self) -> str:
        """The packet's source address, without port; IPv6 without brackets."""
        return self.source.rpartition(":")[0].strip("[]")

    @property
    def status(self) -> int | None:
        """The status code of a response; None for a request."""
        parts = self.first_line.split(" ", 2)
        return int(parts[1]) if parts[0] == "SIP/2.0" and parts[1].isdigit() else None

    @property
    def is_challenge(self) -> bool:
        """True for a 401 or 407 with a challenge header, which can be answered (RFC 3261 §22)."""
        header = {401: "www-authenticate", 407: "proxy-authenticate"}.get(self.status or 0)
        return header is not None and self.header(header) is not None

    @property
    def method(self) -> str:
        """The method of a request, or of the request that a response answers."""
        if self.status is None:
            return self.first_line.partition(" ")[0]
        return (self.header("cseq") or "").rpartition(" ")[2]


def parse(record: str) -> SipMessage | None:
    """Parse a trace record: ``RX UDP source -> destination``, then the message. None if not one."""
    head, _, text = record.lstrip().partition("\n")
    match = _HEAD.match(head)
    if match is None:
        return None
    block = text.replace("\r\n", "\n").partition("\n\n")[0]
    first, *lines = block.split("\n")
    headers: list[tuple[str, str]] = []
    for line in lines:
        if line[:1] in {" ", "\t"} and headers:  # RFC 3261 §7.3.1: a folded line
            name, value = headers[-1]
            headers[-1] = (name, f"{value} {line.strip()}")
            continue
        name, colon, value = line.partition(":")
        if colon:
            key = name.strip().lower()
            headers.append((_COMPACT.get(key, key), value.strip()))
    return SipMessage(match[1] == "RX", match[3], first.strip(), tuple(headers))


@dataclass(slots=True)
class DialogTrace:
    """What has been received with one Call-ID so far.

    ``opening`` is the far end's INVITE to us, or its final response to ours (other than an
    authentication challenge).
    """

    opening: SipMessage | None = None

    @property
    def remote_tag(self) -> str | None:
        """The far end's tag: in From of its INVITE, in To of its response."""
        if self.opening is None:
            return None
        text = self.opening.header("from" if self.opening.status is None else "to")
        match = _TAG.search(text or "")
        return match[1] if match else None

    @property
    def status_line(self) -> str | None:
        """The final response's status (``486 Busy Here``); None if the far end sent the INVITE."""
        if self.opening is None or self.opening.status is None:
            return None
        return self.opening.first_line.partition(" ")[2]

    @property
    def remote_headers(self) -> tuple[tuple[str, str], ...]:
        return self.opening.headers if self.opening is not None else ()

    @property
    def next_hops(self) -> tuple[str, ...]:
        """``host[:port]`` of each possible next hop of our requests in the dialog; empty: unknown.

        That is the last Record-Route of the far end's response, else its Contact (RFC 3261
        §12.1.2). Usually one; more if a malformed header can be read in several ways.
        """
        for wanted in ("record-route", "contact"):
            values = [value for name, value in self.remote_headers if name == wanted]
            if values:
                return _hops(values[-1] if wanted == "record-route" else values[0], wanted)
        return ()


def _hops(value: str, header: str) -> tuple[str, ...]:
    plain = _QUOTED.sub("", value)
    bracketed = _BRACKETED.findall(plain)
    outside = _BRACKETED.sub("", plain)
    if '"' in plain or "<" in outside or ">" in outside:
        # Unbalanced quotes or brackets: any URI in the header may be meant.
        meant = _URI.findall(value)
    elif bracketed:
        chosen = bracketed[-1 if header == "record-route" else 0]
        meant = [*_URI.findall(chosen), *_URI.findall(outside)]
    else:
        meant = _URI.findall(plain)
    found: list[str] = []
    for host, port, parameters in meant:
        instead = _MADDR.search(parameters)
        found.append(f"{instead[1] if instead else host}{port}")
    return tuple(found)


@dataclass(slots=True)
class TraceBook:
    """The latest dialogs, by Call-ID; older ones are dropped."""

    limit: int = 1000
    _dialogs: OrderedDict[str, DialogTrace] = field(default_factory=OrderedDict)

    def add(self, message: SipMessage) -> None:
        call_id = message.call_id
        if call_id is None or not message.received:
            return
        dialog = self._dialogs.setdefault(call_id, DialogTrace())
        if message.method == "INVITE":
            if message.status is None or (message.status >= 200 and not message.is_challenge):
                dialog.opening = dialog.opening or message
        while len(self._dialogs) > self.limit:
            self._dialogs.popitem(last=False)

    def of(self, call_id: str | None) -> DialogTrace:
        return self._dialogs.get(call_id or "", DialogTrace())
