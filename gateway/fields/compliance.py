"""Fields about recording and consent, which are not implemented yet.

A client that sends one relies on it, so none is ignored. A value that asks for something is
refused; a value that asks for nothing is accepted, since it already holds. Both path families,
``/sip/call`` and agent files check them with ``faults`` before their models see the body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import Detail


def _off(value: Any) -> bool:
    return value is None or value is False


def _off_within(name: str, nothing: str | bool) -> Callable[[Any], bool]:
    """Return a test of an object's ``name`` member; ``nothing`` is its value for "not wanted"."""

    def asks_for_nothing(value: Any) -> bool:
        if not isinstance(value, dict):
            return _off(value)
        stated = value.get(name)
        if stated is None:
            # A member unknown here may ask for something, so only nulls pass.
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
    """JSON Schema of the object form's properties; None if the field takes no object."""
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
    """Return ``body`` without these fields; check ``faults`` first."""
    if not isinstance(body, dict):
        return body
    return {name: body[name] for name in body if name not in FIELDS}


def faults(body: Any) -> list[Detail]:
    """Return a Detail for each top-level field of ``body`` that asks for something unsupported."""
    if not isinstance(body, dict):
        return []
    return [
        Detail(name, field.refusal, "not_served")
        for name, field in FIELDS.items()
        if name in body and not field.asks_for_nothing(body[name])
    ]
