"""The document that steers a run: what may be said, what is answered, how late, what fails."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dev.speech import AGENT_VOICE, CALLER_VOICE, Voice

Milliseconds: TypeAlias = Annotated[float, Field(ge=0, le=600_000)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Fault(_Document):
    """One kind of failure, for the next ``times`` requests, or (null) until it is taken out.

    ``status``: answers with that HTTP status. ``rate_limit``: 429 with ``Retry-After``.
    ``hang``: accepts and goes silent. ``drop``: cuts the TCP connection. ``malformed``:
    sends a message that is not JSON. The last three strike after ``after`` messages of
    the answer; what counts as a request is said by each server. ``model``: only requests
    that ask for this model.
    """

    kind: Literal["status", "rate_limit", "hang", "drop", "malformed"]
    status: int = Field(500, ge=400, le=599)
    retry_after_s: int = Field(1, ge=0)
    after: int = Field(0, ge=0)
    times: int | None = Field(1, ge=1)
    model: str | None = None

    @property
    def before_answer(self) -> bool:
        return self.kind in ("status", "rate_limit")

    @property
    def http_status(self) -> int:
        return 429 if self.kind == "rate_limit" else self.status


class _Provider(_Document):
    faults: list[Fault] = []

    def take_fault(self, *, before_answer: bool, model: str | None = None) -> Fault | None:
        """The first fault of that sort, counted down; None if this request is to go well.

        ``model``: the one that is asked for, where a request tells.
        """
        for index, fault in enumerate(self.faults):
            if fault.before_answer == before_answer and fault.model in (None, model):
                if fault.times == 1:
                    del self.faults[index]
                elif fault.times is not None:
                    fault.times -= 1
                return fault
        return None


class Deepgram(_Provider):
    """``phrases`` are all that can be heard; anything else has an empty transcript."""

    phrases: list[str] = []
    final_delay_ms: Milliseconds = Field(
        0, description="From the endpoint (end of speech + endpointing) to the final result."
    )
    interim_every_ms: Milliseconds = Field(500, description="Of speech; 0 for no interim results.")
    min_silence_ms: Milliseconds = Field(
        200,
        description="An endpointing below this is raised to it: "
        "a pause inside a word must not end an utterance.",
    )
    speech_dbfs: float = Field(-42.0, ge=-90, le=0, description="10 ms this loud are speech.")


class ToolCall(_Document):
    """``arguments`` may hold ``$name`` placeholders, see Rule."""

    name: str = Field(min_length=1)
    arguments: dict[str, Any] = {}


class Rule(_Document):
    """What is said to what. All conditions given have to hold; the first rule that fits wins.

    The message looked at is the last one: a ``user``'s, a ``tool``'s result, or ``none``
    when the conversation has neither yet. ``equals`` compares words (case, punctuation and
    digits do not matter), ``keywords`` asks for each of them, ``pattern`` is searched in the
    text as it came. ``$name`` in ``reply`` and in arguments is replaced by a named group of
    the pattern, a field of the tool's JSON result, or ``$content``, the message itself.
    """

    role: Literal["user", "tool", "none"] = "user"
    equals: str | None = None
    keywords: list[str] = []
    pattern: str | None = None
    tool_name: str | None = Field(None, description="The tool whose result this is.")
    after: str | None = Field(None, description="Words of the assistant's last message.")
    turn: int | None = Field(None, ge=1, description="The how-manieth user message this is.")
    reply: str | None = None
    call: ToolCall | None = None

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _answers(self) -> Rule:
        if self.reply is None and self.call is None:
            raise ValueError("needs a reply or a call")
        return self


class Script(_Document):
    """``default`` is said when no rule fits."""

    rules: list[Rule] = []
    default: str = "I am sorry, I did not catch that."


class OpenAI(_Provider):
    """``scripts`` by model name; a model without one of its own has the script ``default``."""

    first_token_ms: Milliseconds = Field(0, description="From the request to the first chunk.")
    token_ms: Milliseconds = Field(0, description="From one token to the next.")
    scripts: dict[str, Script] = {"default": Script()}

    def script(self, model: str) -> Script:
        return self.scripts.get(model) or self.scripts.get("default") or Script()


class VoiceChoice(_Document):
    """An espeak-ng voice, see dev.speech.Voice."""

    name: str = AGENT_VOICE.name
    words_per_minute: int = Field(AGENT_VOICE.words_per_minute, ge=80, le=450)
    pitch: int = Field(AGENT_VOICE.pitch, ge=0, le=99)
    word_gap_ms: int = Field(AGENT_VOICE.word_gap_ms, ge=0, le=1000)

    def voice(self, speed: float = 1.0) -> Voice:
        rate = min(450, max(80, round(self.words_per_minute * speed)))
        return Voice(self.name, rate, self.pitch, self.word_gap_ms)


class Cartesia(_Provider):
    """``voices`` by Cartesia voice id; any other id speaks with ``default``."""

    first_byte_ms: Milliseconds = Field(0, description="From a sentence's text to its audio.")
    chunk_ms: float = Field(50, ge=10, le=1000, description="Audio in one message.")
    speed: float = Field(
        0, ge=0, description="Seconds of audio made per second; 0 sends all at once."
    )
    sentence_gap_ms: Milliseconds = Field(250, description="Silence between two sentences.")
    voices: dict[str, VoiceChoice] = {
        "default": VoiceChoice(),
        "caller": VoiceChoice(
            name=CALLER_VOICE.name, words_per_minute=CALLER_VOICE.words_per_minute
        ),
    }

    def voice(self, identifier: str, speed: float = 1.0) -> Voice:
        chosen = self.voices.get(identifier) or self.voices.get("default") or VoiceChoice()
        return chosen.voice(speed)


class Control(_Document):
    """GET and PUT /control. Keys are no part of it."""

    deepgram: Deepgram = Deepgram()
    openai: OpenAI = OpenAI()
    cartesia: Cartesia = Cartesia()
