"""The JSON Schema of a tool's arguments: whether it is one, and whether arguments fit it.

Nothing is ever fetched: a ``$ref`` leads to a place in the same schema.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

MAX_CHARACTERS = 16 * 1024
"""Of a schema, as JSON."""
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
NOT_AT_ROOT = frozenset({"oneOf", "anyOf", "allOf", "enum", "not", *_REFERENCES})
"""What OpenAI refuses at the root of a function's parameters, with the whole request; or, of a
reference, does not follow."""
_SHOWN_FAULTS = 3
_SHOWN_CHARACTERS = 200

_MOST_STEPS = 20_000
"""Keywords looked at in one go, about 0.2 s of them: a schema of 1 KB can ask for years."""

_DEEPEST = 64
"""Keywords within each other. Python's own limit is not waited for: where it strikes within the
native library of ``referencing``, that panics."""

_steps: ContextVar[int] = ContextVar("steps")
_depth: ContextVar[int] = ContextVar("depth")

# What the library and its regular expressions raise for schemas of that sort.
_UNUSABLE = (RecursionError, ArithmeticError, AttributeError, TypeError, re.error)


def check(schema: dict[str, Any]) -> None:
    """Raises ValueError, saying what is wrong."""
    if len(json.dumps(schema)) > MAX_CHARACTERS:
        raise ValueError(f"has more than {MAX_CHARACTERS} characters")
    if not isinstance(schema.get("$schema", ""), str):
        raise ValueError("$schema is not a string")
    try:
        _kind(schema).check_schema(schema)
        for ref in _refs(schema):
            if not ref.startswith("#"):
                raise ValueError("a $ref may only lead to a place in the same schema")
        _resolve(schema)
        # One that leads to itself is only seen when it is followed.
        _start_counting()
        next(_validator(schema).iter_errors({}), None)
    except SchemaError as error:
        place = error.json_path.removeprefix("$").lstrip(".")
        raise ValueError(
            f"is not a JSON Schema: {f'{place}: ' if place else ''}{_cut(error.message)}"
        ) from None
    except Unresolvable:
        raise ValueError("a $ref leads nowhere") from None
    except _UNUSABLE:
        raise ValueError("is not a JSON Schema that can be used") from None


def check_parameters(schema: dict[str, Any]) -> None:
    """Of a tool that a model is to be told of. Raises ValueError, saying what is wrong."""
    if refused := sorted(NOT_AT_ROOT & schema.keys()):
        raise ValueError(f"has {', '.join(refused)} at its root, which models do not take")
    check(schema)


def for_models(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that others made, as models take it. Raises ValueError: its ``$ref`` leads nowhere.

    A root that refers to a place in the schema becomes that place. What else models refuse there
    is not told to them, so they may make up more than fits: whoever has the tool checks that.
    """
    root = schema
    for _ in range(_DEEPEST):
        if not isinstance(ref := root.get("$ref"), str):
            break
        root = _merged(_place(schema, ref), {key: root[key] for key in root if key != "$ref"})
    plain = {key: root[key] for key in root if key not in NOT_AT_ROOT}
    return {"properties": {}, **plain, "type": "object"}


def _place(schema: dict[str, Any], ref: str) -> dict[str, Any]:
    root = Resource.from_contents(schema, default_specification=DRAFT202012)
    try:
        found = Registry().resolver_with_root(root).lookup(ref).contents if ref[:1] == "#" else None
    except (Unresolvable, *_UNUSABLE):
        found = None
    if not isinstance(found, dict):
        raise ValueError("a $ref leads nowhere")
    return found


def _merged(place: dict[str, Any], beside: dict[str, Any]) -> dict[str, Any]:
    """What a ``$ref`` leads to, and what stands beside the ``$ref``: both count."""
    both = {**place, **beside}
    if isinstance(place.get("properties"), dict) and isinstance(beside.get("properties"), dict):
        both["properties"] = {**place["properties"], **beside["properties"]}
    if isinstance(place.get("required"), list) and isinstance(beside.get("required"), list):
        both["required"] = [*{*map(str, place["required"]), *map(str, beside["required"])}]
    return both


class Arguments:
    """Checks what a model made up for a tool. Compiles the schema when it is first needed."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._validator: Validator | None = None

    def faults(self, arguments: dict[str, Any]) -> str | None:
        """What does not fit, for the model to do better; None: all fits. Raises ValueError: the
        schema is none (it was kept before schemas were checked)."""
        if self._validator is None:
            check(self._schema)
            self._validator = _validator(self._schema)
        _start_counting()
        try:
            found = list(itertools.islice(self._validator.iter_errors(arguments), _SHOWN_FAULTS))
        except (Unresolvable, *_UNUSABLE):
            raise ValueError("is not a JSON Schema that can be used") from None
        return "; ".join(map(_told, found)) if found else None


def _kind(schema: dict[str, Any]) -> type[Validator]:
    """The draft that ``$schema`` names, else the newest."""
    found: type[Validator] = validator_for(schema, default=Draft202012Validator)
    return found


def _start_counting() -> None:
    _steps.set(0)
    _depth.set(0)


@cache
def _counting(kind: type[Validator]) -> type[Validator]:
    """``kind``, giving up after so many steps. Raises ValueError then."""

    def counted(keyword: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
        def run(*given: Any) -> Iterator[ValidationError]:
            depth = _depth.get(0)
            _steps.set(_steps.get(0) + 1)
            if _steps.get() > _MOST_STEPS or depth >= _DEEPEST:
                raise ValueError("is too complicated, or leads to itself")
            _depth.set(depth + 1)
            try:
                yield from keyword(*given) or ()
            finally:
                _depth.set(depth)

        return run

    keywords = {name: counted(keyword) for name, keyword in kind.VALIDATORS.items()}
    made: type[Validator] = extend(kind, keywords)  # type: ignore[no-untyped-call]
    return made


def _validator(schema: dict[str, Any]) -> Validator:
    # A registry of our own, empty: the default one would ask the network for what it does not know.
    return _counting(_kind(schema))(schema, registry=Registry())


def _resolve(schema: dict[str, Any]) -> None:
    """Raises Unresolvable."""
    if any(isinstance(each.get("$id"), str) for each in _objects(schema)):
        return  # it changes what a $ref is relative to
    root = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = Registry().resolver_with_root(root)
    for ref in set(_refs(schema)):
        resolver.lookup(ref)


def _refs(schema: dict[str, Any]) -> Iterator[str]:
    for each in _objects(schema):
        for name in _REFERENCES:
            if isinstance(ref := each.get(name), str):
                yield ref


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _objects(item)


def _told(error: ValidationError) -> str:
    place = error.json_path.removeprefix("$").lstrip(".")
    return f"{place}: {_cut(error.message)}" if place else _cut(error.message)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
