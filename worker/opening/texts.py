"""The texts about recording that an agent says if it has none of its own.

A text is in the agent's language, or in English if that is not here. Words are kept of every call
(its transcript), and its audio if it is recorded, so there are two versions of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from core.jobs import CallBrief
from worker.voice.yes_no import known_language


@dataclass(frozen=True, slots=True)
class _Texts:
    recorded: str
    transcribed: str
    may_record: str
    may_transcribe: str
    how: str
    """How to answer. The words and keys are worker.voice.yes_no's."""
    goodbye: str


_TEXTS: Final = {
    "en": _Texts(
        "This call is recorded.",
        "A transcript of this call is kept.",
        "May we record this call?",
        "May we keep a transcript of this call?",
        "Say yes or press 1. Otherwise, say no or press 2.",
        "All right. Nothing of this call is kept. Goodbye.",
    ),
    "de": _Texts(
        "Dieser Anruf wird aufgezeichnet.",
        "Dieser Anruf wird schriftlich festgehalten.",
        "Dürfen wir diesen Anruf aufzeichnen?",
        "Dürfen wir diesen Anruf schriftlich festhalten?",
        "Sagen Sie ja oder drücken Sie die 1. Sonst sagen Sie nein oder drücken Sie die 2.",
        "In Ordnung. Von diesem Anruf wird nichts gespeichert. Auf Wiederhören.",
    ),
    "es": _Texts(
        "Esta llamada se graba.",
        "Se guarda una transcripción de esta llamada.",
        "¿Podemos grabar esta llamada?",
        "¿Podemos guardar una transcripción de esta llamada?",
        "Diga sí o pulse 1. De lo contrario, diga no o pulse 2.",
        "De acuerdo. No se guarda nada de esta llamada. Adiós.",
    ),
    "fr": _Texts(
        "Cet appel est enregistré.",
        "Une transcription de cet appel est conservée.",
        "Pouvons-nous enregistrer cet appel ?",
        "Pouvons-nous conserver une transcription de cet appel ?",
        "Dites oui ou tapez 1. Sinon, dites non ou tapez 2.",
        "Très bien. Rien de cet appel n'est conservé. Au revoir.",
    ),
    "it": _Texts(
        "Questa chiamata viene registrata.",
        "Viene conservata una trascrizione di questa chiamata.",
        "Possiamo registrare questa chiamata?",
        "Possiamo conservare una trascrizione di questa chiamata?",
        "Dica sì o prema 1. Altrimenti, dica no o prema 2.",
        "Va bene. Di questa chiamata non viene conservato nulla. Arrivederci.",
    ),
    "nl": _Texts(
        "Dit gesprek wordt opgenomen.",
        "Dit gesprek wordt schriftelijk vastgelegd.",
        "Mogen we dit gesprek opnemen?",
        "Mogen we dit gesprek schriftelijk vastleggen?",
        "Zeg ja of toets 1. Zeg anders nee of toets 2.",
        "Goed. Van dit gesprek wordt niets bewaard. Tot ziens.",
    ),
    "pt": _Texts(
        "Esta chamada é gravada.",
        "É guardada uma transcrição desta chamada.",
        "Podemos gravar esta chamada?",
        "Podemos guardar uma transcrição desta chamada?",
        "Diga sim ou prima 1. Caso contrário, diga não ou prima 2.",
        "Muito bem. Nada desta chamada é guardado. Adeus.",
    ),
}


def disclosure(brief: CallBrief) -> str | None:
    """Return what is said before anything else; None if nothing is."""
    own = brief.agent.config.disclosure.text
    if own is not None or brief.consent != "announcement":
        return own
    texts = _of(brief)
    return texts.transcribed if brief.recording is None else texts.recorded


def recorded_notice(brief: CallBrief) -> str | None:
    """Return what a human who takes over a recorded call is told; None if callers are not."""
    discloses = brief.consent != "none" or brief.agent.config.disclosure.text is not None
    return _of(brief).recorded if discloses else None


def question(brief: CallBrief) -> str | None:
    """Return the question about consent; None if it is not asked."""
    if brief.consent != "opt_in":
        return None
    if (own := brief.agent.config.consent.question) is not None:
        return own
    texts = _of(brief)
    asked = texts.may_transcribe if brief.recording is None else texts.may_record
    return f"{asked} {texts.how}"


def goodbye(brief: CallBrief) -> str:
    """Return the last words of a call that ends because consent was refused."""
    return _of(brief).goodbye


def _of(brief: CallBrief) -> _Texts:
    return _TEXTS[known_language(brief.agent.config.language)]
