"""A diagnosis as a page for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from core.shapes import rfc3339
from gateway.diagnosis.diagnose import Diagnosis, GapView, Line

_LABEL = 12
_WIDTH = 100

_HEADLINES = {
    "good": "Nothing went wrong.",
    "running": "Nothing went wrong so far; the call goes on.",
    "unknown": "Not known.",
}


def page(diagnosis: Diagnosis) -> str:
    return "\n".join(_lines(diagnosis)) + "\n"


def _lines(found: Diagnosis) -> Iterator[str]:
    reason = f", {found.disconnection_reason}" if found.disconnection_reason else ""
    sip = " ".join(str(part) for part in (found.sip_status_code, found.sip_reason) if part)
    yield f"{found.call_id}  {found.status}{reason}{f'  (SIP {sip})' if sip else ''}"
    yield ""
    headline = found.cause or _HEADLINES[found.verdict]
    yield from _field("Cause", f"{headline} [{found.code}]" if found.code else headline)
    for number, line in enumerate(found.evidence):
        yield from _field("" if number else "Evidence", f"{_offset(line.offset_ms)}  {line.what}")
    if found.advice:
        yield from _field("What to do", found.advice)
    for other in found.others:
        yield from _field("Also", f"{other.cause} [{other.code}] {other.advice}")
    for sentence in found.unknown:
        yield from _field("Not known", sentence)
    yield ""
    yield from _timeline(found)


def _timeline(found: Diagnosis) -> Iterator[str]:
    cited = {line.event_id for line in found.evidence}
    gaps = list(found.gaps)
    for line in found.timeline:
        while gaps and gaps[0].since < line.at:
            yield _gap(gaps.pop(0))
        yield from _event(line, "*" if line.event_id in cited else " ")
    yield from map(_gap, gaps)


def _event(line: Line, mark: str) -> Iterator[str]:
    head = f"{mark} {_offset(line.offset_ms)}  {line.area:<9}  "
    yield from textwrap.wrap(
        line.what, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head)
    ) or [head.rstrip()]


def _gap(gap: GapView) -> str:
    came = "came late" if gap.came else "did not come"
    return f"  ....  {gap.ms / 1000:.1f} s from {rfc3339(gap.since)}: {gap.owed} {came}"


def _field(label: str, text: str) -> list[str]:
    indent = " " * _LABEL
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"{label:<{_LABEL}}", subsequent_indent=indent
    )


def _offset(ms: int) -> str:
    return f"{ms / 1000:+10.3f} s"
