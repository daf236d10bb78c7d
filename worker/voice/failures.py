"""Failing and slow providers: how long each may take, what a failure means, and the apology."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from livekit.agents import AgentSession, APIConnectionError, APIConnectOptions, ErrorEvent
from livekit.agents.voice import SpeechHandle

from core.models import AgentConfig
from worker.voice.fallback import ATTEMPT_S, describe
from worker.voice.providers import base_language

log = logging.getLogger(__name__)

_APOLOGY_WITHIN_S = 8.0

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
# Spoken by an agent that takes over from one that was lost.
_REENTRIES: Final = {
    "en": "Sorry, I lost you for a moment.",
    "de": "Entschuldigung, ich war einen Moment weg.",
    "es": "Perdone, se ha cortado un momento.",
    "fr": "Excusez-moi, je vous ai perdu un instant.",
    "it": "Mi scusi, l'ho persa per un momento.",
    "nl": "Sorry, ik was u even kwijt.",
    "pt": "Desculpe, perdi a ligação por um momento.",
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


class Failures:
    """Reports a conversation's failures. ``names`` are the providers', by stage.

    ``on_failed(stage, message)`` is called when a provider failed for good.
    """

    def __init__(
        self,
        names: dict[str, str],
        post: Callable[[str, dict[str, Any]], object],
        on_failed: Callable[[str, str], None],
    ) -> None:
        self.names = names
        self.given_up = False
        self._post = post
        self._on_failed = on_failed

    def of(self, event: ErrorEvent) -> None:
        """Report a session's error."""
        failure = failure_of(event)
        self.tell(failure.stage, failure.message, failure.recoverable)

    def tell(self, stage: str, message: str, recoverable: bool) -> None:
        facts = {"stage": stage, "message": message, "recoverable": recoverable}
        if (name := self.names.get(stage)) is not None:
            facts["provider"] = name
        self._post("provider.error", facts)
        if not recoverable:
            self.given_up = True
            self._on_failed(stage, message)


def apology(config: AgentConfig) -> str | None:
    """Return the apology in the agent's language, or None if there is none in that language."""
    return _APOLOGIES.get(base_language(config))


async def apologise(
    session: AgentSession[None], text: str, said: Callable[[SpeechHandle], None]
) -> None:
    """Say the apology instead of anything else, if the session can. ``said`` gets its speech."""
    try:
        async with asyncio.timeout(_APOLOGY_WITHIN_S):
            await session.interrupt(force=True)
            speech = session.say(text, allow_interruptions=False)
            said(speech)
            await speech.wait_for_playout()
    except (TimeoutError, RuntimeError) as error:
        log.warning("no apology", extra={"error": str(error)})


def reentry(config: AgentConfig) -> str | None:
    """Return what an agent says first that takes over from a lost one; None: nothing."""
    own = config.reentry_message
    return _REENTRIES.get(base_language(config)) if own is None else own.strip() or None
