"""Messages between gateway and workers about the calls that workers serve."""

from __future__ import annotations

from typing import Any

from pydantic import Field, FieldSerializationInfo, SecretStr, field_serializer

from core.models import Agent, Direction, Model
from core.recordings.config import ConsentMode
from core.recordings.plan import RecordingPlan
from core.recovery import Recovered

_REVEAL = "reveal_secrets"


class VoiceWebhook(Model):
    """The endpoint that answers a call's turns; ``CallBrief.revealed`` alone shows its secret."""

    url: str
    secret: SecretStr
    context_limit: int
    timeout_s: int

    @field_serializer("secret", when_used="json")
    def _sealed(self, secret: SecretStr, info: FieldSerializationInfo) -> str:
        return secret.get_secret_value() if info.context == _REVEAL else str(secret)


class CallBrief(Model):
    """The facts of a call that its worker gets (``/internal/calls``)."""

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
    """For an agent in voiceMode webhook; None: the webhook has been deleted."""
    recording: RecordingPlan | None = None
    """None: the call is not recorded."""
    consent: ConsentMode = "none"
    """What holds for this call, by the agent's configuration and the numbers' jurisdictions."""
    remembers: bool = False
    """The gateway takes the events of core.tools.memory; False: it is of a release before."""
    recovered: Recovered | None = None
    """For an agent that takes over the call of one that was lost; None: it is the first."""

    def revealed(self) -> dict[str, Any]:
        """Return ``wire`` with the webhook's secret, for the call's worker only."""
        return self.model_dump(mode="json", by_alias=True, context=_REVEAL)


class JobMetadata(Model):
    """Metadata of a dispatched job: ids and a call-scoped token, never a provider's secret."""

    call_id: str
    token: str
    """It has the agent's epoch (core.recovery)."""
    epoch: int = 0
    identity: str | None = None
    """The agent's identity in the room; None: ``agent_identity`` of the call's id."""


class InboundJob(Model):
    """Metadata of a job whose room a SIP service created for a caller: the called number.

    Its worker asks the gateway which call that is (``POST /internal/calls/inbound``).
    """

    number_id: str = Field(min_length=1, max_length=64)
    auth_id: str | None = None


class InboundRoom(Model):
    """The body of a worker's ``POST /internal/calls/inbound``: its called number and its room."""

    number_id: str = Field(min_length=1, max_length=64)
    room_name: str = Field(min_length=1, max_length=1024)


def agent_identity(name: str) -> str:
    """Return the identity of a call's agent in its room; ``name``: the call's id, or, of a caller's
    room that a SIP service made, the room's name."""
    return f"agent-{name}"


class Assignment(Model):
    """A call and the token with which its worker posts events to it."""

    brief: CallBrief
    token: str

    def revealed(self) -> dict[str, Any]:
        """Return ``wire`` with the brief's secrets."""
        return self.wire() | {"brief": self.brief.revealed()}


class Heartbeat(Model):
    """A worker's heartbeat to the gateway, with its capacity and load."""

    worker_id: str = Field(min_length=1, max_length=128)
    agent_name: str = Field(min_length=1, max_length=128)
    capacity: int = Field(ge=0)
    active: int = Field(ge=0)
    draining: bool = False
    address: str | None = Field(None, max_length=512)
    """Where the gateway reaches a stream worker; None: the worker takes calls in rooms."""
    dispatch_name: str | None = Field(None, min_length=1, max_length=300)
    """The name by which LiveKit dispatches to this worker alone; None: a stream worker, or one of
    an earlier release, which has ``agent_name`` in common with others."""
    calls: list[str] | None = Field(None, max_length=10_000)
    """The calls of ``active``, by id; None: not told."""


def dispatch_name(agent_name: str, worker_id: str) -> str:
    """Return the name under which a worker registers with LiveKit.

    The gateway, not LiveKit, chooses each call's worker: it alone knows who has a free place and
    who is silent. LiveKit keeps a worker that vanished registered for 15 to 20 minutes.
    """
    return f"{agent_name}@{worker_id}"


def is_dispatch_name(name: str, agent_name: str) -> bool:
    """Return True if ``name`` is that of all workers with ``agent_name``, or of one of them."""
    return name == agent_name or name.startswith(f"{agent_name}@")
