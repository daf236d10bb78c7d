"""The nouns of the system and their JSON shapes, shared by gateway and worker.

Field names on the wire are camelCase; times are RFC 3339 UTC
with milliseconds; a duration's unit is in its name.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from core.chains import Llm, Stt, Tts
from core.recordings.config import Consent, Disclosure, Recording, Redaction, Region, switchable
from core.shapes import Model as Model
from core.shapes import Text as Text
from core.shapes import Timestamp as Timestamp
from core.shapes import Words as Words
from core.shapes import new_id as new_id
from core.shapes import now as now
from core.shapes import rfc3339 as rfc3339
from core.tools.headers import ToolHeaders

Status = Literal[
    "queued", "ringing", "in-progress", "completed", "busy", "no-answer", "failed", "canceled"
]
TERMINAL: frozenset[Status] = frozenset({"completed", "busy", "no-answer", "failed", "canceled"})

DisconnectionReason = Literal[
    "user_hangup",
    "agent_hangup",
    "call_transfer",
    "voicemail_reached",
    "ivr_reached",
    "inactivity",
    "max_duration_reached",
    "dial_busy",
    "dial_failed",
    "dial_no_answer",
    "dial_rejected",
    "invalid_destination",
    "agent_unavailable",
    "agent_error",
    "canceled",
]
Direction = Literal["inbound", "outbound", "web"]


# RFC 3986. urlsplit accepts much more, even line breaks.
_PATH = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*"
_URL = re.compile(
    rf"https?://[A-Za-z0-9._~!$&'()*+,;=:@%\[\]-]+(?:[/?]{_PATH}(?:#{_PATH})?)?", re.I
)


def http_url(value: str) -> str:
    """Return ``value`` if it is an http:// or https:// URL by RFC 3986. Raises ValueError.

    User name and password (RFC 3986 §3.2.1) are refused, because URLs are stored, shown and
    logged in plain text.
    """
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not _URL.fullmatch(value):
        raise ValueError("must be an http:// or https:// address, other characters as %XX")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user name or a password")
    return value


def _object_schema(value: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": {}, **value}
    if schema["type"] != "object" or not isinstance(schema["properties"], dict):
        raise ValueError("must be a JSON Schema of type object")
    return schema


ToolUrl = Annotated[
    str,
    AfterValidator(http_url),
    Field(
        max_length=2048,
        json_schema_extra={
            "format": "uri",
            "pattern": rf"^https?://[A-Za-z0-9.-]+(:[1-9][0-9]{{0,3}})?(/{_PATH})?$",
        },
    ),
]


class CustomTool(Model):
    """An HTTP endpoint the agent may call; ``parameters`` is a JSON Schema object."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_-]{0,63}$")
    description: Text = Field(max_length=2000)
    url: ToolUrl
    method: Literal["GET", "POST"] = "POST"
    headers: ToolHeaders = Field(default_factory=dict, repr=False)
    parameters: Annotated[dict[str, Any], AfterValidator(_object_schema)] = Field(
        default_factory=lambda: {"type": "object", "properties": {}},
        json_schema_extra={
            "properties": {"type": {"const": "object"}, "properties": {"type": "object"}}
        },
    )
    timeout_ms: int = Field(10_000, ge=100, le=120_000)
    speak_during_execution: bool = Field(
        False, description="Say executionMessage while the tool runs; false: silence."
    )
    execution_message: Text | None = Field(
        None, max_length=500, description="null: a few words in the agent's language."
    )


