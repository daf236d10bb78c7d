"""The signatures of a webhook, both that its receivers may know how to check.

- Standard Webhooks (standardwebhooks.com): ``webhook-id``, ``webhook-timestamp`` and
  ``webhook-signature: v1,<base64 HMAC-SHA256>`` over ``{id}.{timestamp}.{body}``, keyed with the
  bytes that the secret spells in base64.
- The product's (``agentphone.verify_webhook``): ``X-Webhook-Signature: sha256=<hex HMAC-SHA256>``
  over ``{timestamp}.{body}``, keyed with the secret as it is written, ``whsec_`` and all;
  ``X-Webhook-Timestamp``, ``X-Webhook-ID`` and ``X-Webhook-Event`` with it.

Both carry the moment of the attempt in whole seconds since the epoch: a receiver refuses what is
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
    """``whsec_`` and 256 random bits in base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signed_headers(
    secret: str, *, message_id: str, event: str, body: str, at: datetime
) -> dict[str, str]:
    """The headers to send with ``body``, whose UTF-8 bytes must go out exactly as given."""
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
