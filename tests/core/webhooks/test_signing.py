"""Our signatures, checked by the verifiers that users have."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from agentphone import (  # type: ignore[import-untyped]
    WebhookVerificationError,
    construct_event,
    verify_webhook,
)
from standardwebhooks import Webhook
from standardwebhooks import WebhookVerificationError as StandardError

from core.models import now
from core.webhooks.signing import new_secret, signed_headers
from gateway.webhooks.payload import render_test

pytestmark = pytest.mark.unit

SECRET = new_secret()
BODY = render_test(now(), "agt_1", {"callId": "call_1", "transcript": "Schöne Grüße 👋"})
Verify = Callable[..., None]
OLD = timedelta(minutes=6)


def headers(body: str = BODY, *, age: timedelta = timedelta()) -> dict[str, str]:
    return signed_headers(
        SECRET, message_id="msg_1", event="agent.message", body=body, at=now() - age
    )


def standard(body: str, sent: dict[str, str], secret: str = SECRET) -> None:
    Webhook(secret).verify(body.encode(), sent)


def products(body: str, sent: dict[str, str], secret: str = SECRET) -> None:
    verify_webhook(body.encode(), sent["X-Webhook-Signature"], secret, sent["X-Webhook-Timestamp"])


VERIFIERS = pytest.mark.parametrize(
    ("verify", "error"),
    [(standard, StandardError), (products, WebhookVerificationError)],
    ids=["standard-webhooks", "agentphone"],
)


@VERIFIERS
class TestVerifiers:
    def test_accept_ours(self, verify: Verify, error: type[Exception]) -> None:
        verify(BODY, headers())

    def test_accept_a_body_of_another_language(
        self, verify: Verify, error: type[Exception]
    ) -> None:
        body = '{"said": "你好, \\u0000 \\ud83d\\ude00"}'
        verify(body, headers(body))

    def test_refuse_an_altered_body(self, verify: Verify, error: type[Exception]) -> None:
        with pytest.raises(error):
            verify(BODY.replace("call_1", "call_2"), headers())

    def test_refuse_another_secret(self, verify: Verify, error: type[Exception]) -> None:
        with pytest.raises(error):
            verify(BODY, headers(), new_secret())

    def test_refuse_an_old_one(self, verify: Verify, error: type[Exception]) -> None:
        with pytest.raises(error):
            verify(BODY, headers(age=OLD))

    def test_refuse_an_old_one_with_a_new_time(
        self, verify: Verify, error: type[Exception]
    ) -> None:
        fresh = headers()
        sent = headers(age=OLD) | {
            name: fresh[name] for name in ("webhook-timestamp", "X-Webhook-Timestamp")
        }
        with pytest.raises(error):
            verify(BODY, sent)


def test_the_standard_signature_covers_the_id() -> None:
    with pytest.raises(StandardError):
        standard(BODY, headers() | {"webhook-id": "msg_2"})


def test_both_have_the_same_id_and_time() -> None:
    sent = headers()
    assert sent["webhook-id"] == sent["X-Webhook-ID"] == "msg_1"
    assert sent["webhook-timestamp"] == sent["X-Webhook-Timestamp"]
    assert sent["X-Webhook-Event"] == "agent.message"


def test_the_products_library_reads_the_event() -> None:
    sent = headers()
    event = construct_event(
        BODY.encode(), sent["X-Webhook-Signature"], SECRET, sent["X-Webhook-Timestamp"]
    )
    assert (event.event, event.channel, event.agent_id) == ("agent.message", "voice", "agt_1")
    assert (event.data.call_id, event.data.transcript) == ("call_1", "Schöne Grüße 👋")
    assert event.test is True


def test_secrets_differ() -> None:
    assert len({new_secret() for _ in range(100)}) == 100
