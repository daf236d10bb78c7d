"""Failing and slow providers: how long each may take, what a failure means, and the apology."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from livekit.agents import APIConnectionError, APIConnectOptions, ErrorEvent

from core.models import AgentConfig
from worker.voice.fallback import ATTEMPT_S, describe
from worker.voice.providers import base_language

# These bound the silence that a caller hears: one attempt, one quick retry, then an apology.
LLM_OPTIONS: Final = APIConnectOptions(max_retry=1, retry_interval=0.3, timeout=6.0)
TTS_OPTIONS: Final = APIConnectOptions(max_retry=1, retry_interval=0.3, timeout=5.0)
# The next provider of the chain is the retry.
CHAIN_OPTIONS: Final = APIConnectOptions(max_retry=0, timeout=ATTEMPT_S)

ERRORS_ARE_OURS: Final = 1_000_000
"""The session never ends the call by counting errors; the call does (``Failure.recoverable``)."""

# Spoken in the agent's language when its providers fail; nothing is said in other languages.
_APOLOGIES: Final = {
    "en": "I am sorry, something went wrong on my side. Please call again later. Goodbye.",
    "de": "Es tut mir leid, bei mir ist ein Fehler aufgetreten. Bitte rufen Sie später noch "
    "einmal an. Auf Wiederhören.",
    "es": "Lo siento, se ha producido un error. Por favor, llame más tarde. Adiós.",
    "fr": "Je suis désolé, une erreur est survenue. Veuillez rappeler plus tard. Au revoir.",
    "it": "Mi dispiace, si è verificato un errore. La prego di richiamare più tardi. Arrivederci.",
    "nl": "Het spijt me, er ging iets mis. Probeer het later nog eens. Tot ziens.",
    "pt": "Desculpe, ocorreu um erro. Por favor, ligue mais tarde. Adeus.",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A provider's failure. ``recoverable``: the call goes on, else it ends with an apology."""

    stage: str
    """``stt``, ``llm`` or ``tts``."""
    message: str
    recoverable: bool


def failure_of(event: ErrorEvent) -> Failure:
    """Return what a session's error means for the call."""
    stage = str(getattr(event.error, "type", "unknown")).removesuffix("_error")
    cause = getattr(event.error, "error", event.error)
    # A partly spoken answer is not restarted, nor taken over by another model. The session may
    # still answer the caller's next turn.
    broke_off = stage == "llm" and isinstance(cause, APIConnectionError) and not cause.retryable
    recoverable = bool(getattr(event.error, "recoverable", False))
    return Failure(stage, describe(cause), recoverable or broke_off)


def apology(config: AgentConfig) -> str | None:
    """Return the apology in the agent's language, or None if there is none in that language."""
    return _APOLOGIES.get(base_language(config))
