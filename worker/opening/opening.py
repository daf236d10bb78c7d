"""The part of a call between the answer and the greeting: the disclosure, the question about
consent, and its answer.

While consent is asked for, the gate is shut, and the caller's words and keys answer the question
or nothing: the agent's brain gets none of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal, Protocol

from core.jobs import CallBrief
from core.models import Turn
from core.recordings.consent import ConsentBy
from core.tasks.first_of import first_of
from worker.opening import texts
from worker.opening.consent import Consent
from worker.opening.resumption import Resumption
from worker.privacy.gate import Gate
from worker.voice.prepared import PreparedSpeech
from worker.voice.yes_no import Answer, by_key, by_words

Post = Callable[[str, dict[str, Any]], object]

ANSWER_WITHIN_S = 7.0
"""After the question."""
# The caller is speaking when that time is up: the turn must end, and be understood.
_FINISH_WITHIN_S = 10.0
_UNDERSTOOD_WITHIN_S = 3.0
_AT_MOST_S = 20.0


class Speaker(Protocol):
    """The part of worker.voice.conversation that the opening uses."""

    @property
    def silenced(self) -> bool:
        """True if the agent says no more, because a machine answered."""

    def divert(self, turns: Callable[[str], None] | None) -> None:
        """Pass the caller's turns to ``turns`` only, or let them be answered again."""

    async def announce(self, speech: PreparedSpeech, *, attentive: bool) -> bool:
        """Say ``speech``, which the caller cannot interrupt; return False if it was stopped.

        ``attentive``: hear the caller meanwhile, and keep ``speech`` in the conversation's history.
        """

    async def hush(self) -> None:
        """Stop the current speech."""

    async def synthesise(self, speech: PreparedSpeech) -> bool:
        """Synthesise ``speech``; return False if the TTS failed, which is reported already."""

    def greet(self, line: PreparedSpeech | None = None, owed: Turn | None = None) -> None:
        """Say ``line`` and the greeting, and answer ``owed``, the caller's last turn."""