class McpServer(Model):
    """A server of the Model Context Protocol whose tools the agent may call."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: ToolUrl = Field(
        description="Streamable HTTP; with a path that ends in /sse, the older HTTP with SSE."
    )
    headers: ToolHeaders = Field(default_factory=dict, repr=False)
    timeout_ms: int = Field(
        10_000, ge=100, le=120_000, description="For listing its tools, and for each tool call."
    )
    allowed_tools: (
        list[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./-]{1,128}$")]] | None
    ) = Field(None, max_length=100, description="Names of the tools to offer; null: all.")


MODELS = {
    "turbo": "openai/gpt-4.1-nano",
    "balanced": "openai/gpt-4.1-mini",
    "max": "openai/gpt-4.1",
}
"""The model for each ``modelTier``, unless ``model`` names one."""


OnVoicemail = Literal["continue", "hang_up", "leave_message"]
Prompt = Annotated[
    str, StringConstraints(min_length=1, max_length=300, pattern=r"\S"), Words(blank=False)
]
"""A short text that the agent says unprompted."""


class AgentConfig(Model):
    """The configuration of an agent: the immutable content of one version."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, StringConstraints(strip_whitespace=True)] = Field(
        min_length=1, max_length=200, pattern=r"\S"
    )
    description: str = Field("", max_length=2000)
    enabled: bool = Field(True, description="false: takes and places no calls.")
    voice_mode: Literal["webhook", "hosted"] = "webhook"
    system_prompt: Text = Field(
        "You are a helpful voice assistant on the phone.", max_length=50_000
    )
    begin_message: Text | None = Field(
        None, max_length=2000, description="Spoken on answer; null: the caller speaks first."
    )
    reentry_message: Text | None = Field(
        None,
        max_length=300,
        description="Spoken by an agent that takes over the call of one that was lost; null: an "
        "apology in the agent's language; empty: nothing.",
    )
    fallback_message: Text | None = Field(
        None,
        max_length=500,
        description="voiceMode webhook: spoken when the webhook fails; null: silence.",
    )
    language: str = Field(
        "en",
        max_length=35,
        pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*$",
        description="BCP 47: en, en-US, es-419.",
    )
    voice: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="A voice id of the TTS; null: its default.",
    )
    stt: Stt = Field(
        "deepgram/nova-3", description="provider/model, or up to three: when one fails, the next."
    )
    model_tier: Literal["turbo", "balanced", "max"] = "balanced"
    model: Llm | None = Field(None, description="As stt; null: the model of modelTier.")
    tts: Tts = Field("cartesia/sonic-3", description="As stt; voice applies to the first only.")
    max_duration_ms: int = Field(3_600_000, ge=1_000, le=86_400_000)
    max_duration_warning: Prompt | None = Field(
        None, description="Said 30 s before maxDurationMs ends; halfway if that is under 60 s."
    )
    max_silence_ms: int = Field(600_000, ge=10_000, le=3_600_000)
    silence_prompts: list[Prompt] = Field(
        default_factory=list, max_length=5, description="Said one by one when nobody speaks."
    )
    silence_prompt_ms: int = Field(
        10_000, ge=3_000, le=3_600_000, description="The silence before each of them."
    )
    voice_speed: float = Field(
        1.0, ge=0.5, le=2, description="TTS speed, cut to the provider's range (Cartesia 0.6-1.5)."
    )
    interruption_sensitivity: float = Field(
        0.8, ge=0, le=1, description="0: never interrupted; 1: by the first sound of speech."
    )
    ambient_sound: Literal["none", "office", "coffee-shop", "outdoor"] = "none"
    voicemail_message: Text | None = Field(
        None,
        max_length=2000,
        description="Left after the beep when an outbound call reaches a voicemail box.",
    )
    on_voicemail: OnVoicemail | None = Field(
        None,
        description="null: leave_message with a voicemailMessage, else continue.",
    )
    on_ivr: Literal["continue", "hang_up"] = Field(
        "continue", description="When an outbound call reaches a telephone menu."
    )
    custom_tools: list[CustomTool] = Field(default_factory=list, max_length=20)
    mcp_servers: list[McpServer] = Field(default_factory=list, max_length=5)
    transfer_number: str | None = Field(
        None,
        pattern=r"^\+[1-9][0-9]{1,14}$",
        description="E.164 number of the human that callers are transferred to; null: nobody.",
    )
    transfer_mode: Literal["cold", "warm"] = Field(
        "cold",
        description="cold: the caller's phone is referred there (REFER). warm: the human is "
        "called, briefed, and accepts or declines the call.",
    )
    transfer_briefing: Annotated[str, Words(blank=False)] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="The briefing for the human (warm); null: who is calling.",
    )
    transfer_ringing_ms: int = Field(
        30_000, ge=1_000, le=75_000, description="How long the human's phone may ring."
    )
    recording: Annotated[Recording, switchable(Recording)] = Field(default_factory=Recording)
    disclosure: Disclosure = Field(default_factory=Disclosure)
    consent: Consent = Field(default_factory=Consent)
    redaction: Redaction = Field(default_factory=Redaction)
    region: Region | None = Field(
        None, description="Where recordings are stored; null: the tenant's region."
    )

    @field_validator("custom_tools")
    @classmethod
    def _named_once(cls, value: list[CustomTool]) -> list[CustomTool]:
        if len({tool.name for tool in value}) < len(value):
            raise ValueError("two tools have the same name")
        return value

    @field_validator("on_voicemail")
    @classmethod
    def _has_a_message(cls, value: OnVoicemail | None, info: ValidationInfo) -> OnVoicemail | None:
        if value == "leave_message" and info.data.get("voicemail_message", "") is None:
            raise ValueError("leave_message needs a voicemailMessage")
        return value

    @property
    def voicemail_policy(self) -> OnVoicemail:
        """The effective ``on_voicemail``; ``leave_message`` only if there is a message."""
        policy = self.on_voicemail or "leave_message"
        if policy == "leave_message" and not self.voicemail_message:
            # Variables may have made the message empty.
            return "continue" if self.on_voicemail is None else "hang_up"
        return policy


