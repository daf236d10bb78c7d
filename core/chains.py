"""Provider chains of an agent: one ``provider/model``, or a list of up to three."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

_MAX_CHAIN = 3
_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class _Chain:
    """Validator for one ``provider/model``, or a list: the preferred one, then its fallbacks.

    It is not a union of types, because errors must name the field rather than its alternatives.
    """

    pattern: str

    def __call__(self, value: Any) -> str | list[str]:
        names = value if isinstance(value, list) else [value]
        if not 1 <= len(names) <= _MAX_CHAIN:
            raise ValueError(f"must be one name, or a list of up to {_MAX_CHAIN}")
        for name in names:
            if not isinstance(name, str) or not re.fullmatch(self.pattern, name, re.ASCII):
                raise ValueError(f"must be provider/model: {self.pattern}")
            if len(name) > _MAX_NAME:
                raise ValueError(f"must have at most {_MAX_NAME} characters")
        if len(set(names)) < len(names):
            raise ValueError("the same name twice")
        return [*names] if isinstance(value, list) else str(value)

    def schema(self) -> dict[str, Any]:
        one = {"type": "string", "maxLength": _MAX_NAME, "pattern": f"^{self.pattern}$"}
        several = {
            "type": "array",
            "items": one,
            "minItems": 1,
            "maxItems": _MAX_CHAIN,
            "uniqueItems": True,
        }
        return {"anyOf": [one, several]}


_STT = _Chain(r"(deepgram|openai)/[A-Za-z0-9_.-]+")
_LLM = _Chain(r"openai/[A-Za-z0-9_.:-]+")
_TTS = _Chain(r"(cartesia|openai)/[A-Za-z0-9_.-]+")
Stt = Annotated[str | list[str], PlainValidator(_STT), WithJsonSchema(_STT.schema())]
Llm = Annotated[str | list[str], PlainValidator(_LLM), WithJsonSchema(_LLM.schema())]
Tts = Annotated[str | list[str], PlainValidator(_TTS), WithJsonSchema(_TTS.schema())]


def chain(names: str | list[str]) -> list[str]:
    """Return ``names`` as a list; a single ``provider/model`` becomes a list of one."""
    return [names] if isinstance(names, str) else names
