"""What an agent that takes over a call says first, and what it leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from core.jobs import CallBrief
from core.models import Turn, now
from core.recovery import Recovered
from worker.voice.failures import reentry
from worker.voice.prepared import PreparedSpeech


@dataclass(frozen=True, slots=True)
class Resumption:
    """``line`` is the re-entry line, ``owed`` the caller's turn that waits for an answer."""

    so_far: Recovered
    line: PreparedSpeech | None = None
    owed: Turn | None = None

    @property
    def answered_at(self) -> datetime:
        assert self.so_far.answered_at is not None
        return self.so_far.answered_at

    @property
    def passed_s(self) -> float:
        """Seconds since the answer."""
        return (now() - self.answered_at).total_seconds()

    @property
    def told_s(self) -> float:
        """Seconds from the answer until the former agent was lost."""
        return (self.so_far.lost_at - self.answered_at).total_seconds()


def resumption_of(brief: CallBrief) -> Resumption | None:
    """Return it; None: the agent is the first that the far end meets."""
    so_far = brief.recovered
    if so_far is None or so_far.answered_at is None:
        return None
    if so_far.give_up or so_far.machine is not None:
        return Resumption(so_far)
    text = None if so_far.untouched else reentry(brief.agent.config)
    line = None if text is None else PreparedSpeech(text)
    return Resumption(so_far, line, _owed(so_far, hosted=brief.agent.config.voice_mode == "hosted"))


def _owed(so_far: Recovered, *, hosted: bool) -> Turn | None:
    """Return the turn that is still to be answered, or to be answered to its end.

    A webhook's tools and transfers come after its answer, so that an answer is whole.
    """
    if so_far.keys:
        return None  # they become a turn, whose answer is one to both
    last = so_far.turns[-1] if so_far.turns else None
    if hosted and so_far.unfinished and last is not None and last.transcript:
        return last
    return so_far.unanswered
