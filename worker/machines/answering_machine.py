"""Who answered an outbound call: a person, a voicemail box or a telephone menu.

Nobody waits for this: the agent greets at once, as if a person had answered, and is stopped
when a machine is recognised. So there is no verdict "human", only a time after which the
question is closed; and a wrong "machine", which costs a person their call, weighs more than
a late one. Hence what decides, in this order:

1. Words that only a machine says ("after the tone", "press 1"), in 7 languages, at any time. A
   message box that also offers keys ("… or press 1 for more options") is a message box; a menu
   that also takes messages ("to leave a message, press 2") is a menu.
2. In the opening (until the far end falls silent to listen), an announcement's usual words
   ("please leave a message") or two hints ("is not available", "you have reached"), without a
   word that only people say ("would you like to …?"): a secretary says the others, too.
3. In the opening, talk that does not end: 8 s and 20 words. A person says a short "hello?" and
   waits, all the more when greeted. Asterisk's AMD (``greeting`` 1.5 s), Twilio's
   (``MachineDetectionSpeechThreshold`` 2.4 s) and LiveKit's (``HUMAN_SPEECH_THRESHOLD``
   2.5 s) decide by length much sooner, and take "Good morning, Smith and Partners, Jane
   speaking" for a machine or ask a language model about it.

livekit-agents' own ``AMD`` is not used: it holds the agent's speech back until its verdict
(for a person half a second after their first words), and asks the LLM for it.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from worker.machines.phrases import CLOSED, LANGUAGES, MENU, TONE

Kind = Literal["voicemail", "ivr"]

OPEN_FOR_S = 30.0  # after the answer; longer announcements have said their words by then
_LISTENS_AFTER_S = 2.0  # of silence: the opening is over
_MONOLOGUE_S = 8.0
_MONOLOGUE_WORDS = 20
_ENOUGH_HINTS = 2

_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Machine:
    """``evidence`` is what was heard, as normalised words, or how long it talked."""

    kind: Kind
    evidence: str


def words(text: str) -> str:
    """Lower case, without accents and punctuation, one blank between words."""
    plain = "".join(
        sign
        for sign in unicodedata.normalize("NFKD", text.casefold())
        if not unicodedata.combining(sign)
    )
    return _NO_WORD.sub(" ", plain).strip()


def by_words(said: str, *, opening: bool = True) -> Machine | None:
    """What ``said`` (see ``words``) is the announcement of; None: maybe a person's words.

    ``opening``: what a person might say as well counts, too.
    """
    found = CLOSED.search(said) or TONE.search(said)
    found = found or (_announcement(said) if opening else None)
    if found is not None:
        return Machine("voicemail", found[0])
    found = MENU.search(said)
    if found is not None:
        return Machine("ivr", found[0])
    return _by_hints(said) if opening else None


def _announcement(said: str) -> re.Match[str] | None:
    for language in LANGUAGES:
        found = language.voicemail.search(said)
        if found is not None and language.person.search(said) is None:
            return found
    return None


def _by_hints(said: str) -> Machine | None:
    for language in LANGUAGES:
        found = [hint[0] for pattern in language.hints if (hint := pattern.search(said))]
        if len(found) >= _ENOUGH_HINTS and language.person.search(said) is None:
            return Machine("voicemail", ", ".join(found))
    return None


class FirstWords:
    """Listens to the far end's first words. Times are seconds on any one clock."""

    def __init__(self, answered_at: float) -> None:
        self._answered_at = answered_at
        self._finals: list[str] = []
        self._interim = ""
        self._began_at: float | None = None
        self._silent_since: float | None = None
        self._opening = True

    @property
    def said(self) -> str:
        """Everything so far, as ``words`` writes it."""
        return words(" ".join([*self._finals, self._interim]))

    @property
    def expects_tone(self) -> bool:
        """A tone was announced."""
        return TONE.search(self.said) is not None

    @property
    def takes_no_message(self) -> bool:
        """The box is full, or there is none."""
        return CLOSED.search(self.said) is not None

    def open(self, at: float) -> bool:
        """Whether a machine may still be recognised."""
        return at - self._answered_at < OPEN_FOR_S

    def speech(self, speaking: bool, at: float) -> None:
        """The far end begins or stops to speak."""
        if not speaking:
            self._silent_since = at
            return
        if self._began_at is None:
            self._began_at = at
        elif self._silent_since is not None and at - self._silent_since >= _LISTENS_AFTER_S:
            self._opening = False
        self._silent_since = None

    def heard(self, text: str, at: float, *, final: bool) -> Machine | None:
        """What was understood; an interim text is replaced by the next one."""
        if final:
            self._finals.append(text)
            self._interim = ""
        else:
            self._interim = text
        said = self.said
        return by_words(said, opening=self._opening) or self._by_length(said, at)

    def _by_length(self, said: str, at: float) -> Machine | None:
        if not self._opening or self._began_at is None:
            return None
        talked_s = (at if self._silent_since is None else self._silent_since) - self._began_at
        if talked_s < _MONOLOGUE_S or len(said.split()) < _MONOLOGUE_WORDS:
            return None
        return Machine("voicemail", f"talked for {talked_s:.1f} s")
