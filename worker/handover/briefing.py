"""The briefing of a human before a warm transfer."""

from __future__ import annotations

from core.jobs import CallBrief
from worker.opening.texts import recorded_notice
from worker.voice.yes_no import known_language

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


def briefing(brief: CallBrief, *, recorded: bool) -> str:
    """Return the text for the human: the agent's briefing or who calls, then how to answer.

    ``recorded``: their conversation with the caller is. It is said to them if callers are told.
    """
    config = brief.agent.config
    told, unknown, choice = _TEXTS[known_language(config.language)]
    caller = brief.from_number if brief.direction == "inbound" else brief.to_number
    # Spaced, so that it is read digit by digit and not as one large number.
    who = " ".join(caller.removeprefix("+")) if caller else ""
    words = config.transfer_briefing or (told.format(who=who) if who else unknown)
    notice = recorded_notice(brief) if recorded else None
    return " ".join(part for part in (words.strip(), notice, choice) if part)
