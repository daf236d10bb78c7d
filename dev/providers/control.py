"""The document that controls a run: the phrases, the answers, the delays and the faults."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dev.speech import AGENT_VOICE, CALLER_VOICE, Voice

Milliseconds: TypeAlias = Annotated[float, Field(ge=0, le=600_000)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Fault(_Document):
    """One kind of failure, for the next ``times`` requests, or (null) until it is removed.

    ``status``: answers with that HTTP status. ``rate_limit``: 429 with ``Retry-After``.
    ``hang``: accepts the request and sends nothing. ``drop``: cuts the TCP connection.
    ``malformed``: sends a message that is not JSON. The last three come after ``after``
    messages of the answer; each server's docstring defines its requests and messages.
    ``model``: only requests for this model.
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
        """Return the first fault that applies to a request, and count it down; None if none does.

        ``model``: the requested model, if the request names one.
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
    """Only ``phrases`` are recognised; any other speech has an empty transcript."""

    phrases: list[str] = []
    final_delay_ms: Milliseconds = Field(
        0, description="Delay from the endpoint (end of speech + endpointing) to the final result."
    )
    interim_every_ms: Milliseconds = Field(
        500, description="Speech between two interim results; 0 sends none."
    )
    min_silence_ms: Milliseconds = Field(
        200,
        description="The least endpointing: a pause inside a word must not end an utterance.",
    )
    speech_dbfs: float = Field(
        -42.0, ge=-90, le=0, description="A 10 ms frame at least this loud is speech."
    )


class ToolCall(_Document):
    """``arguments`` may hold ``$name`` placeholders, see Rule."""

    name: str = Field(min_length=1)
    arguments: dict[str, Any] = {}


class Rule(_Document):
    """A reply to a message. All given conditions must hold; the first matching rule applies.

    The conditions are about the last message: a ``user``'s, a ``tool``'s result, or ``none``
    if the conversation has neither yet. ``equals`` compares words (case, punctuation and
    digits do not matter), ``keywords`` must all occur, ``pattern`` is searched in the original
    text. ``$name`` in ``reply`` and in arguments is replaced by a named group of the pattern or
    a field of the tool's JSON result, ``$content`` by the message itself.
    """

    role: Literal["user", "tool", "none"] = "user"
    equals: str | None = None
    keywords: list[str] = []
    pattern: str | None = None
    tool_name: str | None = Field(None, description="The tool that returned the result.")
    after: str | None = Field(None, description="Words in the assistant's last message.")
    turn: int | None = Field(None, ge=1, description="The number of the user message, from 1.")
    reply: str | None = None
    call: ToolCall | None = None
    delay_ms: Milliseconds = Field(0, description="Added to the delay of every reply.")

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
    """The rules of one model; ``default`` is the reply if no rule matches."""

    rules: list[Rule] = []
    default: str = "I am sorry, I did not catch that."


class OpenAI(_Provider):
    """``scripts`` by model name; a model without a script uses the script ``default``."""

    first_token_ms: Milliseconds = Field(
        0, description="Delay from the request to the first chunk."
    )
    token_ms: Milliseconds = Field(0, description="Delay between two tokens.")
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


class Pace(_Document):
    """How audio is sent."""

    chunk_ms: float = Field(50, ge=10, le=1000, description="Length of the audio in one message.")
    speed: float = Field(
        0, ge=0, description="Seconds of audio sent per second; 0 sends all at once."
    )


class Cartesia(_Provider, Pace):
    """``voices`` by Cartesia voice id; any other id uses ``default``.

    ``paces`` by text, for the WebSocket: those texts are sent in another way.
    """

    first_byte_ms: Milliseconds = Field(0, description="Delay from a text to its audio.")
    paces: dict[str, Pace] = {}
    sentence_gap_ms: Milliseconds = Field(250, description="Silence between two sentences.")
    voices: dict[str, VoiceChoice] = {
        "default": VoiceChoice(),
        "caller": VoiceChoice(
            name=CALLER_VOICE.name, words_per_minute=CALLER_VOICE.words_per_minute
        ),
    }

    def pace(self, text: str) -> Pace:
        return self.paces.get(text.strip(), self)

    def voice(self, identifier: str, speed: float = 1.0) -> Voice:
        chosen = self.voices.get(identifier) or self.voices.get("default") or VoiceChoice()
        return chosen.voice(speed)


class Control(_Document):
    """The body of GET and PUT /control. It contains no keys."""

    deepgram: Deepgram = Deepgram()
    openai: OpenAI = OpenAI()
    cartesia: Cartesia = Cartesia()
