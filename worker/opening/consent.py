"""The caller's consent as a state machine: not_asked → asked → granted | refused."""

from __future__ import annotations

from typing import Final

from core.recordings.consent import ConsentBy, ConsentStatus
from worker.voice.yes_no import Answer

MOST_TIMES: Final = 2
"""The question is asked again once; then silence, or no clear answer, is a refusal."""


class Consent:
    """The consent of one call's caller. The first answer to the question counts."""

    def __init__(self) -> None:
        self.status: ConsentStatus = "not_asked"
        self.by: ConsentBy | None = None
        self._asked = 0

    @property
    def settled(self) -> bool:
        return self.status in ("granted", "refused")

    def ask(self) -> None:
        """Note that the question is asked, for the first time or again."""
        if not self.settled:
            self.status = "asked"
            self._asked += 1

    def answer(self, answer: Answer, by: ConsentBy) -> None:
        """Take an answer. One that comes before the question, or after another one, is none."""
        if self.status == "asked":
            self.status = "granted" if answer == "yes" else "refused"
            self.by = by

    def no_answer(self) -> None:
        """Note that the question got no clear answer this time."""
        if self._asked >= MOST_TIMES:
            self.answer("no", "silence")
