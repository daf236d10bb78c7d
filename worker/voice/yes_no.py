"""The answer to a question with yes or no: by a word in the agent's language, or by a key."""

from __future__ import annotations

import re
from typing import Final, Literal

Answer = Literal["yes", "no"]

YES_KEY: Final = "1"
NO_KEY: Final = "2"

_YES: Final = {
    "en": {"yes", "yeah", "yep", "sure", "okay", "ok", "agree", "agreed", "fine", "course"},
    "de": {"ja", "gerne", "okay", "ok", "klar", "einverstanden", "jawohl"},
    "es": {"sí", "si", "claro", "vale", "acuerdo", "acepto"},
    "fr": {"oui", "ouais", "volontiers", "accord", "accepte"},
    "it": {"sì", "si", "certo", "va", "accordo", "accetto"},
    "nl": {"ja", "jawel", "oké", "ok", "akkoord"},
    "pt": {"sim", "claro", "concordo", "aceito"},
}
# "t" is the end of "don't" and "can't".
_NO: Final = {
    "en": {"no", "nope", "not", "t", "dont", "never", "disagree", "refuse"},
    "de": {"nein", "nicht", "nö", "kein", "keine", "keinen", "keinesfalls", "niemals"},
    "es": {"no", "nunca", "tampoco"},
    "fr": {"non", "pas", "jamais", "refuse"},
    "it": {"no", "non", "mai", "rifiuto"},
    "nl": {"nee", "niet", "geen", "nooit"},
    "pt": {"não", "nao", "nunca", "recuso"},
}


def by_key(key: str) -> Answer | None:
    """Return the answer that a key stands for; None for other keys."""
    if key == YES_KEY:
        return "yes"
    return "no" if key == NO_KEY else None


def by_words(transcript: str, language: str) -> Answer | None:
    """Return the answer in a transcript; None if there is none. A no wins over a yes.

    In a language that is not here, English words count.
    """
    known = known_language(language)
    words = set(re.findall(r"\w+", transcript.lower()))
    if words & _NO[known]:
        return "no"
    return "yes" if words & _YES[known] else None


def known_language(tag: str) -> str:
    """Return the primary language of a BCP 47 tag, or ``en`` if it is not here."""
    primary = tag.split("-")[0].lower()
    return primary if primary in _YES else "en"
