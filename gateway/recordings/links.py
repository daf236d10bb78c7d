"""Links that open one call's recording for ten minutes, without an Authorization header.

Their key is derived from LIVEKIT_API_SECRET (RFC 5869), apart from those of other tokens: no other
endpoint takes a link's token, and a recording takes no other token for a link's.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from core.models import now

LINK_TTL: Final = timedelta(minutes=10)


class Links:
    """Makes and checks the tokens: ``<expiry in s>.<o or t>.<HMAC-SHA256>``.

    ``o``: the link was made for the operator; ``t``: for the call's tenant.
    """

    def __init__(
        self, livekit_api_secret: str, public_url: str, clock: Callable[[], datetime] = now
    ) -> None:
        kdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"switchroom recording links v1")
        self._key = kdf.derive(livekit_api_secret.encode())
        self._public_url = public_url
        self._clock = clock

    def url(self, call_id: str, *, operator: bool) -> str:
        expires = int((self._clock() + LINK_TTL).timestamp())
        facts = f"{expires}.{'o' if operator else 't'}"
        token = f"{facts}.{self._signature(call_id, facts)}"
        return f"{self._public_url}/v1/calls/{call_id}/recording?token={token}"

    def holder(self, token: str, call_id: str) -> str | None:
        """Return ``o`` or ``t``; None for a token that is expired, forged, or another call's."""
        facts, _, signature = token.rpartition(".")
        expected = self._signature(call_id, facts)
        if not hmac.compare_digest(expected.encode(), signature.encode(errors="replace")):
            return None
        expires, _, holder = facts.partition(".")
        return holder if int(expires) > self._clock().timestamp() else None

    def _signature(self, call_id: str, facts: str) -> str:
        signed = f"{call_id} {facts}".encode(errors="replace")
        made = hmac.digest(self._key, signed, "sha256")
        return base64.urlsafe_b64encode(made).decode().rstrip("=")
