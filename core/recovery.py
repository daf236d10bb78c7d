"""What gateway and workers tell each other when an agent is lost in a call and another takes over.

The agents of a call are numbered by ``epoch``: 0, and one more after each ``agent.lost``. All of
them have one identity in the call's room, so that LiveKit removes the former one when the next one
joins.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from core.models import Timestamp, Turn
from core.shapes import Model
from core.tools.memory import ToolRun

MOST_LOST: Final = 3
"""After so many lost agents, planned stops aside, the next one only apologises and hangs up."""

_SENTENCE_ENDS: Final = (".", "!", "?", "…")

Why = Literal["killed", "hung", "stopped", "failed", "vanished"]
"""``killed``: its process ended; ``hung``: it did nothing any more; ``stopped``: its worker stops,
and does not wait for the call's end; ``failed``: a defect (an exception); ``vanished``: its worker
is silent, or cannot be reached."""


class Lost(Model):
    """The body of a worker's ``POST /internal/calls/{id}/lost``; the token has the epoch."""

    why: Why
    seen_at: Timestamp
    """When the agent last did something."""
    detail: str = Field("", max_length=200)


class Replacement(Model):
    """The gateway's answer to ``Lost``."""

    comes: bool
    """True: leave without a word and without a hang-up: another agent is or was sent for, or the
    call is over, or a human has taken it over. False: it ends now, as agents were lost too often;
    the gateway hangs up."""


class OpenTransfer(Model):
    """A transfer that the former agent had begun, without an outcome so far."""

    transfer_id: str
    """To ask for its outcome again (core.transfers.TransferOrder): nobody is dialled twice."""
    mode: Literal["cold", "warm"]
    answered: bool = False
    """The human has picked up (warm), and is in the caller's room unless they hung up since."""


class Recovered(Model):
    """What the next agent needs to know of the call so far: a part of its brief.

    Derived from the call's timeline, and its memory of tools (gateway.calls.recovered).
    """

    epoch: int
    lost_at: Timestamp
    """When the former agent last did something, as far as known."""
    give_up: bool = False
    """Agents were lost too often: apologise and hang up."""
    answered_at: Timestamp | None = None
    """When the call was answered; None: not yet, and this agent answers and greets."""
    turns: list[Turn] = Field(default_factory=list)
    """In spoken order, with what was heard of each answer."""
    unfinished: bool = False
    """A tool or a transfer began after the last words of the last turn's answer."""
    greeted: bool = False
    """The caller has heard the greeting, or its beginning."""
    disclosed: bool = False
    """The disclosure was spoken."""
    consent: Literal["asked", "granted", "refused"] | None = None
    machine: Literal["voicemail", "ivr"] | None = None
    """Which machine answered; None: none that is known."""
    voicemail_left: bool = False
    silence_prompts: int = 0
    """Said since the caller was last heard."""
    keys: str = ""
    """Keys since the last turn, which no agent has answered."""
    tools: list[ToolRun] = Field(default_factory=list)
    """In the order in which they were called."""
    paused: bool = False
    """The recording is paused."""
    masked_until: Timestamp | None = None
    """When a mask of the API's ends, or has ended meanwhile."""
    typing_secretly: bool = False
    """The caller was asked for keys in secret. They are not known, and may still come."""
    transfer: OpenTransfer | None = None

    @property
    def untouched(self) -> bool:
        """True if neither caller nor agent was heard by the other."""
        heard = self.greeted or self.disclosed or self.consent is not None or bool(self.keys)
        return not heard and not self.turns

    @property
    def unanswered(self) -> Turn | None:
        """The caller's last turn, if no answer to it was heard, or none since its last tool."""
        last = self.turns[-1] if self.turns else None
        if last is None or not last.transcript:
            return None
        ran = self.tools_of_last_turn
        return last if not last.response or (ran and told_from(last, ran[-1]) is None) else None

    @property
    def tools_of_last_turn(self) -> list[ToolRun]:
        """Return the tools that were called since the caller's last words."""
        # An agent's unasked words have no start of the caller's; masked words are no more known.
        spoken = [turn for turn in self.turns if turn.start_ms is not None or turn.transcript]
        if not spoken:
            return self.tools
        known = {turn.id for turn in self.turns} - {spoken[-1].id}
        # A turn whose event was lost, or is held back, is later than all that are known.
        return [run for run in self.tools if run.called.turn not in known | {None}]


def told_from(turn: Turn, run: ToolRun) -> int | None:
    """Return which word of the turn's answer is the first that may tell of the tool's result.

    None: nothing of that was heard. A sentence that had begun when the tool answered was spoken
    while the caller waited. Without the words' times the whole answer tells of it, or nothing.
    """
    if run.answered is None or not turn.response:
        return None
    known_ms = run.answered.at_ms
    words = turn.response_words
    if not words:
        return 0 if (turn.response_end_ms or 0) > known_ms else None
    for number, word in enumerate(words):
        begins = number == 0 or words[number - 1].text.endswith(_SENTENCE_ENDS)
        if begins and word.start_ms >= known_ms:
            return number
    return None