class Opening:
    """The opening of one call. Making it shuts the gate if the call's consent is opt_in.

    An agent that takes over (``resumption``) says the re-entry line, then what of the opening is
    still to be said. A question that was asked and not answered is asked again; an answer stays.

    ``post`` posts events that hold no words. ``end`` ends the call. ``on_busy`` is called when the
    exchange about consent begins and ends.
    """

    def __init__(
        self,
        brief: CallBrief,
        *,
        gate: Gate,
        post: Post,
        end: Callable[[Literal["consent_refused"]], None],
        on_busy: Callable[[bool], None],
        resumption: Resumption | None = None,
    ) -> None:
        disclosure, question = texts.disclosure(brief), texts.question(brief)
        refused = False
        if resumption is not None:
            so_far = resumption.so_far
            disclosure = None if so_far.disclosed else disclosure
            refused = question is not None and so_far.consent == "refused"
            question = None if so_far.consent in ("granted", "refused") else question
        self._line = None if resumption is None else resumption.line
        self._owed = None if resumption is None else resumption.owed
        self._disclosure = None if disclosure is None else PreparedSpeech(disclosure)
        self._question = None if question is None else PreparedSpeech(question)
        self._goodbye = (
            PreparedSpeech(texts.goodbye(brief))
            if brief.agent.config.consent.on_refused == "hang_up"
            else None
        )
        self._language = brief.agent.config.language
        self._gate = gate
        self._post = post
        self._end = end
        self._on_busy = on_busy
        self._consent = Consent()
        self._asking = self._question is not None
        self._listening = False
        self._news = asyncio.Event()
        self._patience: asyncio.Timeout | None = None
        self._since = 0.0
        self._caller_speaks = False
        self._leaves = refused and self._goodbye is not None
        if self._question is not None or refused:
            gate.shut("consent")

    @property
    def speeches(self) -> list[PreparedSpeech]:
        """The speeches to synthesise before the answer, in their order."""
        all_of_them = (self._line, self._disclosure, self._question)
        return [one for one in all_of_them if one is not None]

    async def run(self, speaker: Speaker) -> None:
        """Say and ask everything, then greet. Cancelling it ends the exchange without an answer."""
        if self._asking:
            speaker.divert(self._said)
            self._on_busy(True)
        if self._leaves and self._goodbye is not None:
            return await self._hang_up(self._goodbye, speaker)
        line = self._line
        if line is not None and self.speeches[1:]:
            await speaker.announce(line, attentive=True)
            line = None
        if self._disclosure is not None:
            if not await speaker.announce(self._disclosure, attentive=True):
                return
            self._post("disclosure.spoken", {})
        if self._question is not None:
            await self._ask(self._question, speaker)
            if not self._consent.settled:
                return  # a machine answered; it cannot consent
            if self._consent.status == "refused" and self._goodbye is not None:
                return await self._hang_up(self._goodbye, speaker)
            self._asking = False
            self._on_busy(False)
            speaker.divert(None)
        speaker.greet(line, self._owed)

    def pressed(self, key: str) -> bool:
        """Take a key; return False if it is not for the opening. Keys count during the question."""
        if self._asking and (answer := by_key(key)) is not None:
            self._answered(answer, "key")
        return self._asking

    def typed(self, text: str) -> bool:
        """Take written words, as ``pressed`` takes keys."""
        if self._asking and self._consent.status == "asked":
            self._take(text)
        return self._asking

    def busy(self, who: str, busy: bool) -> None:
        """Note that the caller starts or stops speaking: an answer begun in time counts."""
        if who == "caller":
            self._caller_speaks = busy
            self._wait(_FINISH_WITHIN_S if busy else _UNDERSTOOD_WITHIN_S)

    def _said(self, text: str) -> None:
        # What is said before the end of the question answers something else, such as the phone.
        if self._listening:
            self._take(text)

    def _take(self, text: str) -> None:
        answer = by_words(text, self._language)
        if answer == "yes" and "?" in text:
            answer = None
        if answer is not None:
            self._answered(answer, "words")
        elif self._listening:
            self._news.set()

    def _answered(self, answer: Answer, by: ConsentBy) -> None:
        self._consent.answer(answer, by)
        if self._consent.settled:
            self._news.set()

    async def _ask(self, question: PreparedSpeech, speaker: Speaker) -> None:
        """Ask until there is an answer, or the agent was silenced."""
        consent = self._consent
        while not consent.settled:
            self._news.clear()
            consent.ask()
            self._post("consent.asked", {})
            await self._put(question, speaker)
            if not consent.settled and not speaker.silenced:
                await self._listen()
            if speaker.silenced and not consent.settled:
                return
            consent.no_answer()
        self._post(f"consent.{consent.status}", {"by": consent.by})
        if consent.status == "granted":
            self._gate.open("consent")

    async def _put(self, question: PreparedSpeech, speaker: Speaker) -> None:
        """Say the question, until its end or an answer."""
        async with asyncio.TaskGroup() as tasks:
            saying = tasks.create_task(speaker.announce(question, attentive=False))
            await first_of(saying, self._news.wait())
            if not saying.done():
                await speaker.hush()

    async def _listen(self) -> None:
        """Wait until the caller has answered, clearly or not, or says nothing."""
        self._news.clear()
        self._listening = True
        self._since = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S) as self._patience:
                if self._caller_speaks:
                    self._wait(_FINISH_WITHIN_S)
                await self._news.wait()
        except TimeoutError:
            pass
        finally:
            self._listening, self._patience = False, None

    def _wait(self, seconds: float) -> None:
        """Wait for ``seconds`` from now, but not less and not more than any caller is given."""
        if self._patience is None or self._patience.expired():
            return
        until = asyncio.get_running_loop().time() + seconds
        least, most = self._since + ANSWER_WITHIN_S, self._since + _AT_MOST_S
        self._patience.reschedule(min(max(until, least), most))

    async def _hang_up(self, goodbye: PreparedSpeech, speaker: Speaker) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(speaker.synthesise(goodbye))
            await speaker.announce(goodbye, attentive=False)
        self._end("consent_refused")
