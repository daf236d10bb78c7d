"""The briefing of a human before a warm transfer, and the human's yes or no."""

from __future__ import annotations

import re
from typing import Literal

from core.jobs import CallBrief
from core.models import AgentConfig

Decision = Literal["accepted", "declined"]

ACCEPT_KEY, DECLINE_KEY = "1", "2"

# Spoken in the agent's language, or in English if it is not here.
_TEXTS = {
    "en": (
        "You have a call from {who}.",
        "You have a call.",
        "Press 1 or say yes to take it. Press 2 or say no to decline.",
    ),
    "de": (
        "Sie haben einen Anruf von {who}.",
        "Sie haben einen Anruf.",
        "Zum Annehmen drücken Sie die 1 oder sagen Sie ja. Zum Ablehnen die 2, oder nein.",
    ),
    "es": (
        "Tiene una llamada de {who}.",
        "Tiene una llamada.",
        "Para aceptarla pulse 1 o diga sí. Para rechazarla pulse 2 o diga no.",
    ),
    "fr": (
        "Vous avez un appel de {who}.",
        "Vous avez un appel.",
        "Pour le prendre, tapez 1 ou dites oui. Pour le refuser, tapez 2 ou dites non.",
    ),
    "it": (
        "Ha una chiamata da {who}.",
        "Ha una chiamata.",
        "Per accettarla prema 1 o dica sì. Per rifiutarla prema 2 o dica no.",
    ),
    "nl": (
        "U heeft een oproep van {who}.",
        "U heeft een oproep.",
        "Toets 1 of zeg ja om hem aan te nemen. Toets 2 of zeg nee om te weigeren.",
    ),
    "pt": (
        "Tem uma chamada de {who}.",
        "Tem uma chamada.",
        "Para a atender, prima 1 ou diga sim. Para a recusar, prima 2 ou diga não.",
    ),
}
_YES = {
    "en": {"yes", "yeah", "yep", "sure", "okay", "ok"},
    "de": {"ja", "gerne", "okay", "ok"},
    "es": {"sí", "si", "claro", "vale"},
    "fr": {"oui", "ouais", "volontiers"},
    "it": {"sì", "si", "certo", "va"},
    "nl": {"ja", "jawel", "oké", "ok"},
    "pt": {"sim", "claro"},
}
_NO = {
    "en": {"no", "nope", "not"},
    "de": {"nein", "nicht", "nö"},
    "es": {"no"},
    "fr": {"non", "pas"},
    "it": {"no", "non"},
    "nl": {"nee", "niet"},
    "pt": {"não", "nao"},
}


def briefing(config: AgentConfig, brief: CallBrief) -> str:
    """Return the text for the human: the agent's briefing or who calls, then how to answer."""
    told, unknown, choice = _TEXTS[_language(config.language)]
    caller = brief.from_number if brief.direction == "inbound" else brief.to_number
    # Spaced, so that it is read digit by digit and not as one large number.
    who = " ".join(caller.removeprefix("+")) if caller else ""
    words = config.transfer_briefing or (told.format(who=who) if who else unknown)
    return f"{words.strip()} {choice}"


def by_key(digit: str) -> Decision | None:
    """Return the decision that a key stands for; None for other keys."""
    if digit == ACCEPT_KEY:
        return "accepted"
    return "declined" if digit == DECLINE_KEY else None


def by_words(transcript: str, language: str) -> Decision | None:
    """Return the decision in a transcript; None if there is none. A no wins over a yes."""
    known = _language(language)
    words = set(re.findall(r"\w+", transcript.lower()))
    if words & _NO[known]:
        return "declined"
    return "accepted" if words & _YES[known] else None


def _language(tag: str) -> str:
    primary = tag.split("-")[0].lower()
    return primary if primary in _TEXTS else "en"
