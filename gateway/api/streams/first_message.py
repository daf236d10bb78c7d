"""The messages of a client's socket that the gateway reads; all others go to the worker."""

from __future__ import annotations

from typing import Any, Literal

from aiohttp import WSMsgType
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, model_validator
from pydantic.alias_generators import to_camel

from core.errors import AppError
from core.streams.messages import Format
from gateway.auth.tokens import MAX_TOKEN_BYTES
from gateway.calls.variables import Variables
from gateway.fields.recording import AsksForRecording
from gateway.http.body import parse_json, validate

_RATES = {"pcm_s16le": 16_000, "audio/x-mulaw": 8_000}
_MAX_SEQ = 2**53


class _Message(BaseModel):
    """Unknown fields are ignored, since the protocol may grow."""

    model_config = ConfigDict(alias_generator=to_camel)


class Auth(_Message):
    token: StrictStr = Field(min_length=1, max_length=MAX_TOKEN_BYTES, repr=False)


class AudioFormat(_Message):
    encoding: Literal["pcm_s16le", "audio/x-mulaw"] = "pcm_s16le"
    sample_rate: Literal[8000, 16000] | None = None

    @model_validator(mode="after")
    def _known(self) -> AudioFormat:
        if self.sample_rate not in (None, _RATES[self.encoding]):
            raise ValueError(f"sampleRate of {self.encoding} is {_RATES[self.encoding]}")
        return self

    @property
    def format(self) -> Format:
        rate = _RATES[self.encoding]
        return Format.model_validate({"encoding": self.encoding, "sample_rate": rate})


class SessionUpdate(AsksForRecording, _Message):
    variables: Variables | None = None
    input: AudioFormat = AudioFormat()
    output: AudioFormat = AudioFormat()


class Resume(_Message):
    session_id: StrictStr = Field(min_length=1, max_length=64)
    last_seq: StrictInt = Field(0, ge=0, le=_MAX_SEQ)


_KINDS: dict[str, type[Auth | SessionUpdate | Resume]] = {
    "auth": Auth,
    "session.update": SessionUpdate,
    "resume": Resume,
}


def first_message(kind: WSMsgType, data: bytes) -> Auth | SessionUpdate | Resume | None:
    """Return the message; None: it is for the worker, which also counts malformed ones.

    Raises Unprocessable if it is one of these with wrong fields.
    """
    if kind is not WSMsgType.TEXT:
        return None
    try:
        value: Any = parse_json(data)
    except AppError:
        return None
    named = value.get("type") if isinstance(value, dict) else None
    model = _KINDS.get(named) if isinstance(named, str) else None
    return None if model is None else validate(value, model, "/v1")