class Agent(Model):
    """An agent at one version."""

    id: str
    version: int
    config: AgentConfig


CredentialProvider = Literal["twilio", "sip"]


NumberDirection = Literal["inbound", "outbound", "both"]
NumberVia = Literal["sip", "stream"]
"""How the provider sends calls in: to the SIP service, or as Twilio's Media Streams."""
NumberStatus = Literal["pending", "attaching", "active", "detaching"]
"""``pending``: a claim that no operator has approved yet; LiveKit has no objects for it."""


class PhoneNumber(Model):
    """A number for inbound and outbound calls."""

    id: str
    auth_id: str | None
    phone_number: str
    """E.164."""
    country: str
    """ISO 3166-1 alpha-2; ``ZZ`` for a non-geographic number."""
    provider: CredentialProvider
    direction: NumberDirection
    via: NumberVia = "sip"
    status: NumberStatus
    record: bool = False
    """Record the calls that come in on it, if the agent's recording is enabled."""
    credential_id: str | None = None
    agent_id: str | None = None
    bound_at: Timestamp | None = None
    trunk_id: str | None = None
    rule_id: str | None = None
    provider_ref: dict[str, Any] = Field(default_factory=dict)
    created_at: Timestamp


class Word(Model):
    """A spoken word, as it is written in the transcript; times as in Turn."""

    text: str
    start_ms: int
    end_ms: int


class Turn(Model):
    """One exchange: the caller's words and the agent's answer.

    Milliseconds count from the answer. ``transcript`` is empty when the agent
    speaks unprompted (the greeting). ``response`` holds only what the caller
    can have heard; a barge-in cuts it (``interrupted``).
    """

    id: str
    transcript: str = ""
    response: str = ""
    confidence: float | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    response_start_ms: int | None = None
    response_end_ms: int | None = None
    interrupted: bool = False
    words: list[Word] = Field(
        default_factory=list, description="Of the transcript; empty if their times are unknown."
    )
    response_words: list[Word] = Field(default_factory=list, description="Of the response.")
    masked: bool = Field(
        False, description="The words were not to be kept: recording paused or masked, no consent."
    )
    latency: dict[str, float] = Field(
        default_factory=dict,
        description="Parts of the caller's wait for the answer, in ms: endpointing, stt, llm, "
        "tools (if any ran), tts, transport (if known), and total, their sum. Empty if no speech "
        "preceded the answer, or nobody heard it.",
    )
    created_at: Timestamp = Field(default_factory=now)


class CallEvent(Model):
    """One fact on a call's timeline. ``id`` is unique; a duplicate is ignored."""

    id: str = Field(default_factory=lambda: new_id("evt"), min_length=1, max_length=200)
    type: str = Field(pattern=r"^[a-z_]+(\.[a-z_]+)*$", max_length=64)
    at: Timestamp = Field(default_factory=now)
    data: dict[str, Any] = Field(default_factory=dict)
