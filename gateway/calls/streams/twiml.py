"""TwiML, Twilio's answer format: what Twilio does with a call of a session."""

from __future__ import annotations

from twilio.twiml.voice_response import VoiceResponse  # type: ignore[import-untyped]

ASK_AGAIN = "rc=3&rp=ct,rt,5xx"
"""The fragment of every URL that Twilio asks about a call. Twilio keeps it to itself, and asks up
to three times more if it cannot connect, waits in vain, or is answered by a balancer whose gateway
has died. https://www.twilio.com/docs/usage/webhooks/webhooks-connection-overrides
"""

# Said in the agent's language, in Twilio's voice for it.
_SORRY = {
    "en": ("en-US", "We are sorry, nobody can take your call at the moment. Please call again."),
    "de": (
        "de-DE",
        "Im Moment ist leider niemand erreichbar. Bitte rufen Sie noch einmal an.",
    ),
    "es": ("es-ES", "Lo sentimos, ahora no podemos atenderle. Por favor, vuelva a llamar."),
    "fr": ("fr-FR", "Nous sommes désolés, personne ne peut répondre. Veuillez rappeler."),
    "it": ("it-IT", "Siamo spiacenti, al momento nessuno può rispondere. Si prega di richiamare."),
    "nl": ("nl-NL", "Het spijt ons, er is nu niemand beschikbaar. Belt u alstublieft later terug."),
    "pt": ("pt-BR", "Lamentamos, ninguém pode atender agora. Por favor, ligue novamente."),
}


def connect(stream_url: str, *, token: str, status_url: str, resume_url: str) -> str:
    """Connect the call to our stream; when that ends, however it ends, ask ``resume_url``."""
    response = VoiceResponse()
    stream = response.connect().stream(
        url=stream_url, status_callback=status_url, status_callback_method="POST"
    )
    # Never in the URL: Twilio takes none with a query, and URLs are logged.
    stream.parameter(name="token", value=token)
    response.redirect(resume_url, method="POST")
    return str(response)


def dial(number: str, *, caller_id: str, ringing_s: int, action_url: str, status_url: str) -> str:
    """Connect the caller to ``number``, and ask ``action_url`` when that call has ended.

    ``status_url`` is told when the number has answered.
    """
    response = VoiceResponse()
    dialled = response.dial(
        timeout=ringing_s, caller_id=caller_id, action=action_url, method="POST"
    )
    dialled.number(number, status_callback=status_url, status_callback_event="answered completed")
    return str(response)


def hang_up() -> str:
    response = VoiceResponse()
    response.hangup()
    return str(response)


def apologize(language: str) -> str:
    """Say in the language (BCP 47), or in English, that nobody can answer, and hang up."""
    locale, text = _SORRY.get(language.split("-")[0].lower(), _SORRY["en"])
    response = VoiceResponse()
    response.say(text, language=locale)
    response.hangup()
    return str(response)
