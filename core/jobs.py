"""What gateway and workers tell each other about the calls that workers serve."""

from __future__ import annotations

from typing import Any

from pydantic import Field, FieldSerializationInfo, SecretStr, field_serializer

from core.models import Agent, Direction, Model

_REVEAL = "reveal_secrets"


class VoiceWebhook(Model):
    """The endpoint that answers a call's turns; the secret shows in no representation of it,
    and on the wire only in ``CallBrief.revealed``."""

    url: str
    secret: SecretStr
    context_limit: int
    timeout_s: int

    @field_serializer("secret", when_used="json")
    def _sealed(self, secret: SecretStr, info: FieldSerializationInfo) -> str:
        return secret.get_secret_value() if info.context == _REVEAL else str(secret)


class CallBrief(Model):
    """What a worker is told about its call (``/internal/calls``)."""

    call_id: str
    phone_number_id: str | None = None
    direction: Direction
    participant_identity: str
    from_number: str | None
    to_number: str | None
    metadata: dict[str, Any]
    max_duration_ms: int
    agent: Agent
    webhook: VoiceWebhook | None = None
    """Of an agent in voiceMode webhook; None: there is none any more."""

    def revealed(self) -> dict[str, Any]:
        """``wire`` with the webhook's secret, for the call's worker and nobody else."""
        return self.model_dump(mode="json", by_alias=True, context=_REVEAL)


class JobMetadata(Model):
    """What a dispatched job carries: ids and a call-scoped token, never a secret of a provider."""

    call_id: str
    token: str


class InboundJob(Model):
    """What a job carries whose room a SIP service made for a caller: the number that was called.

    Its worker asks the gateway which call that is (``POST /internal/calls/inbound``).
    """

    number_id: str = Field(min_length=1, max_length=64)
    auth_id: str | None = None


class InboundRoom(Model):
    """Where a worker finds itself: what it asks ``POST /internal/calls/inbound`` with."""

    number_id: str = Field(min_length=1, max_length=64)
    room_name: str = Field(min_length=1, max_length=1024)


class Assignment(Model):
    """A call, and the token that lets its worker post events to it."""

    brief: CallBrief
    token: str

    def revealed(self) -> dict[str, Any]:
        """``wire`` with the brief's secrets."""
        return self.wire() | {"brief": self.brief.revealed()}


class Heartbeat(Model):
    """A worker telling the gateway that it lives and what it could take."""

    worker_id: str = Field(min_length=1, max_length=128)
    agent_name: str = Field(min_length=1, max_length=128)
    capacity: int = Field(ge=0)
    active: int = Field(ge=0)
    draining: bool = False
