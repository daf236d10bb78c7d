"""Keeps words out of the log while they may not be kept, also without LOG_REDACT.

livekit-agents logs what it hears and says. A stream worker serves many calls in one process, and
records do not name theirs, so all words are withheld while any of the calls may keep none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from core.logs import is_speech
from worker.privacy.gate import Gate


class _Withhold(logging.Filter):
    """Replaces the fields of records that hold words while the gate is shut."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    def filter(self, record: logging.LogRecord) -> bool:
        if not self._gate.is_open:
            for name in filter(is_speech, record.__dict__):
                record.__dict__[name] = "[withheld]"
        return True


@contextmanager
def words_withheld(gate: Gate) -> Iterator[None]:
    """Keep words out of this process's log while ``gate`` is shut, within the block."""
    withhold = _Withhold(gate)
    handlers = logging.getLogger().handlers[:]
    for handler in handlers:
        handler.addFilter(withhold)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(withhold)
