"""Twilio's signatures of its requests, checked with the account's auth token."""

from __future__ import annotations

from collections.abc import Mapping

from twilio.request_validator import RequestValidator  # type: ignore[import-untyped]

from gateway.store.credentials import TwilioSecret

HEADER = "X-Twilio-Signature"


def is_signed(
    secret: TwilioSecret, url: str, signature: str | None, form: Mapping[str, str] | None = None
) -> bool:
    """Return True if Twilio's account signed this request.

    ``url``: as Twilio was given it; for a stream's handshake the ``wss`` URL, which Twilio may
    sign with a slash at its end.
    """
    if not signature or not signature.isascii():
        return False
    validator = RequestValidator(secret.auth_token.get_secret_value())
    urls = [url, f"{url}/"] if form is None else [url]
    return any(validator.validate(each, form or {}, signature) for each in urls)
