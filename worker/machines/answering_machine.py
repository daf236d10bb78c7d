"""Recognises whether a person, a voicemail box or a telephone menu answered an outbound call.

Detection delays nothing: the agent greets at once, as if a person had answered, and is stopped
when a machine is recognised. So there is no verdict "human", only a time after which detection
stops. Taking a person for a machine costs them their call, so it is worse than recognising a
machine late. These rules decide, in this order:

1. Words that only a machine says ("after the tone", "press 1"), in 7 languages, at any time. A
   message box that also offers keys ("… or press 1 for more options") is a message box; a menu
   that also takes messages ("to leave a message, press 2") is a menu.
2. In the opening (until the far end falls silent to listen), the usual words of an announcement
   ("please leave a message") or two hints ("is not available", "you have reached"), unless there
   are words that only people say ("would you like to …?"): a secretary says the former, too.
3. In the opening, continuous talk: 8 s and 20 words. A person says a short "hello?" and waits,
   all the more when greeted. Asterisk's AMD (``greeting`` 1.5 s), Twilio's
   (``MachineDetectionSpeechThreshold`` 2.4 s) and LiveKit's (``HUMAN_SPEECH_THRESHOLD``
   2.5 s) decide by length much sooner, and take "Good morning, Smith and Partners, Jane
   speaking" for a machine or ask a language model about it.

livekit-agents' own ``AMD`` is not used: it holds back the agent's speech until its verdict (for
a person half a second after their first words), and asks the LLM for that verdict.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from worker.machines.phrases import CLOSED, LANGUAGES, MENU, TONE

Kind = Literal["voicemail", "ivr"]

OPEN_FOR_S = 30.0  # after the answer; even a longer announcement is recognised by then
_LISTENS_AFTER_S = 2.0  # of silence, after which the opening is over
_MONOLOGUE_S = 8.0
_MONOLOGUE_WORDS = 20
_ENOUGH_HINTS = 2

_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Machine:
    """A recognised machine. ``evidence`` is the matched text, normalised, or the talk's length."""

    kind: Kind
    evidence: str


def words(text: str) -> str:
    """Normalise ``text``: lower case, no accents or punctuation, one blank between words."""
    plain = "".join(
        sign
        for sign in unicodedata.normalize("NFKD", text.casefold())
        if not unicodedata.combining(sign)
    )
    return _NO_WORD.sub(" ", plain).strip()


def by_words(said: str, *, opening: bool = True) -> Machine | None:
    """Return the machine that says ``said`` (see ``words``); None if it may be a person.

    In the ``opening``, words that a person might also say count too.
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

    def __init__(
        self, answered_at: float, *, open_for_s: float = OPEN_FOR_S, opening: bool = True
    ) -> None:
        """``opening``: the far end has not fallen silent to listen yet."""
        self._answered_at = answered_at
        self._open_for_s = open_for_s
        self._finals: list[str] = []
        self._interim = ""
        self._began_at: float | None = None
        self._silent_since: float | None = None
        self._opening = opening

    @property
    def said(self) -> str:
        """Everything said so far, normalised by ``words``."""
        return words(" ".join([*self._finals, self._interim]))

    @property
    def expects_tone(self) -> bool:
        """True if a tone was announced."""
        return TONE.search(self.said) is not None

    @property
    def takes_no_message(self) -> bool:
        """True if the box is full, or there is none."""
        return CLOSED.search(self.said) is not None

    def open(self, at: float) -> bool:
        """Return True while a machine may still be recognised."""
        return at - self._answered_at < self._open_for_s

    def speech(self, speaking: bool, at: float) -> None:
        """Note that the far end starts or stops speaking."""
        if not speaking:
            self._silent_since = at
            return
        if self._began_at is None:
            self._began_at = at
        elif self._silent_since is not None and at - self._silent_since >= _LISTENS_AFTER_S:
            self._opening = False
        self._silent_since = None

    def heard(self, text: str, at: float, *, final: bool) -> Machine | None:
        """Add a transcript and look for a machine. Each interim text replaces the previous one."""
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
