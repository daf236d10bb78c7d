"""Signatures of webhooks, in both schemes that receivers may know how to verify.

- Standard Webhooks (standardwebhooks.com): ``webhook-id``, ``webhook-timestamp`` and
  ``webhook-signature: v1,<base64 HMAC-SHA256>`` over ``{id}.{timestamp}.{body}``. The key is the
  base64-decoded part of the secret.
- The product's (``agentphone.verify_webhook``): ``X-Webhook-Signature: sha256=<hex HMAC-SHA256>``
  over ``{timestamp}.{body}``, with ``X-Webhook-Timestamp``, ``X-Webhook-ID`` and
  ``X-Webhook-Event``. The key is the secret as written, including ``whsec_``.

Both carry the time of the attempt in whole seconds since the epoch. Receivers refuse a timestamp
older than five minutes, so each attempt is signed anew, with the same id.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from datetime import UTC, datetime

from standardwebhooks import Webhook

_SECRET_BYTES = 32


def new_secret() -> str:
    """Return ``whsec_`` and 256 random bits in base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signed_headers(
    secret: str, *, message_id: str, event: str, body: str, at: datetime
) -> dict[str, str]:
    """Return the headers to send with ``body``, whose UTF-8 bytes must be sent exactly as given."""
    timestamp = str(int(at.timestamp()))
    signed = f"{timestamp}.{body}".encode()
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": Webhook(secret).sign(message_id, at.astimezone(UTC), body),
        "X-Webhook-ID": message_id,
        "X-Webhook-Timestamp": timestamp,
        "X-Webhook-Signature": f"sha256={digest}",
        "X-Webhook-Event": event,
    }
