"""Builds the transcript's turns from the session's messages: who said what, when, and how fast.

A turn starts with the caller's words and is posted at once. It is posted again, under the
same id, when the answer (or the part of it that the caller heard) is known. Unasked speech
of the agent, such as the greeting, is a turn of its own with an empty transcript.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from livekit.agents.llm import ChatMessage

from core.models import Turn, Word, new_id
from worker.timing.call_clock import CallClock
from worker.timing.timed_words import Timed, timed_words
from worker.timing.turn_clock import TurnClock
from worker.timing.turn_parts import TurnEnd

# The Cartesia plugin aligns words with the text it has so far. It drops the space after a
# sentence or clause if the next one has not arrived yet ("at seven.Press one").
_RUN_TOGETHER = re.compile(r"([^\W\d_]{2}[.!?,;])([^\W\d_])")

_TURN, _ITEM = "turn_", "item_"

Post = Callable[[str, dict[str, Any]], object]


class Transcript:
    """Posts ``turn`` and ``barge_in`` events.

    A turn's times come from the audio where ``clock`` has it, else from the session's events, and
    are put on the clock of the call.
    """

    def __init__(self, post: Post, clock: TurnClock, call: CallClock) -> None:
        self._post = post
        self._clock = clock
        self._call = call
        self._hung_up = False
        self._turn: Turn | None = None
        self._turn_end: TurnEnd | None = None
        self._has_answered = False
        self._replied = False

    @property
    def replied(self) -> bool:
        """The caller has said something after an answer of this agent."""
        return self._replied

    @property
    def turn_id(self) -> str | None:
        """The caller's last turn; None: they have said nothing yet."""
        return None if self._turn is None else self._turn.id

    def go_on(self, turn: Turn) -> None:
        """The next answer is to this turn, which is on record already."""
        self._turn = turn

    def hung_up(self) -> None:
        """Note the hang-up: an answer cut off from now on is not a barge-in."""
        self._hung_up = True

    def add(self, message: ChatMessage, *, unasked: bool = False) -> None:
        """Add a complete message: the caller's when the turn has ended, the agent's when it was
        spoken or cut off, with the text that the caller may have heard."""
        text = spoken_text(message)
        if message.role == "user":
            self._replied = self._has_answered
            self._caller_said(message, text)
        elif message.role == "assistant" and text:
            self._has_answered = self._has_answered or not unasked
            self._agent_said(message, text, unasked=unasked)

    def _caller_said(self, message: ChatMessage, text: str) -> None:
        start = self._clock.turn_start(message)
        end = self._turn_end = self._clock.turn_end(message)
        stopped = message.metrics.get("stopped_speaking_at", message.created_at)
        said_ms = self._call.said_ms
        self._turn = Turn(
            id=turn_id_of(message),
            transcript=text,
            confidence=message.transcript_confidence,
            start_ms=said_ms(message.created_at if start is None else start),
            end_ms=said_ms(stopped if end is None else end.speech_end),
            words=_words(self._clock.turn_words(message, text), said_ms),
        )
        self._publish(self._turn)

    def _agent_said(self, message: ChatMessage, text: str, *, unasked: bool) -> None:
        spoken = self._clock.spoken(message)
        began = message.metrics.get("started_speaking_at", message.created_at)
        if spoken and spoken[0].voiced is not None:
            began = spoken[0].voiced
        stopped = message.metrics.get("stopped_speaking_at", message.created_at)
        stopped = max((part.quiet for part in spoken if part.quiet is not None), default=stopped)
        start, end = self._call.heard_ms(began), self._call.heard_ms(stopped)
        words = timed_words(text, [word for part in spoken for word in part.words])
        asked = None if unasked else self._turn
        turn = asked or Turn(id=new_id("turn"))
        latency = turn.latency
        # The caller's wait ends with the first words of the answer.
        if asked and not asked.response and self._turn_end and spoken:
            latency = self._clock.parts(self._turn_end, message, spoken[0])
        turn = turn.model_copy(
            update={
                # A turn has several answers if a tool is called between them.
                "response": f"{turn.response} {text}".strip(),
                "response_start_ms": start
                if turn.response_start_ms is None
                else turn.response_start_ms,
                "response_end_ms": end,
                "response_words": [*turn.response_words, *_words(words, self._call.heard_ms)],
                "interrupted": message.interrupted,
                "latency": latency,
            }
        )
        if asked is not None:
            self._turn = turn
        self._publish(turn)
        if message.interrupted and not self._hung_up:
            self._post("barge_in", {"atMs": end, "heard": text})

    def _publish(self, turn: Turn) -> None:
        self._post("turn", turn.wire())


def _words(timed: list[Timed], to_ms: Callable[[float], int | None]) -> list[Word]:
    """Return the words on the call's clock; none before the answer."""
    words: list[Word] = []
    for text, start, end in timed:
        start_ms, end_ms = to_ms(start), to_ms(end)
        if start_ms is not None and end_ms is not None:
            words.append(Word(text=text, start_ms=start_ms, end_ms=end_ms))
    return words


def turn_id_of(message: ChatMessage) -> str:
    """Return the id of the turn that is this message of the caller's: the one tells the other."""
    return _TURN + message.id.removeprefix(_ITEM)


def message_id_of(turn_id: str) -> str:
    """Return the id of the message that ``turn_id_of`` makes this of."""
    return _ITEM + turn_id.removeprefix(_TURN)


def spoken_text(message: ChatMessage) -> str:
    """Return a message's text as it goes on the record."""
    return _parted((message.text_content or "").strip())


def _parted(text: str) -> str:
    """Insert missing spaces after sentences and clauses; names like example.com stay whole."""

    def part(met: re.Match[str]) -> str:
        apart = met[1][-1] in ",;" or met[2].isupper()
        return f"{met[1]} {met[2]}" if apart else met[0]

    return _RUN_TOGETHER.sub(part, text)
