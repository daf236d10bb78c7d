"""Fields about recording and consent, which nothing serves yet.

Whoever sends one relies on it, so it is never ignored: a value that asks for something is refused,
and a value that asks for nothing is true already. Both families of paths, ``/sip/call`` and agent
files take them by ``faults``, before their models see them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import Detail


def _off(value: Any) -> bool:
    return value is None or value is False


def _off_within(name: str, nothing: str | bool) -> Callable[[Any], bool]:
    """Of an object: what its ``name`` says; ``nothing`` is the value that asks for nothing."""

    def asks_for_nothing(value: Any) -> bool:
        if not isinstance(value, dict):
            return _off(value)
        stated = value.get(name)
        if stated is None:
            # A name that is not known here may well ask for something.
            return all(each is None for each in value.values())
        return type(stated) is type(nothing) and stated == nothing

    return asks_for_nothing


def _either(value: Any) -> bool:
    return value is None or isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class _Field:
    asks_for_nothing: Callable[[Any], bool]
    refusal: str
    inner: dict[str, Any] | None = None
    """The JSON schema of the object's field, if it may be an object."""
    plain: tuple[bool | None, ...] = (False, None)

    @property
    def schema(self) -> dict[str, Any]:
        plain = {"enum": list(self.plain)}
        if self.inner is None:
            return plain
        return {"anyOf": [plain, {"type": "object", "properties": self.inner}]}


_NO_RECORDINGS = "Calls are not recorded yet: only a value that asks for no recording is taken"

FIELDS: Mapping[str, _Field] = {
    "record": _Field(_off, _NO_RECORDINGS),
    "recording": _Field(
        _off_within("enabled", False), _NO_RECORDINGS, inner={"enabled": {"enum": [False, None]}}
    ),
    "disableRecording": _Field(_either, "Must be true or false", plain=(True, False, None)),
    "disclosure": _Field(
        _off_within("text", ""),
        "Disclosures are not spoken yet: only a value that asks for none is taken",
        inner={"text": {"enum": ["", None]}},
    ),
    "consent": _Field(
        _off_within("mode", "none"),
        "Consent is not asked for yet: only the mode none is taken",
        inner={"mode": {"enum": ["none", None]}},
    ),
}


def served(body: Any) -> Any:
    """``body`` without these fields; the caller has looked at their faults."""
    if not isinstance(body, dict):
        return body
    return {name: body[name] for name in body if name not in FIELDS}


def faults(body: Any) -> list[Detail]:
    """One for each field at the top of ``body`` that asks for what nothing here does."""
    if not isinstance(body, dict):
        return []
    return [
        Detail(name, field.refusal, "not_served")
        for name, field in FIELDS.items()
        if name in body and not field.asks_for_nothing(body[name])
    ]
