"""The audio side of redaction: what of a recording is silenced, and until when that is known.

A recording is written while the call goes on, and words are judged once their turn is on the
record. So the recording is not written beyond the beginning of a speech that is not judged yet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

MARGIN_MS: Final = 100
"""Providers locate words about this exactly."""

LAG_MS = 15_000
"""Words that no voice activity was reported for are on the record after this long."""

MOST_MS = 300_000
"""Of a longer speech, what is older than this is silenced: 20 MB of audio wait in memory."""

_BEFORE_MS: Final = 1_000  # speech begins before it is reported


@dataclass(slots=True)
class _Speech:
    who: str
    begin: int
    end: int | None = None


class Silencer:
    """One call's; all times are in ms on the call's clock, which ``now_ms`` tells."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._spans: dict[int, int] = {}
        self._speeches: list[_Speech] = []
        self.held_ms: int | None = None
        """When the first of the turns began that the redactor holds back."""

    def busy(self, who: str, busy: bool) -> None:
        """Note that the caller or the agent starts or stops speaking."""
        if who not in ("caller", "agent"):
            return
        last = next((each for each in reversed(self._speeches) if each.who == who), None)
        # The caller's pauses are part of a turn until it is on the record.
        if busy and (last is None or (who == "agent" and last.end is not None)):
            self._speeches.append(_Speech(who, self._now_ms()))
        elif last is not None:
            last.end = None if busy else self._now_ms()

    def told(self, end_ms: int) -> None:
        """Note that the caller's words until ``end_ms`` are judged."""
        for each in [each for each in self._speeches if each.who == "caller"]:
            if each.end is not None and each.begin <= end_ms:
                self._speeches.remove(each)
            else:
                each.begin = max(each.begin, end_ms)

    def silence(self, start_ms: int, end_ms: int) -> None:
        """Leave out the words that were said between these times."""
        self._add(max(0, start_ms - MARGIN_MS), end_ms + MARGIN_MS)

    def spans(self) -> Collection[tuple[int, int]]:
        """Return what is silent, from and to."""
        return self._spans.items()

    def known_ms(self) -> int:
        """Return until when it is known what is silent."""
        now = self._now_ms()
        self._speeches = [
            each for each in self._speeches if each.end is None or now - each.end <= LAG_MS
        ]
        begins = [each.begin - _BEFORE_MS for each in self._speeches]
        held = [] if self.held_ms is None else [self.held_ms - MARGIN_MS]
        known = max(0, min([now - LAG_MS, *begins, *held]))
        if known < now - MOST_MS:
            self._add(known, now - MOST_MS)
            known = now - MOST_MS
        return known

    def close(self) -> None:
        """Leave out what the caller was saying when the call ended, if nobody has judged it."""
        for each in self._speeches:
            if each.who == "caller":
                end = self._now_ms() if each.end is None else each.end
                self._add(max(0, each.begin - _BEFORE_MS), end)

    def _add(self, start_ms: int, end_ms: int) -> None:
        self._spans[start_ms] = max(end_ms, self._spans.get(start_ms, 0))
