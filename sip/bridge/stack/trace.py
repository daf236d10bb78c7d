"""What the SIP trace tells that the stack's events do not: peers, tags, every header.

baresip's events carry 16 headers named in advance and no source address. Its
message trace carries all of both, so the endpoint reads the trace (which never
reaches a log: it holds digest answers). Sans-I/O.
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
    """One message; header names in lower case, in order of appearance."""

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
        """The packet's source without its port; IPv6 without brackets."""
        return self.source.rpartition(":")[0].strip("[]")

    @property
    def status(self) -> int | None:
        """The status code of a response, None for a request."""
        parts = self.first_line.split(" ", 2)
        return int(parts[1]) if parts[0] == "SIP/2.0" and parts[1].isdigit() else None

    @property
    def is_challenge(self) -> bool:
        """A 401 or 407 that can be answered (RFC 3261 §22)."""
        header = {401: "www-authenticate", 407: "proxy-authenticate"}.get(self.status or 0)
        return header is not None and self.header(header) is not None

    @property
    def method(self) -> str:
        """The method of a request, or of the request that a response answers."""
        if self.status is None:
            return self.first_line.partition(" ")[0]
        return (self.header("cseq") or "").rpartition(" ")[2]


def parse(record: str) -> SipMessage | None:
    """One trace record (``RX UDP source -> destination``, then the message); None if it is not."""
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
    """What one Call-ID has received so far.

    ``opening`` is the message that speaks for the far end: its INVITE to us, or its
    final answer to ours (authentication challenges aside).
    """

    opening: SipMessage | None = None

    @property
    def remote_tag(self) -> str | None:
        """The far end's tag: From of its INVITE, To of its answer."""
        if self.opening is None:
            return None
        text = self.opening.header("from" if self.opening.status is None else "to")
        match = _TAG.search(text or "")
        return match[1] if match else None

    @property
    def status_line(self) -> str | None:
        """``486 Busy Here``, when the opening message is an answer."""
        if self.opening is None or self.opening.status is None:
            return None
        return self.opening.first_line.partition(" ")[2]

    @property
    def remote_headers(self) -> tuple[tuple[str, str], ...]:
        return self.opening.headers if self.opening is not None else ()

    @property
    def next_hops(self) -> tuple[str, ...]:
        """``host[:port]`` of all that our requests in the dialog may go to; empty: not to be told.

        That is the last Record-Route of the far end's answer, else its Contact (RFC 3261
        §12.1.2). One, as it should be; more where a reader could take the header for another.
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
        # Quotes or brackets without an end: whatever is in it may be meant.
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
    """The dialogs seen lately, by Call-ID; the oldest are forgotten."""

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
